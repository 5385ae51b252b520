"""Secure sums over real sites: each of them leaves, or dies and comes back, at each step, and so does the server.

Sums of whole numbers are exact: whoever comes back, the run ends in the same bytes as the simulation. Where a site is
gone for good, what is expected is worked out in the open from the updates that the sites have kept.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
import torch
from deployment import Deployment, Process
from ended_runs import adapter_sha256
from small_run import write_run_file
from test_deployment import site_file
from test_kill_matrix import exit_code

from fedlora.adapters import Adapter, open_adapter, unpack
from fedlora.common import certificates
from fedlora.methods import default_method
from fedlora.secure_sums.adapter_sums import AdapterSums
from fedlora.simulation import simulate

SITES = ("chalk", "pencil", "print")
# A mean in fixed point is off by 2e-8 a client, and sums are added up in another order.
CLOSE = 3e-6

STEPS = ("seal 0", "mask 0", "consent 0", "reveal 0", "mask 1", "consent 1", "reveal 1")
IN_EVERY_RUN = {("pencil", "mask 1", "leaves"), ("server", "reveal 0", "returns")}
CELLS = [
    *(("pencil", step, "leaves") for step in ("train", *STEPS)),
    *(("pencil", step, "returns") for step in ("train", *STEPS)),
    *(("server", step, "returns") for step in (*STEPS, "aggregate", "write checkpoint")),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_vision_model: Path, tiny_digits: Path) -> Path:
    """Return a run file of one round over secure sums."""
    overrides = [
        "run.name=summed", "privacy.secure_sums=true", "federation.rounds=1", "federation.sites=3",
        'data.labels=["0","1","2"]', "federation.patience=600",
    ]  # fmt: skip
    return write_run_file(tmp_path_factory.mktemp("summed"), tiny_vision_model, tiny_digits, *overrides)


@pytest.fixture(scope="module")
def simulated(run: Path) -> str:
    """Return the sha256 of the adapter that the simulation ends in."""
    return adapter_sha256(simulate(run, out=run.parent / "simulated", num_workers=1).folder)


@pytest.mark.parametrize(
    ("who", "phase", "how"),
    [pytest.param(*cell, marks=() if cell in IN_EVERY_RUN else pytest.mark.slow, id="-".join(cell)) for cell in CELLS],
)
def test_whoever_dies_the_adapter_is_the_open_one(
    run: Path, tiny_digits: Path, tmp_path: Path, simulated: str, who: str, phase: str, how: str
) -> None:
    counts: Counter[tuple[str, str]] = Counter()

    def at_phase(process: Process, announced: str) -> None:
        counts[process.name, announced] += 1
        if (process.name, announced) == (who, phase) and counts[who, phase] == 1:
            process.kill()
            if how == "returns":
                process.start()

    text = run.read_text()
    if how == "leaves":
        text = text.replace("patience = 600.0", "patience = 3.0")
    (tmp_path / "run.toml").write_text(text)
    with Deployment(tmp_path, tmp_path / "run.toml") as deployment:
        deployment.server.at_phase = at_phase
        deployment.server.start()
        deployment.server.wait_for("listening on")
        for name in SITES:
            site = deployment.add_site(name, site_file(tmp_path, name, tiny_digits), token=deployment.invite(name))
            site.at_phase = at_phase
            site.start()
            site.wait_for("enrolled as")
            site.arguments = [part for part in site.arguments if not part.startswith("fl1-") and part != "--token"]
        assert exit_code(deployment.server) == 0, deployment.server.text
    assert counts[who, phase], f"{who} never came to {phase!r}: {dict(counts)}"
    report = json.loads((deployment.out / "rounds.jsonl").read_text().splitlines()[1])
    if how == "returns":
        assert set(report["clients"]) == set(SITES)
        assert adapter_sha256(deployment.out) == simulated
        return
    in_means, in_the_rest = who_was_there(phase)
    assert set(report["clients"]) == in_means
    assert distance(open_adapter(deployment.out / "adapter"), expected(tmp_path, in_means, in_the_rest)) < CLOSE
    said = " ".join(report["sums"])
    assert ("pencil left before sum 2" in said) == (in_means != in_the_rest), said


def who_was_there(phase: str) -> tuple[set[str], set[str]]:
    """Return who is in the means and who in the correction, where a site leaves at its step."""
    rest = set(SITES) - {"pencil"}
    if phase in ("train", "seal 0", "mask 0"):
        return rest, rest
    return set(SITES), rest if phase in ("consent 0", "reveal 0", "mask 1") else set(SITES)


def expected(folder: Path, in_means: Collection[str], in_the_rest: Collection[str]) -> Adapter:
    """Return the round's adapter in the open, from the updates that the sites keep."""
    kept = {path.parts[-3].rpartition("-")[0]: path.parent for path in folder.rglob("sums/*/*/*/update")}
    updates = {name: unpack((kept[name] / "update").read_bytes()) for name in in_means}
    sums = AdapterSums(default_method(), unpack((kept["chalk"] / "start").read_bytes()))
    for there in (in_means, in_the_rest):
        weights = dict.fromkeys(updates, 1 / 3)
        sums.take(sum((weights[name] * sums.term(updates[name]) for name in there), torch.zeros(())))
    return sums.result()


def distance(one: Adapter, other: Adapter) -> float:
    """Return the largest difference of two adapters."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    return max(float((first[key] - second[key]).abs().max()) for key in first)


def tensors(adapter: Adapter) -> Mapping[str, torch.Tensor]:
    pairs = {f"{path}.{factor}": getattr(layer, factor) for path, layer in adapter.layers.items() for factor in "AB"}
    return pairs | dict(adapter.dense)


def test_a_site_that_the_others_cannot_know_is_done_without(run: Path, tiny_digits: Path, tmp_path: Path) -> None:
    """Two of three say that its key is not what it was: the round is begun anew without it, and says so."""
    (tmp_path / "run.toml").write_text(run.read_text())
    with Deployment(tmp_path, tmp_path / "run.toml") as deployment:
        deployment.server.start()
        deployment.server.wait_for("listening on")
        for name in ("chalk", "print", "pencil"):
            deployment.enrol(name, site_file(tmp_path, name, tiny_digits))
            if name != "pencil":
                distrust("pencil", next(tmp_path.rglob(f"{name}*/identity-*.json")).parent)
        assert deployment.server.wait(300) == 0, deployment.server.text
    report = json.loads((deployment.out / "rounds.jsonl").read_text().splitlines()[1])
    assert set(report["clients"]) == {"chalk", "print"}
    assert "begun anew, for the 1. time" in " ".join(report["sums"])
    assert "the keys or shares of pencil are wrong" in deployment.server.text
    assert "pencil signs with another key than before" in deployment.sites["chalk"].text
    kept = distance(
        open_adapter(deployment.out / "adapter"), expected(tmp_path, {"chalk", "print"}, {"chalk", "print"})
    )
    assert kept < CLOSE


def distrust(name: str, folder: Path) -> None:
    """Have a site believe that it has met another under another key."""
    authority = json.loads(next(folder.glob("identity-*.json")).read_text())["ca_pem"].encode()
    peers = {certificates.fingerprint_of(authority).hex(): {name: "00" * 32}}
    (folder / "peers.json").write_text(json.dumps(peers))
