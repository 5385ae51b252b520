"""Runs over a real port whose first sites give what no run can start from, other base models, or no answer at all."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

sys.path.append(str(Path(__file__).parent))

from open_port import Conversation, OpenPort, named, open_port, wait_until
from peers import CONFIG, first_adapter
from stub_runs import PortRun, run_config
from stub_site import Behaviour, StubSite, honest, silent_at, starting_from

from fedlora.adapters.keys import to_state_dict
from fedlora.adapters.packed import metadata_of
from fedlora.common.channels import open_channel

TENSORS = to_state_dict(first_adapter())
A, B = sorted(TENSORS)


def given(config: object = CONFIG, **changes: "torch.Tensor | None") -> bytes:
    """Return the honest first adapter with another configuration, or other tensors by factor; None leaves one out."""
    tensors = TENSORS | {{"A": A, "B": B}.get(name, name): tensor for name, tensor in changes.items()}
    kept = {f"whole.{name}": tensor.clone() for name, tensor in tensors.items() if tensor is not None}
    return save(kept, {"adapter_config": json.dumps(config), "precision": "float32", "reference": ""})


HOSTILE = {
    "a-nothing": (given(A=None, B=None), "no LoRA pair"),
    "a-no-file": (b"no file of tensors", "unreadable"),
    "b-unpaired": (given(B=None), "unreadable"),
    "c-list": (given([]), "unreadable"),
    "d-other-type": (given(CONFIG | {"peft_type": "LOHA"}), "configuration"),
    "e-nan": (given(A=TENSORS[A] * torch.nan), "not_finite"),
    "f-huge": (given(A=torch.full_like(TENSORS[A], 3e38)), "too_large"),
    "g-float64": (given(A=TENSORS[A].double()), "dtype"),
    "h-alpha": (given(CONFIG | {"lora_alpha": 1e30}), "configuration"),
    "i-expression": (given(CONFIG | {"alpha_pattern": {"(([a-z_.0-9])+)+X": 4}}), "configuration"),
    "j-rank": (given(A=torch.ones(3, 6), B=torch.zeros(4, 3)), "shape"),
    "k-trained": (given(B=torch.ones_like(TENSORS[B])), "not_a_start"),
    "l-other-layer": (given(**{"base_model.model.block.k_proj.lora_A.weight": TENSORS[A],
                               "base_model.model.block.k_proj.lora_B.weight": TENSORS[B]}), "unreadable"),
    "m-head": (given(head=torch.ones(3)), "unreadable"),
    "n-base-change": (given(**{"base_change.block.q_proj.dense": torch.ones(4, 6)}), "unexpected_layer"),
}  # fmt: skip
FOREIGN = given(
    CONFIG | {"base_model_name_or_path": "their/model", "auto_mapping": {"x": "y"}, "revision": "theirs", "extra": "z"}
)


def started(folder: Path, port: OpenPort, *, model: "dict[str, object] | None" = None, **federation: object) -> PortRun:
    federation = {"sites": 2, "quorum": 0.1, "answer_seconds": 0.5, **federation}
    return PortRun(folder, port, run_config(2, model=model or {}, federation=federation))


def site(port: OpenPort, name: str, behave: Behaviour = honest, **says: object) -> StubSite:
    """Return a site that has connected."""
    folder = port.folder.parent / "sites" / name
    return StubSite(name, folder, behave, says).connect(port.address)


def leave(*sites: StubSite) -> None:
    for each in sites:
        each.__exit__()


@pytest.fixture
def port(tmp_path: Path) -> Iterator[OpenPort]:
    with open_port(tmp_path / "port") as port:
        yield port


def ready(port: OpenPort, *names: str) -> None:
    wait_until(lambda: all(port.states.get(name) == "ready" for name in names))


def test_no_site_can_start_a_run_from_what_the_run_file_does_not_say(port: OpenPort, tmp_path: Path) -> None:
    hostile = {name: site(port, name, starting_from(packed)) for name, (packed, _) in HOSTILE.items()}
    hostile["o-silent"] = site(port, "o-silent", silent_at("initialise"))
    hostile["p-other"] = site(port, "p-other", starting_from(given(A=TENSORS[A] + 1)))
    foreign = site(port, "q-foreign", starting_from(FOREIGN))
    friend = site(port, "r-honest")
    ready(port, *hostile, "q-foreign", "r-honest")
    run = started(tmp_path / "run", port)
    run.reports()

    settings = json.loads(metadata_of(run.first())["adapter_config"])
    assert settings["base_model_name_or_path"] == run.config.model.name
    assert not {"auto_mapping", "revision", "extra"} & settings.keys()
    assert run.first() == honest_start(tmp_path / "alone")
    for name, (_, code) in HOSTILE.items():
        assert hostile[name].turned_away == ["no_start"], name
        assert f"the first adapter that {name} made is refused: " in run.notes()
        assert code in next(line for line in run.notes().splitlines() if f"that {name} made" in line), name
    assert "o-silent did not answer in time" in run.notes()
    assert "q-foreign, r-honest made the same, and p-other another; theirs is taken" in run.notes()
    for name in ("o-silent", "p-other"):
        assert hostile[name].turned_away == []
    assert foreign.turned_away == friend.turned_away == []
    leave(*hostile.values(), foreign, friend)


def honest_start(folder: Path) -> bytes:
    """Return the first adapter of a run that only honest sites take part in."""
    with open_port(folder / "port") as other:
        peers = [site(other, name) for name in ("x", "y")]
        ready(other, "x", "y")
        run = started(folder / "run", other)
        run.reports()
        leave(*peers)
        return run.first()


def test_a_wrong_base_model_that_is_there_first_turns_nobody_away(port: OpenPort, tmp_path: Path) -> None:
    wrong = {"base_model_fingerprint": f"sha256:{'f' * 64}"}
    evil = site(port, "evil", **wrong)
    ready(port, "evil")
    run = started(tmp_path / "run", port)
    run.wait_for("1 of 2 sites are ready (evil)")
    north = site(port, "north")
    run.wait_for(
        "the 2 sites that are ready differ, and no more than half of them agree: evil has base model sha256:fff"
    )
    assert north.turned_away == evil.turned_away == []
    south = site(port, "south")
    assert [sorted(report.clients) for report in run.reports()] == [[], ["north", "south"]]
    assert evil.turned_away == ["other_base_model"]
    assert (north.turned_away, south.turned_away, evil.asked("train")) == ([], [], 0)
    assert "the run goes by most of them: north, south have base model sha256:0; evil has" in run.notes()
    leave(evil, north, south)

    # What was decided stands in the manifest: whoever is first when the run goes on has no say in it.
    (tmp_path / "run" / "rounds" / "0001" / "report.json").unlink()
    with open_port(tmp_path / "later") as later:
        evil = site(later, "evil", **wrong)
        ready(later, "evil")
        again = started(tmp_path / "run", later)
        others = [site(later, name) for name in ("north", "south")]
        assert sorted(again.reports()[-1].clients) == ["north", "south"]
        assert evil.turned_away == ["other_base_model"]
        leave(evil, *others)


def test_the_word_of_a_site_that_is_gone_does_not_count_and_a_pin_decides_at_once(tmp_path: Path) -> None:
    wrong = {"base_model_fingerprint": f"sha256:{'f' * 64}"}
    pinned = f"sha256:{'0' * 64}"
    with open_port(tmp_path / "port") as port:
        evil = site(port, "evil", **wrong)
        ready(port, "evil")
        run = started(tmp_path / "run", port)
        run.wait_for("(evil)")
        leave(evil)
        wait_until(lambda: port.states["evil"] == "away")
        peers = [site(port, name) for name in ("north", "south")]
        assert sorted(run.reports()[-1].clients) == ["north", "south"]
        leave(*peers)
    with open_port(tmp_path / "other port") as port:
        many = [site(port, f"evil-{number}", **wrong) for number in range(3)]
        ready(port, *(peer.name for peer in many))
        run = started(tmp_path / "pinned", port, model={"fingerprint": pinned})
        wait_until(lambda: all(peer.turned_away == ["other_base_model"] for peer in many))
        peers = [site(port, name, base_model_fingerprint=pinned) for name in ("north", "south")]
        assert sorted(run.reports()[-1].clients) == ["north", "south"]
        leave(*many, *peers)


def test_a_site_that_answers_nothing_holds_nothing(port: OpenPort, tmp_path: Path) -> None:
    mute = site(port, "a-mute", silent_at("initialise", "train", "evaluate"))
    deaf = site(port, "b-deaf", silent_at("evaluate"))
    others = [site(port, name) for name in ("north", "south")]
    ready(port, "a-mute", "b-deaf", "north", "south")
    run = started(tmp_path / "run", port, sites=4, deadline=1.0)
    reports = run.reports()
    assert sorted(reports[-1].clients) == ["b-deaf", "north", "south"]
    assert reports[-1].refused == {"a-mute": "late"}
    for report in reports:
        assert report.held_out is not None
        assert sorted(report.held_out.groups) == ["north", "south"]
        assert f"round {report.round}: the score is without a-mute (late), b-deaf (late)" in run.notes()
    assert mute.asked("initialise") == mute.asked("train") == 1
    assert mute.asked("evaluate") == 3  # Two rounds, and the validation after the last.
    leave(mute, deaf, *others)


def test_without_a_deadline_a_site_that_trains_for_ever_is_gone_on_without(
    port: OpenPort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora.server.rounds.ending._LEAST_SECONDS", 1.0)
    mute = site(port, "mute", silent_at("train"))
    others = [site(port, name) for name in ("north", "south")]
    ready(port, "mute", "north", "south")
    report = started(tmp_path / "run", port, sites=3).reports()[-1]
    assert (sorted(report.clients), report.refused) == (["north", "south"], {"mute": "late"})
    leave(mute, *others)


def test_a_site_that_comes_and_goes_without_being_ready_is_not_waited_for(port: OpenPort) -> None:
    for _ in range(2):
        with open_channel(port.address, None) as channel, Conversation(channel, named("flutter")) as conversation:
            conversation.hear("welcome")
            before = port.grid.seconds_away()["flutter"]
        wait_until(lambda: port.states["flutter"] == "away")
        assert port.grid.seconds_away()["flutter"] > before > 0
