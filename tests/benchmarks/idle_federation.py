"""A server and sites that do nothing, as processes of their own, with mTLS over loopback."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from event_log import Event, events_in
from idle_app import LABELS
from started_processes import Started, beside

from fedlora.adapters import Adapter, LoraLayer, pack
from fedlora.common.config import RunConfig
from fedlora.common.run_file import to_toml
from fedlora.common.run_folder import IDENTITY_FOLDER
from fedlora.server.identity.authority import Authority

_WAIT_SECONDS = 600.0


@dataclass(frozen=True)
class Shape:
    """An adapter of `num_pairs` pairs A (rank, width), B (width, rank); it has two arrays a pair, in float32."""

    num_pairs: int
    rank: int
    width: int

    @property
    def size_bytes(self) -> int:
        """What its numbers take in float32; on the wire, in bfloat16, half of that."""
        return 4 * self.num_pairs * 2 * self.rank * self.width


# Of the rank that the default run has, as its server expects it of a first adapter.
TINY = Shape(4, 8, 32)
# As the default run's: q and v of 12 layers.
SMALL = Shape(24, 8, 384)


def shape_of(wire_megabytes: float) -> Shape:
    """Return the shape of 448 arrays that takes so much in bfloat16, to a percent: 7 projections of 32 layers."""
    num_pairs, rank = 224, 8
    return Shape(num_pairs, rank, max(1, round(wire_megabytes * 1e6 / (4 * num_pairs * rank))))


def write_adapter(path: Path, shape: Shape) -> None:
    """Write a packed adapter of random numbers that adds nothing yet."""
    generator = torch.Generator().manual_seed(0)
    layers = {
        f"layers.{number}.q_proj": LoraLayer(
            torch.randn(shape.rank, shape.width, generator=generator),
            torch.zeros(shape.width, shape.rank),
            2.0,
        )
        for number in range(shape.num_pairs)
    }
    config = {"peft_type": "LORA", "r": shape.rank, "lora_alpha": 2 * shape.rank, "target_modules": ["q_proj"]}
    path.write_bytes(pack(Adapter(layers, config=config)))


def idle_run(*, num_rounds: int, num_sites: int, method: str | None = None, has_secure_sums: bool = False) -> RunConfig:
    """Return the run: the default one but for its rounds and sites, and what is given."""
    changes: dict[str, Any] = {
        "run": {"name": "idle"},
        "model": {"name": "idle"},
        "data": {"labels": LABELS},
        "federation": {"rounds": num_rounds, "sites": num_sites},
        "privacy": {"secure_sums": has_secure_sums},
    }
    if method is not None:
        changes["aggregation"] = {"method": method}
    return RunConfig.model_validate(changes)


@dataclass
class IdleFederation:
    """The processes, and how to watch them; `out` is the server's folder."""

    folder: Path
    config: RunConfig
    server: Started
    port: int
    sites: dict[str, Started] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.folder / "server"

    def events(self, kind: str | None = None) -> list[Event]:
        """Return the server's events so far, or those of one kind."""
        return [event for event in events_in(self.folder / "events") if kind in (None, event["event"])]

    def wait_for(self, what: str, look: Callable[[], Any]) -> Any:
        """Return what `look` gives as soon as it is not None."""
        return self.server.wait_for(what, look, seconds=_WAIT_SECONDS)

    def wait_for_round(self, number: int) -> Event:
        """Return the event of that round's end."""
        found: Event = self.wait_for(
            f"the end of round {number}",
            lambda: next((event for event in self.events("RoundEnded") if event["round"] == number), None),
        )
        return found

    def wait_for_end(self) -> None:
        """Wait until server and sites have ended by themselves, and look whether every update was accepted."""
        for process in (self.server, *self.sites.values()):
            process.wait(_WAIT_SECONDS)
        for ended in self.events("RoundEnded"):
            if ended["refused"] or (ended["round"] > 0 and ended["num_updates"] != self.config.federation.sites):
                raise RuntimeError(f"not a whole round: {ended}")

    def round_seconds(self) -> dict[int, float]:
        """Return by round, from 1, the seconds from the end of the one before to its own end."""
        ends = {event["round"]: event["at"] for event in self.events("RoundEnded")}
        return {number: at - ends[number - 1] for number, at in ends.items() if number > 0}

    def token(self, name: str) -> str:
        """Return an invitation for a site, as `fedlora sites invite` makes it."""
        authority = Authority.open(self.out / IDENTITY_FOLDER, datetime.now(UTC))
        return authority.invite(name, (self.config.run.name,), timedelta(hours=1), datetime.now(UTC))


@contextmanager
def idle_server(
    folder: Path, config: RunConfig, *, script: str = "idle_server.py", arguments: tuple[object, ...] = (),
    notes_phases: bool = False,
) -> Iterator[IdleFederation]:  # fmt: skip
    """Yield a federation whose server listens, without sites; the processes end with the context."""
    folder.mkdir(parents=True)
    run, events = folder / "run.toml", folder / "events"
    run.write_text(to_toml(config))
    command = [*beside(script), run, folder / "server", events, *arguments]
    with Started(command, folder / "server.log", notes_phases=notes_phases) as server:

        def opened() -> int | None:
            return next((event["port"] for event in events_in(events) if event["event"] == "opened"), None)

        yield IdleFederation(folder, config, server, server.wait_for("the server's port", opened))


@contextmanager
def idle_sites(
    federation: IdleFederation, adapter: Path, *, address: str | None = None, num_held_out: int = 0,
    notes_phases: bool = False,
) -> Iterator[None]:  # fmt: skip
    """Start the run's sites over the first adapter in a file; `address` where they reach the server some other way."""
    with ExitStack() as stack:
        for number in range(federation.config.federation.sites):
            name = f"site-{number}"
            arguments = (address or f"127.0.0.1:{federation.port}", name, federation.token(name))
            state = federation.folder / f"{name}.site"
            command = [*beside("idle_site.py"), *arguments, state, adapter, num_held_out]
            site = Started(command, federation.folder / f"{name}.log", notes_phases=notes_phases)
            federation.sites[name] = stack.enter_context(site)
        yield
