"""The dependency rules of the design, read from the source: who may import what, and which packages are whose."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedlora.methods import METHODS

ROOT = Path(__file__).parents[1]
ROOMS = ("protos", "common", "server", "client")


@dataclass(frozen=True)
class Rule:
    """Modules that may not import something: a name stands for the module or package and all below it."""

    why: str
    of: tuple[str, ...]
    may_not_import: tuple[str, ...]
    except_for: tuple[str, ...] = ()

    def forbids(self, module: str, imported: str) -> bool:
        return (
            is_below(module, self.of)
            and not is_below(module, self.except_for)
            and is_below(imported, self.may_not_import)
        )


@dataclass(frozen=True)
class Finding:
    line: int
    text: str


def is_below(name: str, parents: tuple[str, ...]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def packages_of(room: str) -> tuple[str, ...]:
    """Return the packages that a room contributes, such as `fedlora.adapters`; a module beside them counts as one."""
    entries = sorted((ROOT / room / "fedlora").glob("*"))
    found = (entry for entry in entries if entry.suffix == ".py" or (entry.is_dir() and any(entry.rglob("*.py"))))
    return tuple(f"fedlora.{entry.stem}" for entry in found)


EVERYTHING = ("fedlora",)
WITH_FLOWER = (
    "fedlora.common.flower_privates", "fedlora.common.records",
    "fedlora.flower", "fedlora.simulation",
    "fedlora.server.app", "fedlora.server.run_services", "fedlora.server.sites", "fedlora.server.superlink_app",
    "fedlora.server.whole_run",
    "fedlora.client.worker", "fedlora.client.site.tasks", "fedlora.client.supernode_app",
)  # fmt: skip
WITH_GRPC = (
    "fedlora.v1",
    "fedlora.common.channels",
    "fedlora.doctor.network",
    "fedlora.server.deployment", "fedlora.server.door", "fedlora.server.run_queue.serving", "fedlora.server.sites.grpc",
    "fedlora.client.registry_client", "fedlora.client.site.joining", "fedlora.client.site.line",
    "fedlora.client.site.participation", "fedlora.client.site.session", "fedlora.client.site.transfer",
)  # fmt: skip
WITH_PEFT = (
    "fedlora.models", "fedlora.finished",
    "fedlora.training.data_preview", "fedlora.training.flower_round", "fedlora.training.footprint",
    "fedlora.training.own_trainer", "fedlora.training.peft_bridge", "fedlora.training.tasks",
    "fedlora.training.trainer",
)  # fmt: skip
WITH_TRACES = (
    "fedlora.common.tracing", "fedlora.server.run_traces", "fedlora.client.site.site_traces",
    "fedlora.cli.trace_option",
)  # fmt: skip
WITH_PROMETHEUS = (
    "fedlora.common.metric_families", "fedlora.common.watch_port",
    "fedlora.server.run_metrics", "fedlora.server.run_queue.metrics", "fedlora.client.site.site_metrics",
    "fedlora.cli.metrics_option",
)  # fmt: skip
_NAME_OF_A_MODULE = re.compile(r"fedlora(\.[a-z_0-9]+)+(:\w+)?")
IMPURE = (
    "flwr", "grpc", "logging", "warnings", "pathlib", "os", "io", "shutil", "tempfile", "socket", "subprocess",
    "threading", "multiprocessing", "time", "datetime", "random",
    "fedlora.common.config", "fedlora.common.run_file", "fedlora.common.files", "fedlora.common.records",
)  # fmt: skip
IMPURE_CALLS = ("open", "print", "input")
PURE = (
    "fedlora.adapters.fit", "fedlora.aggregation", "fedlora.algebra", "fedlora.methods", "fedlora.planning.traffic",
    "fedlora.privacy.accounting", "fedlora.privacy.sampled_steps", "fedlora.secure_sums",
    "fedlora.comparison.evaluation", "fedlora.comparison.finding", "fedlora.comparison.markdown",
    "fedlora.comparison.statistics", "fedlora.comparison.tables", "fedlora.comparison.wording",
    "fedlora.server.record.best_round", "fedlora.server.record.draw", "fedlora.server.record.fair_shares",
    "fedlora.server.rounds.admission", "fedlora.server.rounds.believable", "fedlora.server.rounds.completion",
    "fedlora.server.rounds.draw", "fedlora.server.rounds.ending", "fedlora.server.rounds.starts",
    "fedlora.trackers.numbers",
    "fedlora.training.partitioning",
)  # fmt: skip
# A folder of a list knows those before it, and nothing of those behind it.
ORDERS = (
    (
        "fedlora.server.record", "fedlora.server.disk", "fedlora.server.identity", "fedlora.server.sites",
        "fedlora.server.rounds", "fedlora.server.app",
    ),
    ("fedlora.server.record", "fedlora.server.report", "fedlora.server.run_report", "fedlora.server.whole_run"),
    ("fedlora.server.record", "fedlora.trackers", "fedlora.server.whole_run"),
    ("fedlora.server", "fedlora.simulation", "fedlora.cli"),
    ("fedlora.aggregation", "fedlora.server", "fedlora.flower", "fedlora.cli"),
    ("fedlora.aggregation", "fedlora.planning", "fedlora.cli"),
    (
        "fedlora.comparison.results", "fedlora.comparison.statistics", "fedlora.comparison.evaluation",
        "fedlora.comparison.tables", "fedlora.comparison.page", "fedlora.cli",
    ),
    ("fedlora.doctor", "fedlora.cli"),
    ("fedlora.server", "fedlora.dashboard", "fedlora.cli"),
    (
        "fedlora.training.data", "fedlora.training.tasks", "fedlora.models", "fedlora.training.peft_bridge",
        "fedlora.training.trainer", "fedlora.finished",
    ),
    ("fedlora.models", "fedlora.finished", "fedlora.client.worker"),
    ("fedlora.training.trainer", "fedlora.training.own_trainer", "fedlora.client.worker.trainer_bench"),
    ("fedlora.client.worker", "fedlora.client.site", "fedlora.client.own_trainer"),
)  # fmt: skip
ENTRY_POINT_GROUPS = ("fedlora.methods", "fedlora.tasks", "fedlora.trackers", "fedlora.trackers.")
PUBLIC_NAMES = ("fedlora.training.trained",)

RULES = (
    Rule(
        "the protos know nobody",
        of=packages_of("protos"),
        may_not_import=packages_of("common") + packages_of("server") + packages_of("client"),
    ),
    Rule(
        "common knows neither server nor client",
        of=packages_of("common"),
        may_not_import=packages_of("server") + packages_of("client"),
    ),
    Rule(
        "the client does not know the server",
        of=packages_of("client"),
        may_not_import=packages_of("server"),
    ),
    Rule(
        "of the server room only the simulation and the command line, with its doctor, planning and comparison, "
        "know the client",
        of=packages_of("server"),
        except_for=("fedlora.simulation", "fedlora.cli", "fedlora.doctor", "fedlora.planning", "fedlora.comparison"),
        may_not_import=packages_of("client"),
    ),
    Rule(
        "Flower stays in the strategy and its conversations, the engines, the worker and the record converters",
        of=EVERYTHING,
        except_for=WITH_FLOWER,
        may_not_import=("flwr",),
    ),
    Rule(
        "what Flower keeps to itself stands in one file",
        of=EVERYTHING,
        except_for=("fedlora.common.flower_privates",),
        may_not_import=("flwr.supercore", "flwr.server", "flwr.common", "flwr.proto"),
    ),
    Rule(
        "peft and transformers stay where base models are loaded and bridged",
        of=EVERYTHING,
        except_for=WITH_PEFT,
        may_not_import=("peft", "transformers"),
    ),
    Rule(
        "Ray stays in its engine",
        of=EVERYTHING,
        except_for=("fedlora.simulation.ray_engine",),
        may_not_import=("ray",),
    ),
    Rule(
        "gRPC stays in the channels, the services and the site's connection",
        of=EVERYTHING,
        except_for=WITH_GRPC,
        may_not_import=("grpc", "grpc_tools", "grpc_health", "grpc_reflection"),
    ),
    Rule(
        "Prometheus stays in the metrics and their port",
        of=EVERYTHING,
        except_for=WITH_PROMETHEUS,
        may_not_import=("prometheus_client",),
    ),
    Rule(
        "OpenTelemetry stays in the traces",
        of=EVERYTHING,
        except_for=WITH_TRACES,
        may_not_import=("opentelemetry",),
    ),
    Rule(
        "only the command line talks to a terminal",
        of=EVERYTHING,
        except_for=("fedlora.cli",),
        may_not_import=("typer", "click", "rich"),
    ),
    Rule(
        "the web server stays in the dashboard",
        of=EVERYTHING,
        except_for=("fedlora.dashboard",),
        may_not_import=("starlette", "uvicorn"),
    ),
    Rule("a pure module takes values and returns values", of=PURE, may_not_import=IMPURE),
    Rule(
        "what a run leaves is made of what trains it, not the other way round",
        of=("fedlora.training", "fedlora.models"),
        except_for=PUBLIC_NAMES,
        may_not_import=("fedlora.finished", "fedlora.client"),
    ),
    *(
        Rule(f"{folder} comes before {order[place + 1]}", of=(folder,), may_not_import=order[place + 1 :])
        for order in ORDERS
        for place, folder in enumerate(order[:-1])
    ),
)


def findings(module: str, source: str) -> Iterator[Finding]:
    """Yield what in a module's source breaks a rule, by line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield Finding(node.lineno, f"imports {'.' * node.level}{node.module or ''}; imports are absolute")
        for imported in imports_in(node):
            for rule in RULES:
                if rule.forbids(module, imported):
                    yield Finding(node.lineno, f"imports {imported}; {rule.why}")
        if is_below(module, PURE) and isinstance(node, ast.Call) and ast.unparse(node.func) in IMPURE_CALLS:
            yield Finding(node.lineno, f"calls {ast.unparse(node.func)}; a pure module takes values and returns values")


def imports_in(node: ast.AST) -> list[str]:
    """Return what a statement imports, as `package.module` or `package.module.name`.

    A text that is a module's name counts as well: it is given to whatever imports it, here or in another process.
    """
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in ENTRY_POINT_GROUPS:
        return [node.value.replace(":", ".")] if _NAME_OF_A_MODULE.fullmatch(node.value) else []
    return []


def graph() -> dict[str, set[str]]:
    """Return by module the modules that it imports, anywhere and also for the type checker alone."""
    files = {module: path for room in ROOMS for path, module in sources(room)}
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        imported = [name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for name in imports_in(node)]
        known = {next((part for part in _and_parents(name) if part in files), "") for name in imported}
        found[module] = known - {"", module}
    return found


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return modules of which each imports the next and the last the first; none if there is no cycle."""
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str]:
        if module in way:
            return way[way.index(module) :]
        if module not in done:
            for imported in sorted(graph.get(module, ())):
                if found := walk(imported, [*way, module]):
                    return found
            done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := walk(module, []))), [])


def _and_parents(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def sources(room: str) -> Iterator[tuple[Path, str]]:
    """Yield the files of a room with their modules' names."""
    for path in sorted((ROOT / room).rglob("*.py")):
        parts = path.relative_to(ROOT / room).with_suffix("").parts
        yield path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("room", [room for room in ROOMS if (ROOT / room).is_dir()])
def test_no_module_of_a_room_imports_what_it_may_not(room: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{finding.line}: {module} {finding.text}"
        for path, module in sources(room)
        for finding in findings(module, path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(["", *found])


def test_no_module_imports_what_imports_it() -> None:
    assert cycle_in(graph()) == []


def test_a_cycle_is_found_and_shown() -> None:
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"d", "b"}, "d": set()}) == ["b", "c"]


def test_no_room_hides_the_others() -> None:
    hiding = [f"{room}/fedlora/__init__.py" for room in ROOMS if (ROOT / room / "fedlora" / "__init__.py").exists()]
    assert not hiding, f"{hiding} would hide the packages of the other rooms; fedlora is a namespace package"


def test_no_two_rooms_contribute_the_same_package() -> None:
    owners: dict[str, list[str]] = {}
    for room in ROOMS:
        for package in packages_of(room):
            owners.setdefault(package, []).append(room)
    shared = {package: rooms for package, rooms in owners.items() if len(rooms) > 1}
    assert not shared, f"packages in more than one room: {shared}"


def test_the_rooms_are_found() -> None:
    assert "fedlora.adapters" in packages_of("common")
    assert "fedlora.aggregation" in packages_of("server")
    assert "fedlora.training" in packages_of("client")
    modules = {module for room in ROOMS for _, module in sources(room)}
    named = {name for rule in RULES for name in (*rule.of, *rule.except_for)} | set(PURE)
    gone = {name for name in named - set(EVERYTHING) if not any(is_below(module, (name,)) for module in modules)}
    assert not gone, f"rules for modules that are no more: {sorted(gone)}"


@pytest.mark.parametrize(
    ("module", "source", "line", "text"),
    [
        (
            "fedlora.common.files",
            "import os\nimport fedlora.server.disk.store",
            2,
            "imports fedlora.server.disk.store; common",
        ),
        ("fedlora.common.files", "from fedlora import training", 1, "imports fedlora.training; common knows neither"),
        (
            "fedlora.adapters.adapter",
            "from fedlora.client.worker.app import x",
            1,
            "imports fedlora.client.worker.app.x; common",
        ),
        (
            "fedlora.client.worker.app",
            "from fedlora.aggregation import LoraFair",
            1,
            "the client does not know the server",
        ),
        (
            "fedlora.server.disk.store",
            "from fedlora.training.data import load",
            1,
            "only the simulation and the command line",
        ),
        ("fedlora.server.disk.store", "import flwr.app as f", 1, "imports flwr.app; Flower stays"),
        ("fedlora.training.trainer", "def f():\n    from flwr import app", 2, "imports flwr.app; Flower stays"),
        ("fedlora.training.flower_round", "from flwr.app import Message", 1, "imports flwr.app.Message; Flower stays"),
        ("fedlora.flower.strategy", "import fedlora.training.flower_round", 1, "only the simulation and the command"),
        ("fedlora.flower.replies", "import peft", 1, "imports peft; peft and transformers stay"),
        ("fedlora.adapters.peft_format", "import peft", 1, "imports peft; peft and transformers stay"),
        (
            "fedlora.client.worker.workbench",
            "import torch, transformers.utils",
            1,
            "imports transformers.utils; peft and",
        ),
        ("fedlora.simulation.simulate", "import ray", 1, "imports ray; Ray stays in its engine"),
        ("fedlora.server.app", "import grpc", 1, "imports grpc; gRPC stays"),
        (
            "fedlora.server.disk.store",
            "from rich.console import Console",
            1,
            "only the command line talks to a terminal",
        ),
        ("fedlora.methods.fedit", "import logging", 1, "imports logging; a pure module"),
        (
            "fedlora.server.disk.store",
            "from fedlora.server.rounds.draw import x",
            1,
            "disk comes before fedlora.server",
        ),
        ("fedlora.server.record.events", "if 1:\n    import fedlora.server.sites", 2, "record comes before"),
        ("fedlora.client.worker.seat", "run('fedlora.client.site.session')", 1, "worker comes before"),
        ("fedlora.training.schedule", "check = 'fedlora.finished.peft_check:main'", 1, "imports fedlora.finished.peft"),
        ("fedlora.server.rounds.draw", "from pathlib import Path", 1, "imports pathlib.Path; a pure module"),
        ("fedlora.server.rounds.admission", "from fedlora.common.config import RunConfig", 1, "a pure module"),
        ("fedlora.training.partitioning", "import numpy\nopen('x')", 2, "calls open; a pure module"),
        ("fedlora.server.disk.store", "from . import rounds", 1, "imports .; imports are absolute"),
        (
            "fedlora.server.disk.store",
            "if 1:\n    from ..common.files import x",
            2,
            "imports ..common.files; imports are",
        ),
    ],
)
def test_what_breaks_a_rule_is_named_with_its_line(module: str, source: str, line: int, text: str) -> None:
    (finding,) = findings(module, source)
    assert finding.line == line
    assert text in finding.text


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fedlora.cli.simulate", "from fedlora.training.data import load"),
        ("fedlora.planning.plan", "from fedlora.training.footprint.step import step_cost"),
        (
            "fedlora.simulation.inprocess",
            "from fedlora.client.worker.resident import serve\nfrom flwr.app import Message",
        ),
        ("fedlora.training.peft_bridge", "import peft\nfrom fedlora.common.errors import ModelError"),
        ("fedlora.flower.strategy", "import logging\nfrom flwr.serverapp.strategy import FedAvg"),
        ("fedlora.training.flower_round", "from peft import PeftModel"),
        ("fedlora.server.rounds.ending", "from fedlora.common.messages import Score\nimport math"),
        ("fedlora.server.disk.store", "from flwrites import x\nimport pathlib, logging\nopen('x')"),
        ("fedlora.client.worker.app", "from fedlora.common.messages import Failure"),
    ],
)
def test_what_keeps_the_rules_is_not_named(module: str, source: str) -> None:
    assert list(findings(module, source)) == []


def test_a_methods_name_stands_in_its_own_file_alone() -> None:
    """Settings, capabilities and words about a method live on its class; that of a run that names none is one line."""
    names = [path.stem for path in (ROOT / "common/fedlora/methods").glob("*.py") if path.stem in METHODS]
    assert len(names) == 9
    found = []
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            is_public = path == ROOT / "server/fedlora/aggregation/__init__.py"
            text = path.read_text().replace('DEFAULT = "lora_fair"', "")
            if path.stem in names or is_public:
                continue
            found += [f"{path.relative_to(ROOT)}: {name}" for name in names if re.search(rf"\b{name}\b", text)]
    assert found == []
