"""A site's own data: the split that the client of this name has in a simulation, and what of them is no secret."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedlora.common.config import (
    DataSection,
    ImageClassification,
    ModelSection,
    RunConfig,
    RunSection,
    SequenceClassification,
)
from fedlora.common.errors import DataError
from fedlora.training.data import Examples, load_federated_data, load_own_data

WARDS = ("east", "north", "south")
TEXTS = "note,diagnosis,ward,patient\n"


def picture_run(path: Path, *, seed: int = 0, **data: object) -> RunConfig:
    return RunConfig(
        run=RunSection(seed=seed),
        task=ImageClassification(image_size=16),
        data=DataSection.model_validate({"path": str(path), **data}),
    )


def text_run(path: Path, *, seed: int = 0, **data: object) -> RunConfig:
    columns = {"path": str(path), "text": "note", "label": "diagnosis", "group": "ward"}
    return RunConfig(
        run=RunSection(seed=seed),
        model=ModelSection(name="some/encoder"),
        task=SequenceClassification(),
        data=DataSection.model_validate({**columns, **data}),
    )


def row(number: int) -> str:
    return f"note {number},{'xyz'[number % 3]},{WARDS[number % 7 % 3]},patient {number // 2}\n"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.csv"
    path.write_text(TEXTS + "".join(map(row, range(90))))
    return path


def same(one: Examples, other: Examples) -> bool:
    """Return whether two sets hold the same examples in the same order."""
    if isinstance(one.inputs, list) or isinstance(other.inputs, list):
        are_inputs_same = one.inputs == other.inputs
    else:
        are_inputs_same = np.array_equal(one.inputs, other.inputs)
    return are_inputs_same and np.array_equal(one.labels, other.labels) and one.groups.tolist() == other.groups.tolist()


def part_of(test: Examples, group: str) -> Examples:
    return test.take(np.flatnonzero(test.groups == group))


def splits_as_in_a_simulation(run: RunConfig, names: tuple[str, ...]) -> bool:
    simulated = load_federated_data(run)
    assert tuple(simulated.clients) == names
    for name, expected in simulated.clients.items():
        own = load_own_data(run, client=name, only_group=name)
        assert list(own.clients) == [name]
        assert own.labels == simulated.labels
        found = own.clients[name]
        assert len(found.training) > 0
        assert (len(found.validation) > 0) == (run.data.validation > 0)
        assert (len(own.test) > 0) == (run.data.test != 0)
        if not (
            same(found.training, expected.training)
            and same(found.validation, expected.validation)
            and same(own.test, part_of(simulated.test, name))
        ):
            return False
    return True


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(("test", "validation"), [(0.2, 0.1), (0.0, 0.3), (0.4, 0.0)])
def test_a_site_of_pictures_has_the_split_of_its_client_in_a_simulation(
    tiny_digits: Path, seed: int, test: float, validation: float
) -> None:
    run = picture_run(tiny_digits, seed=seed, test=test, validation=validation)
    assert splits_as_in_a_simulation(run, ("chalk", "pencil", "print"))


@pytest.mark.parametrize("seed", [0, 7])
def test_a_site_of_texts_has_the_split_of_its_client_in_a_simulation(notes: Path, seed: int) -> None:
    assert splits_as_in_a_simulation(text_run(notes, seed=seed, test=0.25, validation=0.2), WARDS)


def test_a_site_that_holds_its_own_rows_alone_has_the_same_split(notes: Path, tmp_path: Path) -> None:
    of_north = [row(number) for number in range(90) if ",north," in row(number)]
    (tmp_path / "north.csv").write_text(TEXTS + "".join(of_north))
    alone = load_own_data(text_run(tmp_path / "north.csv"), client="north")
    chosen = load_own_data(text_run(notes), client="north", only_group="north")
    assert same(alone.clients["north"].training, chosen.clients["north"].training)
    assert same(alone.clients["north"].validation, chosen.clients["north"].validation)
    assert same(alone.test, chosen.test)


def test_a_site_whose_pictures_lie_by_class_alone_has_the_split_of_the_domain_that_it_is(tmp_path: Path) -> None:
    """Its folder is the domain's of the simulation: class/*.png below it, and no name of the domain."""
    random = np.random.default_rng(0)
    for domain in ("north", "south"):
        for number in range(30):
            path = tmp_path / domain / ("sick", "well")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (16, 16), dtype=np.uint8)).save(path)
    simulated = load_federated_data(picture_run(tmp_path, test=0.3, validation=0.2))
    for domain in ("north", "south"):
        own = load_own_data(picture_run(tmp_path / domain, test=0.3, validation=0.2), client=domain)
        held, expected = own.clients[domain], simulated.clients[domain]
        assert same(held.training, expected.training)
        assert same(held.validation, expected.validation)
        assert same(own.test, part_of(simulated.test, domain))


def test_all_the_groups_of_a_source_are_the_sites_if_it_names_none(notes: Path) -> None:
    own = load_own_data(text_run(notes), client="hospital")
    held = own.clients["hospital"]
    assert len(held.training) + len(held.validation) + len(own.test) == 90
    assert set(held.training.groups.tolist()) == set(own.test.groups.tolist()) == set(WARDS)


def test_what_has_one_value_is_on_one_side_at_a_site_too(notes: Path) -> None:
    run = text_run(notes, split_by="patient", text="patient", test=0.3, validation=0.3)
    own = load_own_data(run, client="north", only_group="north")
    held = own.clients["north"]
    parts = [set(part.inputs) for part in (held.training, held.validation, own.test) if isinstance(part.inputs, list)]
    assert [bool(part) for part in parts] == [True, True, True]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


def test_a_test_set_of_the_servers_is_not_read(notes: Path) -> None:
    own = load_own_data(text_run(notes, test="/nowhere/test.csv"), client="north")
    assert len(own.test) == 0


def test_labels_are_the_runs_whatever_the_site_has(notes: Path) -> None:
    own = load_own_data(text_run(notes, labels=["w", "z", "y", "x"]), client="north")
    assert own.labels == ("w", "z", "y", "x")
    assert set(own.clients["north"].training.labels.tolist()) == {1, 2, 3}


def test_a_label_that_the_run_does_not_have_is_named(notes: Path) -> None:
    with pytest.raises(DataError, match=r"labels that are not in the run's vocabulary: 'z'; it has 'x', 'y'"):
        load_own_data(text_run(notes, labels=["x", "y"]), client="north")


def test_a_group_that_is_not_there_is_answered_with_those_that_are(notes: Path, tiny_digits: Path) -> None:
    message = r"no group 'west' \(data\.only_group\); the groups are east, north, south"
    with pytest.raises(DataError, match=message):
        load_own_data(text_run(notes), client="north", only_group="west")
    with pytest.raises(DataError, match="the groups are chalk, pencil, print"):
        load_own_data(picture_run(tiny_digits), client="chalk", only_group="")


def test_a_source_without_groups_says_so_if_one_is_asked_for(notes: Path) -> None:
    run = text_run(notes)
    ungrouped = run.model_copy(update={"data": run.data.model_copy(update={"group": None})})
    with pytest.raises(DataError, match=r"no group 'north' \(data\.only_group\); the groups are none"):
        load_own_data(ungrouped, client="north", only_group="north")


def test_the_fingerprint_tells_groups_apart_and_names_none(notes: Path) -> None:
    run = text_run(notes)
    found = {ward: load_own_data(run, client=ward, only_group=ward).fingerprint for ward in WARDS}
    whole = load_own_data(run, client="north").fingerprint
    assert len({whole, *found.values()}) == 4
    for ward, fingerprint in found.items():
        assert len(fingerprint) == 64
        assert set(fingerprint) <= set("0123456789abcdef")
        assert fingerprint != hashlib.sha256(ward.encode()).hexdigest()
    assert load_own_data(run, client="other", only_group="north").fingerprint == found["north"]
