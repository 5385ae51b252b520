"""A federation of three sites, one of them hostile in all the ways there are in turn, ends as if it were not there.

Server and honest sites are the commands, with mutual TLS; the hostile one is enrolled as they are, and speaks through a
client of its own on the generated stubs. Its updates are all refused, and what the run ends in is compared with what
the two honest sites give alone, bit for bit.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import pytest
from attacks import ATTACKS, INVENTED
from deployment import Deployment
from hostile_site import Attack, HostileSite

from fedlora.adapters import load_adapter, pack
from fedlora.client.site.joining import credentials_of, enrol
from fedlora.common.files import client_file_name
from fedlora.common.messages import SiteDescription
from fedlora.common.run_file import load_run, to_toml
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.events import Event, SitesDescribed
from fedlora.server.record.round_report import ClientReport, RoundReport
from fedlora.simulation import simulate

HONEST = ("chalk", "pencil")
# It comes first by its name too, and is asked first where one is asked for all.
HOSTILE = "adversary"
SECONDS, SECONDS_OF_ONE = 300.0, 60.0
# The first aggregation alone takes a third of it.
MOST_GROWN_BYTES = 256 << 20
MOST_BYTES_A_ROUND = 20_000
# So long is one that is silent waited for, whatever was asked. Who else is late is asked again: a round needs both
# honest ones.
ROUND_SECONDS = 5
# It is away when some rounds begin: an attack has ended its connection.
SPARE_ROUNDS = 6
# A site has twelve examples to judge on, and is asked about no more.
MOST_HELD_OUT = 12

# A run has one first adapter: the others have runs of their own.
FIRST = "first_adapter_of_nan"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, tiny_digits: Path) -> Path:
    """Return the data of the honest sites, and of nobody else."""
    path = tmp_path_factory.mktemp("hostile") / "two.npz"
    with np.load(tiny_digits) as archive:
        np.savez_compressed(path, **{key: archive[key] for key in archive.files if key.startswith(HONEST)})
    return path


_RUN = """
[run]
name = "tiny"
[model]
name = "{model}"
[task]
image_size = 16
[data]
path = "{pictures}"
labels = ["0", "1", "2"]
[lora]
rank = 4
dropout = 0.1
[train]
steps = 1
batch_size = 8
learning_rate = 0.01
device = "cpu"
[federation]
rounds = {num_rounds}
sites = 3
quorum = 0.6
[evaluation]
round_examples = 12
client_examples = 4
[exchange]
precision = "float32"
"""


@dataclass(frozen=True)
class Alone:
    """What the honest sites give without anybody else: the run file of a federation, and what its simulation left."""

    run: Path
    model: Path
    pictures: Path
    reports: Sequence[RoundReport]
    folder: Path
    sites: Mapping[str, SiteDescription]

    @property
    def packed(self) -> bytes:
        return pack(load_adapter(self.folder / "adapter"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_vision_model: Path, pictures: Path) -> Callable[[int], Alone]:
    """Return a function that gives what the honest sites come to alone in so many rounds."""

    @cache
    def simulated(num_rounds: int) -> Alone:
        folder = tmp_path_factory.mktemp("alone")
        run = folder / "run.toml"
        run.write_text(_RUN.format(model=tiny_vision_model, pictures=pictures, num_rounds=num_rounds))
        sites: dict[str, SiteDescription] = {}

        def hear(event: Event) -> None:
            if isinstance(event, SitesDescribed):
                sites.update(event.sites)

        result = simulate(run, out=folder / "out", num_workers=2, listener=hear)
        return Alone(run, tiny_vision_model, pictures, result.reports, result.folder, sites)

    return simulated


class Federation:
    """The server, the honest sites and the hostile one, from their start to the run's end."""

    def __init__(self, folder: Path, alone: Alone, attacks: Sequence[Attack], *, seconds: float) -> None:
        run = folder / "run.toml"
        run.write_text(
            to_toml(
                load_run(
                    alone.run,
                    [f"federation.{what}={ROUND_SECONDS}" for what in ("deadline", "patience", "answer_seconds")],
                )
            )
        )
        self.deployment = Deployment(folder, run)
        self.out = self.deployment.out
        self._alone = alone
        self._attacks = attacks
        self._seconds = seconds
        self._hostile: HostileSite | None = None
        self._memory: list[int] = []

    def run(self) -> None:
        """Have all of them take part, until the server has ended."""
        deployment = self.deployment
        with deployment:
            deployment.server.start()
            deployment.server.wait_for("listening on")
            identity = enrol(
                deployment.address, deployment.invite(HOSTILE), name=HOSTILE, state=deployment.folder / "hostile.site"
            )
            self._hostile = HostileSite(
                deployment.address,
                credentials_of(identity),
                self._attacks,
                known=self._alone.packed,
                describe=self._described,
            )
            with self._hostile:
                assert self._hostile.welcomed.wait(60)
                for name in HONEST:
                    deployment.enrol(name, self._site_file(name))
                code = self._ended()
            assert code == 0, self.told()
            for name in HONEST:
                assert deployment.sites[name].wait(60) == 0, deployment.sites[name].text[-2000:]

    @property
    def untried(self) -> list[str]:
        """The attacks for which there was no occasion; a first adapter need not be asked for."""
        untried = () if self._hostile is None else self._hostile.untried
        return [attack.name for attack in untried if attack.kind != "initialise"]

    def told(self) -> str:
        """Return what came of each attack, and the end of what the server said."""
        outcomes = {} if self._hostile is None else dict(self._hostile.outcomes)
        came = [f"{name}: {'; '.join(found) or 'nothing'}" for name, found in outcomes.items()]
        return "\n".join([*came, f"untried: {self.untried}", self.deployment.server.text[-3000:]])

    @property
    def grown_bytes(self) -> int:
        """How much more memory the server took at most than as its first round began."""
        return max(self._memory) - self._memory[0]

    def _ended(self) -> int:
        """Return the server's exit code, and note meanwhile what memory it takes."""
        process, deadline = self.deployment.server.popen, time.monotonic() + self._seconds
        assert process is not None
        looked_at = psutil.Process(process.pid)
        while (code := process.poll()) is None:
            assert time.monotonic() < deadline, self.told()
            if self._memory or (self.out / "rounds.jsonl").exists():
                with suppress(psutil.Error):
                    self._memory.append(looked_at.memory_info().rss)
            time.sleep(0.02)
        return code

    def _described(self) -> SiteDescription:
        """Return what a site says that holds as much as the first honest one.

        Where there is more than the first adapter to attack, that is once the run has begun, in which it comes late.
        """
        if all(attack.kind == "initialise" for attack in self._attacks):
            like = self._alone.sites[HONEST[0]]
            own = {"num_held_out": MOST_HELD_OUT, "has_own_held_out": True}
            return replace(like, client=HOSTILE, data_fingerprint=HOSTILE, **own)  # type: ignore[arg-type]
        deadline = time.monotonic() + 120
        while (like_recorded := RunFolder(self.out).sites().get(HONEST[0])) is None:
            assert time.monotonic() < deadline, self.deployment.server.text
            time.sleep(0.05)
        return replace(like_recorded, client=HOSTILE, data_fingerprint=HOSTILE)

    def _site_file(self, name: str) -> Path:
        path = self.deployment.folder / f"{name}.toml"
        path.write_text(
            f'[site]\nname = "{name}"\n[data]\npath = "{self._alone.pictures}"\nonly_group = "{name}"\n'
            f'[limits]\nbase_models = ["{self._alone.model}"]\nleast_examples = 1\n'
        )
        return path


def assert_nothing_came_of_it(federation: Federation, alone: Alone) -> None:
    """Assert that the run is that of the honest sites alone, and that whoever looks is told no lies."""
    told, out = federation.told(), federation.out
    assert not federation.untried, told
    checkpoint = RunFolder(out).latest()
    assert checkpoint is not None, told
    assert len(checkpoint.reports) == len(alone.reports), told
    for report, expected in zip(checkpoint.reports, alone.reports, strict=True):
        assert {name: comparable(part) for name, part in report.clients.items()} == {
            name: comparable(part) for name, part in expected.clients.items()
        }, told
        assert report.adapter_sha256 == expected.adapter_sha256, f"round {report.round}: {told}"
    assert adapter_bytes(out) == adapter_bytes(alone.folder), told
    for report in checkpoint.reports:
        if (held_out := report.held_out) is not None:
            assert set(held_out.groups) <= {HOSTILE, *HONEST}, told
            assert max(score.num_examples for score in held_out.groups.values()) <= MOST_HELD_OUT, told
            assert math.isfinite(held_out.overall.loss), f"round {report.round}: {told}"
    # What it made up is nowhere that people or programs look, and of its updates only its own place has one.
    for name in ("rounds.jsonl", "report.html", "status.json", "manifest.json"):
        assert INVENTED not in (out / name).read_text(), name
    assert (out / "rounds.jsonl").stat().st_size < MOST_BYTES_A_ROUND * len(alone.reports), told
    for name in HONEST:
        assert not list((out / "quarantine").glob(f"{client_file_name(name)}*")), told
    for process in (federation.deployment.server, *federation.deployment.sites.values()):
        assert "Traceback" not in process.text, process.text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", process.text.replace("\r", "")), "an escape reached a terminal"
    assert federation.grown_bytes < MOST_GROWN_BYTES, f"{federation.grown_bytes:,} bytes more: {told}"


def comparable(part: ClientReport) -> ClientReport:
    """Return a client's part of a report without its times, its numbers that leave a site rounded, and the wire's."""
    return replace(part, seconds={}, loss=0.0, before=None, after=None, wire_sha256="")


def adapter_bytes(out: Path) -> bytes:
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_federation_with_a_hostile_site_ends_in_the_adapter_of_the_honest_ones(
    tmp_path: Path, alone: Callable[[int], Alone]
) -> None:
    attacks = [attack for attack in ATTACKS if attack.kind != "initialise" or attack.name == FIRST]
    expected = alone(sum(attack.kind == "train" for attack in attacks) + SPARE_ROUNDS)
    federation = Federation(tmp_path, expected, attacks, seconds=SECONDS)
    federation.run()
    print(federation.told())
    assert_nothing_came_of_it(federation, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack", [pytest.param(attack, id=attack.name) for attack in ATTACKS if attack.kind == "initialise"]
)
def test_an_attack_alone_is_withstood(tmp_path: Path, alone: Callable[[int], Alone], attack: Attack) -> None:
    expected = alone(2)
    federation = Federation(tmp_path, expected, [attack], seconds=SECONDS_OF_ONE)
    federation.run()
    assert_nothing_came_of_it(federation, expected)
