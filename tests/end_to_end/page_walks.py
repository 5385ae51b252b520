"""How the pages are walked: what is typed otherwise than it stands there, and what is not typed, and why."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from guide_pages import ROOT, Piece, pieces
from page_places import (
    SHORT,
    Act,
    a_finished_run,
    asked_for_chat_and_adapters,
    assistant,
    both_pages_are_there,
    clone,
    deploy_folder,
    each_prints_an_object,
    flower_app,
    flower_run_has_ended,
    inference_server,
    is_reloaded,
    language_model,
    leaves,
    published,
    rated_texts,
    reload_script,
    reviews,
    server_at_work,
    server_has_ended_well,
    store,
    superlink,
    tiny_run,
    tiny_server,
    tiny_server_at_work,
    two_adapters,
    two_sites_at_work,
    without_runs,
)

# Rounds that go on until the server is stopped.
LONG = SHORT.replace("rounds=1 ", "rounds=1000 ")


@dataclass(frozen=True)
class Walk:
    """Sections of a page, whose commands and programs are typed in their order.

    Attributes:
        headings: those of the sections; none for all.
        prepare: makes what a reader has there.
        instead: what is typed in place of a part of a command.
        before: what a reader does or waits for before a command that begins so.
        after: what must be so at the end.
        prelude: what the reader's own program has before the page's.
        needs: a program without which the walk is skipped.
    """

    page: str
    headings: tuple[str, ...] = ()
    prepare: tuple[Act, ...] = ()
    instead: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, Act] = field(default_factory=dict)
    after: tuple[Act, ...] = ()
    prelude: str = ""
    needs: str = ""

    @property
    def name(self) -> str:
        return ": ".join([self.page, *self.headings[:1]])

    def pieces(self) -> list[Piece]:
        """Return what is typed of these sections: all commands and programs but `NOT_TYPED`."""
        return [
            piece
            for piece in pieces(ROOT / self.page)
            if (not self.headings or piece.heading in self.headings)
            and piece.kind in ("command", "python")
            and not any(each.is_of(piece) for each in NOT_TYPED)
        ]


@dataclass(frozen=True)
class NotTyped:
    """A command or a program that no walk types; `part` stands in it, and in nothing else of its page."""

    page: str
    part: str
    reason: str

    def is_of(self, piece: Piece) -> bool:
        return piece.page == self.page and piece.kind in ("command", "python") and self.part in piece.text


_INDEX = "asks the package index"
_MINUTES = "takes ten minutes; test_privacy_attacks.py measures a shorter line"
_VLLM = "vLLM is not here"
_HUB = "signs in at the hub"
NOT_TYPED = (
    NotTyped("README.md", "constraints.txt torch", _INDEX),
    NotTyped("README.md", "'.[text]'", f"{_INDEX}; test_wheel.py installs the wheel"),
    NotTyped("README.md", "def make_trainer", "test_own_trainer.py runs it: deploy/runs/own_trainer.py"),
    NotTyped("README.md", "strategy = LoraFairStrategy(", "three lines of the app on guide/flower.md"),
    NotTyped("deploy/guide/extending.md", "class Stars", "test_own_task.py runs it"),
    NotTyped("deploy/guide/extending.md", "class Momentum", "test_foreign_method.py runs it"),
    NotTyped(
        "deploy/guide/flower.md",
        "server_app = ServerApp()",
        "test_example.py runs it, and the walk has `flwr run` do so",
    ),
    NotTyped("deploy/guide/flower.md", "pip install", _INDEX),
    NotTyped("deploy/guide/language-models.md", "pip install", _INDEX),
    NotTyped("deploy/operations.md", "pip install", _INDEX),
    NotTyped("deploy/runs/compare/README.md", "make_data.py rated_texts", _INDEX),
    NotTyped("deploy/runs/privacy/README.md", "--draws 3", _MINUTES),
    NotTyped("deploy/runs/privacy/README.md", "--run", _MINUTES),
    NotTyped("deploy/monitoring/README.md", "docker compose", "needs Docker; test_monitoring.py reads the files"),
    NotTyped("deploy/serving.md", "vllm serve BASE --enable-lora --max-lora-rank 16 --lora-modules", _VLLM),
    NotTyped("deploy/serving.md", "=True vllm serve BASE", _VLLM),
    NotTyped("deploy/serving.md", "VLLM_PLUGINS=lora_filesystem_resolver", _VLLM),
    NotTyped("deploy/serving.md", "hf auth login", _HUB),
    NotTyped("deploy/serving.md", "hf upload", _HUB),
)
# Pages whose commands another test types: test_operators_page.py.
OTHER_WALKS = ("deploy/README.md",)

_PAIRS = """
import numpy

def pairs(seed):
    random = numpy.random.default_rng(seed)
    return [(random.integers(0, 255, (56, 56, 3), dtype=numpy.uint8), number % 10) for number in range(40)]

pairs_north, pairs_south, pairs_test = pairs(0), pairs(1), pairs(2)

"""

QUICK = (
    Walk("README.md", ("The aggregation alone",), (two_adapters,), after=(leaves("global/adapter_config.json"),)),
    Walk("deploy/guide/aggregation.md", (), (two_adapters,), after=(leaves("global/adapter_config.json"),)),
    Walk(
        "deploy/monitoring/README.md",
        (),
        (deploy_folder,),
        {"prometheus.yml": "prometheus.yml --web.listen-address={address} --storage.tsdb.path=metrics"},
        needs="prometheus",
    ),
)
SLOW = (
    Walk(
        "deploy/guide/privacy.md",
        ("Secure sums", "A budget per client", "A budget per example"),
        (tiny_run,),
        after=(
            leaves("runs/secure/adapter/adapter_config.json"),
            leaves("runs/noised/privacy.json"),
            leaves("runs/private/adapter/adapter_config.json"),
        ),
    ),
    Walk(
        "README.md",
        ("Two commands",),
        (clone,),
        {
            # The environment is there.
            "make simulate": f'make BIN={Path(sys.executable).parent} -o .venv/.runtime simulate ARGS="{SHORT}"',
            # It would run this test.
            "make test": "make --dry-run test",
            "fedlora simulate": f"fedlora simulate {SHORT}",
        },
        {"fedlora simulate": without_runs},
        (leaves("runs/digits/report.html", "runs/digits/adapter/adapter_config.json", ".venv/bin/python"),),
    ),
    Walk(
        "README.md",
        ("Your own data",),
        (),
        {"fedlora simulate run.toml": f"fedlora simulate run.toml {SHORT}"},
        after=(leaves("runs/digits/report.html"),),
    ),
    Walk(
        "README.md",
        ("On machines of their own",),
        (deploy_folder,),
        {"deploy/runs/digits.toml": f"deploy/runs/digits.toml {SHORT}"},
        after=(server_has_ended_well,),
    ),
    Walk(
        "README.md",
        ("Watch it",),
        (tiny_run, a_finished_run),
        {"dashboard runs": "dashboard runs --address 127.0.0.1:0", "--out runs/a": "--out runs/a --listen {address}"},
        after=(both_pages_are_there,),
    ),
    Walk("deploy/guide/data.md", (), prelude=_PAIRS, after=(leaves("runs/own/report.html"),)),
    Walk("deploy/guide/flower.md", (), (flower_app,), after=(leaves("flower-adapter/adapter_config.json"),)),
    Walk(
        "deploy/guide/language-models.md",
        (),
        (deploy_folder, language_model),
        {
            # Of its model, which it asks the package index for, there is another one here.
            "python deploy/runs/make_examples.py smollm2 && ": "",
            "smollm2.toml": f"smollm2.toml {SHORT} --set task.max_length=250 --set evaluation.generate=4",
        },
        after=(leaves("runs/smollm2/adapter/adapter_config.json"),),
    ),
    Walk(
        "deploy/guide/methods.md",
        (),
        (tiny_run,),
        {"--draws 10": f"--draws 2 --tuning-draws 1 {SHORT}"},
        after=(leaves("comparison/report.html", "comparison/comparison.md", "comparison/comparison.json"),),
    ),
    Walk(
        "deploy/guide/programs.md",
        (),
        (reviews, store),
        {"simulate run.toml": f"simulate run.toml {SHORT}"},
        after=(each_prints_an_object,),
    ),
    Walk(
        "deploy/guide/sites.md",
        ("A server and its sites",),
        (deploy_folder, two_sites_at_work, reload_script),
        {"deploy/runs/digits.toml": f"deploy/runs/digits.toml {LONG}"},
        {"fedlora adapters list": published},
        (is_reloaded,),
    ),
    Walk("deploy/guide/sites.md", ("Many runs, one server",), (deploy_folder,)),
    Walk(
        "deploy/operations.md",
        ("Backup", "Restore"),
        (tiny_server,),
        {"digits.toml --out runs/restored": "digits.toml --out runs/restored --listen {address}"},
    ),
    Walk("deploy/operations.md", ("Certificates and the authority",), (tiny_server,)),
    Walk(
        "deploy/operations.md",
        ("Upgrade",),
        (tiny_server,),
        {"digits.toml --out runs/server": "digits.toml --out runs/server --listen {address}"},
        {"fedlora server stop": server_at_work},
        (leaves("runs/server/rounds.jsonl", "runs/server.upgraded/rounds.jsonl"),),
    ),
    Walk("deploy/operations.md", ("A published adapter is bad",), (tiny_server,)),
    Walk(
        "deploy/serving.md",
        (),
        (assistant, tiny_server_at_work, inference_server),
        {"localhost:8000": "{other_address}", "HOST:8470": "{address}", "SITE.toml": "chalk.toml"},
        after=(leaves("assistant-v1/adapter_config.json"), asked_for_chat_and_adapters),
    ),
    Walk(
        "deploy/flower/README.md",
        (),
        (deploy_folder, superlink),
        {
            "127.0.0.1:8000": "{address}",
            "--host 127.0.0.1 --port 8000": "--host 127.0.0.1 --port {port}",
            "HOST:PORT": "{address}",
            "HOST": "fl.example.org",
            "/path/": "{folder}/",
        },
        {"flwr list": flower_run_has_ended},
        (leaves("folder/adapter/adapter_config.json"),),
    ),
    Walk(
        "deploy/runs/compare/README.md",
        (),
        (deploy_folder, rated_texts),
        {"--draws 8": f"--draws 1 --tuning-draws 1 {SHORT}"},
        after=(leaves("runs/compare/rated-texts/comparison.md"),),
    ),
)
