"""The committed protobuf code is what its .proto files give, and nothing of ours unpickles."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GENERATED = ROOT / "protos" / "fedlora" / "v1"
ROOMS = ("protos", "common", "server", "client")

UNPICKLING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "pickletools"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if "_pb2" in path.name and path.is_file()}


def test_the_committed_protobuf_code_is_what_the_generator_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "protos" / "generate.py", tmp_path], check=True, timeout=300)
    committed, generated = contents(GENERATED), contents(tmp_path / "fedlora" / "v1")
    assert len(committed) >= 10
    assert sorted(generated) == sorted(committed)
    assert [name for name, content in generated.items() if content != committed[name]] == []


def unpicklings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Give the lines of a module that can unpickle, and what they do."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported = [(alias.name, alias.asname or alias.name.partition(".")[0]) for alias in node.names]
            names |= {local: full if local != full.partition(".")[0] else local for full, local in imported}
            yield from ((node.lineno, full) for full, _ in imported if full.partition(".")[0] in UNPICKLING)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            if node.module.partition(".")[0] in UNPICKLING:
                yield node.lineno, node.module
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        head, dot, rest = ast.unparse(node.func).partition(".")
        called = names.get(head, head) + dot + rest
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        allows = given.get("allow_pickle")
        if called in ("importlib.import_module", "__import__") and node.args:
            named = node.args[0]
            if isinstance(named, ast.Constant) and str(named.value).partition(".")[0] in UNPICKLING:
                yield node.lineno, str(named.value)
        if allows is not None and not (isinstance(allows, ast.Constant) and allows.value is False):
            yield node.lineno, f"{called} with allow_pickle"
        elif called in ("torch.load", "torch.serialization.load", "pandas.read_pickle"):
            yield node.lineno, called


@pytest.mark.parametrize("room", ROOMS)
def test_case_17_nothing_of_ours_unpickles(room: str) -> None:
    paths = sorted((ROOT / room).rglob("*.py"))
    assert paths
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in paths
        for line, what in unpicklings(ast.parse(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle", ["pickle"]),
        ("import json, cloudpickle as c", ["cloudpickle"]),
        ("from dill import loads", ["dill"]),
        ("def late():\n    import shelve", ["shelve"]),
        ("import importlib\nimportlib.import_module('marshal')", ["marshal"]),
        ("import torch\ntorch.load('x')", ["torch.load"]),
        ("from torch import load as read\nread('x')", ["torch.load"]),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", ["numpy.load with allow_pickle"]),
        ("import numpy as np\nnp.load('x', allow_pickle=trusted)", ["numpy.load with allow_pickle"]),
        ("import numpy as np\nnp.load('x', allow_pickle=False)\nnp.load('y')\nimport picklejar", []),
    ],
)
def test_what_unpickles_is_seen(source: str, expected: list[str]) -> None:
    assert [what for _, what in unpicklings(ast.parse(source))] == expected
