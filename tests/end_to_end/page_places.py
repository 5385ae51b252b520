"""What a reader of the pages has at each place, does there, and finds there at the end."""

import json
import re
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import torch
from guide_pages import ROOT, piece_with, pieces
from page_reader import SECONDS, Reader
from small_run import write_run_file

from fedlora.adapters import Adapter, LoraLayer, save_adapter
from fedlora.server.run_queue.store import RunStore

Act = Callable[[Reader], None]

SHORT = "--set federation.rounds=1 --set train.steps=2 --set evaluation.round_examples=20"
SITES = ("chalk", "pencil")


def deploy_folder(reader: Reader) -> None:
    """Put deploy/ where a clone has it."""
    ignored = shutil.ignore_patterns("data", "results", "*.site")
    shutil.copytree(ROOT / "deploy", reader.folder / "deploy", ignore=ignored)


def clone(reader: Reader) -> None:
    """Put what make reads where a clone has it."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, reader.folder)


def two_adapters(reader: Reader) -> None:
    """Make site-a and site-b."""
    for seed, name in enumerate(("site-a", "site-b")):
        draw = torch.Generator().manual_seed(seed)
        layer = LoraLayer(torch.randn(4, 8, generator=draw), torch.randn(6, 4, generator=draw), 2.0)
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query"]}
        save_adapter(Adapter({"encoder.query": layer}, {}, config), reader.folder / name)


def tiny_run(reader: Reader, *overrides: str) -> None:
    """Write run.toml: pictures of three domains, for two sites, in rounds that take no time."""
    write_run_file(
        reader.folder,
        reader.given["tiny_vision_model"],
        reader.given["tiny_digits"],
        'data.labels=["0", "1", "2"]',
        "federation.sites=2",
        "run.name=digits",
        *overrides,
    )


def a_finished_run(reader: Reader) -> None:
    """Leave a run in runs/, of run.toml."""
    reader.type("fedlora simulate run.toml")


def tiny_sites(reader: Reader) -> None:
    """Write a site file for each of two domains, and SITE.toml, which is the first one's."""
    for name in SITES:
        text = (
            f'[site]\nname = "{name}"\n[data]\npath = "{reader.given["tiny_digits"]}"\nonly_group = "{name}"\n'
            f'[limits]\nbase_models = ["{reader.given["tiny_vision_model"]}"]\nleast_examples = 1\n'
        )
        (reader.folder / f"{name}.toml").write_text(text)


def reviews(reader: Reader) -> None:
    """Write reviews.csv, texts with a verdict."""
    words = {"good": "a fine and great film", "bad": "a poor and awful film"}
    lines = [f"{words[label]} {number},{label}" for number in range(60) for label in words]
    (reader.folder / "reviews.csv").write_text("\n".join(["text,label", *lines]) + "\n")


def rated_texts(reader: Reader) -> None:
    """Write what make_data.py makes of its package, of fewer texts."""
    rows = [
        f"the film was {'very ' * (number % 3)}{label},{label},{domain},{domain} {number}"
        for domain in ("tweets", "film", "amazon", "news")
        for number in range(60)
        for label in ("positive", "negative")
    ]
    path = reader.folder / "deploy" / "runs" / "data" / "rated_texts.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["text,label,domain,document", *rows]) + "\n")


def language_model(reader: Reader) -> None:
    """Put a tiny language model where make_examples.py puts SmolLM2."""
    shutil.copytree(reader.given["tiny_language_model"], reader.folder / "deploy" / "runs" / "data" / "smollm2")


def flower_app(reader: Reader) -> None:
    """Write the page's app and its pyproject.toml."""
    page = ROOT / "deploy" / "guide" / "flower.md"
    (reader.folder / "app.py").write_text(piece_with(page, "python", "server_app = ServerApp()"))
    (reader.folder / "pyproject.toml").write_text(piece_with(page, "toml", "app:server_app"))


def store(reader: Reader) -> None:
    """Make runs/store."""
    RunStore.opened(reader.folder / "runs" / "store")


def without_runs(reader: Reader) -> None:
    """Begin without the runs of the other way that the page shows."""
    shutil.rmtree(reader.folder / "runs")


def assistant(reader: Reader) -> None:
    """Leave a language model's run in runs/assistant."""
    (reader.folder / "assistant.toml").write_text(
        f"""
        [run]
        name = "assistant"
        [model]
        name = "{reader.given["tiny_language_model"]}"
        [task]
        kind = "causal_lm"
        max_length = 64
        [data]
        path = "{reader.given["tiny_chats"]}"
        group = "language"
        """
    )
    reader.type(f"fedlora simulate assistant.toml {SHORT}")


def inference_server(reader: Reader) -> None:
    """Answer in vLLM's place, write down what is asked, and write the page's load.sh."""
    asked = reader.folder / "asked.jsonl"

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with open(asked, "a") as lines:
                lines.write(json.dumps({"path": self.path, "type": self.headers["Content-Type"], **body}) + "\n")
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    host, port = reader.other_address.split(":")
    server = ThreadingHTTPServer((host, int(port)), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    reader.at_end.callback(server.server_close)
    reader.at_end.callback(server.shutdown)
    script = reader.folder / "load.sh"
    script.write_text(reader.typed(piece_with(ROOT / "deploy" / "serving.md", "sh", "# load.sh:")))
    script.chmod(0o755)


def asked_for_chat_and_adapters(reader: Reader) -> None:
    asked = reader.folder / "asked.jsonl"
    reader.wait_until(lambda: "lora_name" in asked.read_text(), "load.sh has told of an adapter")
    chat, load, *_ = (json.loads(line) for line in asked.read_text().splitlines())
    assert (chat["path"], chat["type"]) == ("/v1/chat/completions", "application/json")
    assert chat["messages"] == [{"role": "user", "content": "Hello"}]
    assert (load["path"], load["type"]) == ("/v1/load_lora_adapter", "application/json")
    assert (reader.folder / load["lora_path"]).name == load["lora_name"]
    assert (reader.folder / load["lora_path"] / "adapter_config.json").is_file()


def superlink(reader: Reader) -> None:
    """Write the run file and the site file of the page, and Flower's configuration."""
    tiny_run(reader, "federation.sites=1")
    tiny_sites(reader)
    (reader.folder / "chalk.toml").rename(reader.folder / "site.toml")
    home = Path(reader.environment["FLWR_HOME"])
    home.mkdir()
    connection = piece_with(ROOT / "deploy" / "flower" / "README.md", "toml", "[superlink.ours]")
    (home / "config.toml").write_text(reader.typed(connection))


def flower_run_has_ended(reader: Reader) -> None:
    """Look at the run, whose number `flwr run` has printed, until its status begins with "finished"."""
    (started,) = (text for command, text in reader.printed.items() if command.startswith("flwr run"))
    reader.instead["ID"] = str(json.loads(started)["run-id"])
    look = "flwr list ours --run-id ID --format json"

    def is_over() -> bool:
        reader.type(look)
        return str(json.loads(reader.printed[look])["runs"][0]["status"]).startswith("finished")

    reader.wait_until(is_over, "the run is over")
    assert "finished:completed" in reader.printed[look]


def two_sites_at_work(reader: Reader) -> None:
    """Do what README says under "On machines of their own"."""
    for piece in pieces(ROOT / "README.md"):
        if piece.heading == "On machines of their own" and piece.kind == "command":
            reader.type(piece.text)


def published(reader: Reader) -> None:
    """Wait for the first adapter that is published."""
    folder = reader.folder / "runs" / "server" / "published"
    reader.wait_until(lambda: list(folder.glob("*-v*")), "an adapter is published")


def reload_script(reader: Reader) -> None:
    """Write reload.sh, which notes what it is called for."""
    script = reader.folder / "reload.sh"
    script.write_text('#!/bin/sh\necho "$FEDLORA_NAME" >> reloaded\n')
    script.chmod(0o755)


def is_reloaded(reader: Reader) -> None:
    reader.wait_until((reader.folder / "reloaded").exists, "reload.sh is called")


def tiny_server(reader: Reader) -> None:
    """Leave a run in runs/server that two sites were in the middle of, its run file where the page has it."""
    tiny_server_at_work(reader)
    leave(reader)


def tiny_server_at_work(reader: Reader) -> None:
    """Have a server and two sites at work on deploy/runs/digits.toml in runs/server."""
    tiny_run(reader, "federation.rounds=1000")
    tiny_sites(reader)
    (reader.folder / "deploy" / "runs").mkdir(parents=True)
    (reader.folder / "run.toml").rename(reader.folder / "deploy" / "runs" / "digits.toml")
    server_at_work(reader)
    for name in SITES:
        reader.type(f"fedlora sites invite {name} --out runs/server --address {reader.address}")
        reader.stay(f"fedlora client join {reader.address} --site {name}.toml --token -", "connected to")
    folder = reader.folder / "runs" / "server" / "published"
    reader.wait_until(lambda: len(list(folder.glob("*-v*"))) > 1, "two adapters are published")


def server_at_work(reader: Reader) -> None:
    """Start a server on runs/server, unless there is one."""
    if not any(process.popen is not None and process.popen.poll() is None for process in reader.staying):
        start = f"fedlora server start deploy/runs/digits.toml --out runs/server --listen {reader.address}"
        reader.stay(start, "listening on")


def leave(reader: Reader) -> None:
    """End whatever is at work, as a machine that is switched off does."""
    for process in reader.staying:
        process.kill()


def both_pages_are_there(reader: Reader) -> None:
    for name in ("fedlora dashboard", "fedlora server start"):
        address = re.search(r"http://127.0.0.1:\d+/", reader.staying_at(name).text)
        assert address, reader.staying_at(name).text
        with urlopen(address[0]) as answer:
            assert b"fedlora" in answer.read()


def server_has_ended_well(reader: Reader) -> None:
    server = reader.staying_at("fedlora server start")
    assert server.wait(SECONDS) == 0, server.text
    for process in reader.staying:
        assert process.wait(60) == 0, process.text
    assert (reader.folder / "runs" / "server" / "adapter" / "adapter_model.safetensors").exists()


def leaves(*paths: str) -> Act:
    """Return a check that these files are there at the end."""

    def look(reader: Reader) -> None:
        assert not [path for path in paths if not (reader.folder / path).exists()]

    return look


def each_prints_an_object(reader: Reader) -> None:
    assert reader.printed
    for text in reader.printed.values():
        assert isinstance(json.loads(text), dict), text
