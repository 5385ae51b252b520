"""deploy/README.md to the letter: its commands are such as there are, and lead from the wheel to a federation."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import require_command
from deployment import Process, free_port
from images import DEPLOY
from programs import program

SECONDS = 300.0
ADDRESS = "127.0.0.1:8470"


def page() -> str:
    return (DEPLOY / "README.md").read_text()


def commands_under(heading: str = "") -> list[list[str]]:
    """Return the commands of a section, or of the page, as words; what stands behind a # is left out."""
    text = re.split(rf"^## {heading}\n", page(), flags=re.MULTILINE)[1].partition("\n## ")[0] if heading else page()
    blocks = re.findall(r"^```console\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [
        words for line in lines if (words := shlex.split(line.removeprefix("$ ").removeprefix("# "), comments=True))
    ]


def fedloras_words(command: list[str]) -> list[str]:
    """Return what a command of the page gives fedlora, by whatever way it is started; nothing where it is another's."""
    places = [place for place, word in enumerate(command) if word in ("fedlora", "/opt/fedlora/bin/fedlora")]
    return command[places[-1] + 1 :] if places else []


def test_every_command_of_fedlora_on_the_page_is_one_that_there_is() -> None:
    found = [words for command in commands_under() if (words := fedloras_words(command))]
    assert len(found) > 15
    for words in found:
        require_command(words)


def test_the_charts_commands_on_the_page_render(tmp_path: Path) -> None:
    helm = program("helm")
    shutil.copytree(DEPLOY / "chart", tmp_path / "chart")
    shutil.copy(DEPLOY / "runs" / "digits.toml", tmp_path)
    (tmp_path / "site.toml").write_text('[data]\npath = "/data"\n')
    installs = [command for command in commands_under("Chart") if command[:2] == ["helm", "install"]]
    assert len(installs) == 2
    for command in installs:
        words = [
            word.replace("HOST:PORT", "fl.example.org:8470").replace("HOST", "fl.example.org") for word in command[2:]
        ]
        done = subprocess.run([helm, "template", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "kind: NetworkPolicy" in done.stdout


@pytest.mark.slow
def test_a_walk_through_server_clients_and_watch_works_to_the_letter(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    paths = {"/opt/fedlora/share/fedlora": str(DEPLOY)}
    started: list[Process] = []
    try:
        for command in (each for heading in ("Server", "Clients", "Watch") for each in commands_under(heading)):
            words = [_mapped(word, {ADDRESS: address, **paths}) for word in command]
            if words[1:3] in (["server", "start"], ["client", "join"]):
                process = Process(words[2], words[1:], tmp_path / f"{len(started)}.log", tmp_path)
                started.append(process)
                process.start()
                process.wait_for("listening on" if words[1] == "server" else "connected to", SECONDS)
                continue
            if words[1:3] == ["server", "stop"]:
                started[0].wait_for(r"round +1/10", SECONDS)
            program_path = Path(sys.executable).with_name("fedlora") if words[0] == "fedlora" else words[0]
            done = subprocess.run([program_path, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (words, done.stdout, done.stderr)
        assert started[0].wait(SECONDS) == 0
        assert (tmp_path / "server" / "report.html").exists()
        for client in started[1:]:
            assert client.popen is not None
            assert client.popen.poll() is None, "it waits for the server"
    finally:
        for process in started:
            process.kill()


def _mapped(word: str, replaced: dict[str, str]) -> str:
    for former, latter in replaced.items():
        word = word.replace(former, latter)
    return word
