"""Which runs a comparison is made of, and what each variant chooses."""

import math
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

from made_comparisons import run as made_run

from fedlora.common.codec import Codec
from fedlora.common.errors import ConfigError, StoreError
from fedlora.comparison.gathered import gathered, write
from fedlora.comparison.grid import Cell, Grid, final_cells, require_usable, tuning_cells
from fedlora.comparison.results import RunResult
from fedlora.comparison.work import begin, chosen, read, result, unfinished
from fedlora.simulation import preset

BASE = preset("digits")
RATE = "train.learning_rate"
GRID = Grid(
    ("fedit", "lora_fair"), {"lora.rank": ("4", "8")}, {RATE: ("1e-3", "4e-3")}, ("head_only",),
    num_draws=3, num_tuning_draws=2,
)  # fmt: skip


def test_a_run_is_a_variant_with_what_it_chose_at_a_draw() -> None:
    names = [variant.name for variant in GRID.variants()]
    assert names == [
        "fedit, lora.rank=4", "fedit, lora.rank=8", "lora_fair, lora.rank=4", "lora_fair, lora.rank=8", "head_only",
    ]  # fmt: skip
    assert len(list(tuning_cells(GRID))) == 2 * 2 * 5
    cells = list(final_cells(GRID, {name: {RATE: "4e-3"} for name in names}))
    assert len({cell.folder for cell in cells}) == len(cells) == 3 * 5
    config = cells[8].config(BASE)
    assert (cells[8].variant.name, cells[8].draw) == ("lora_fair, lora.rank=8", 1)
    assert (config.method_name, config.lora.rank, config.train.learning_rate) == ("lora_fair", 8, 4e-3)
    # All else of a draw is the same for all of them.
    seeds = {(cell.config(BASE).data_seed, cell.config(BASE).run.seed) for cell in cells if cell.draw == 1}
    assert seeds == {(BASE.data_seed + 1, BASE.run.seed + 1)}
    # What was run to choose is among the runs that are compared.
    assert {cell.folder for cell in cells if cell.draw < 2} < {cell.folder for cell in tuning_cells(GRID)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ("fedit", "lora_fare")}, "no method 'lora_fare'; there are "),
        ({"methods": ()}, "names none"),
        ({"methods": ("fedit", "fedit")}, "has fedit twice"),
        ({"references": ("oracle",)}, "no 'oracle'; there are centralised, local_only, head_only"),
        ({"over": {RATE: ("1e-3",)}}, f"{RATE} is both compared"),
        ({"tuned": {"run.seed": ("1", "2")}}, "run.seed is what the comparison sets"),
        ({"over": {"lora.rnak": ("4",)}}, "did you mean lora.rank"),
        ({"tuned": {RATE: ("fast",)}}, f"{RATE} is 'fast'"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_runs(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        require_usable(replace(GRID, **changes), BASE)
    require_usable(GRID, BASE)


def give(folder: Path, cell: Cell, validation: float, **changes: Any) -> None:
    """Have a run of a comparison be over, with this loss on the clients' validation in the end."""
    found = made_run(cell.variant.name, cell.draw, 0.5, course={"validation": (2.0, 1.5, validation)}, **changes)
    path = folder / f"{cell.folder}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(Codec(RunResult).dump(found))


def test_each_variant_takes_what_is_best_on_validation_whatever_the_test_set_says(tmp_path: Path) -> None:
    begin(tmp_path, BASE, GRID)
    losses: Mapping[tuple[str, str], tuple[float, float]] = {
        ("fedit, lora.rank=4", "1e-3"): (0.9, 0.5), ("fedit, lora.rank=4", "4e-3"): (0.6, 0.6),
        ("fedit, lora.rank=8", "1e-3"): (0.7, 0.7), ("fedit, lora.rank=8", "4e-3"): (0.6, math.nan),
        ("lora_fair, lora.rank=4", "1e-3"): (0.5, 0.5), ("lora_fair, lora.rank=4", "4e-3"): (0.5, 0.5),
    }  # fmt: skip
    cells = list(tuning_cells(GRID))
    for cell in cells:
        assert unfinished(tmp_path, GRID)[0] in cells, "nothing is compared before all have chosen"
        values = losses.get((cell.variant.name, cell.chosen[RATE]), (1.0, 1.0))
        # The test set prefers what validation does not.
        give(tmp_path, cell, values[cell.draw], fault="it broke" * (cell.variant.name == "head_only"))
    found = {name: values[RATE] for name, values in chosen(tmp_path, GRID).items()}
    assert found == {
        "fedit, lora.rank=4": "4e-3", "fedit, lora.rank=8": "1e-3", "lora_fair, lora.rank=4": "1e-3",
        "lora_fair, lora.rank=8": "1e-3", "head_only": "1e-3",
    }  # fmt: skip
    left = unfinished(tmp_path, GRID)
    assert [cell.draw for cell in left] == [2] * 5
    assert all(result(tmp_path, cell) is None for cell in left)


MORE = replace(
    GRID,
    methods=("lora_fair", "flora", "fedit"),
    references=("head_only", "centralised"),
    over={"lora.rank": ("16", "8", "4")},
    tuned={RATE: ("5e-4", "1e-3", "2e-3", "4e-3")},
    num_draws=5,
    num_tuning_draws=3,
)


def test_more_may_be_asked_for_and_what_there_is_has_its_place(tmp_path: Path) -> None:
    begin(tmp_path, BASE, GRID)
    before = [*tuning_cells(GRID), *final_cells(GRID, {})]
    begin(tmp_path, BASE, MORE)
    assert read(tmp_path) == (BASE, MORE)
    after = {cell.folder: cell.config(BASE) for cell in (*tuning_cells(MORE), *final_cells(MORE, {}))}
    for cell in before:
        assert after[cell.folder] == cell.config(BASE)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"methods": ("fedit",)}, r"with --methods fedit,lora_fair: lora_fair is not among those here"),
        ({"references": ()}, r"with --references head_only: head_only is not among those here"),
        ({"over": {}}, r"with --over lora\.rank, here of nothing"),
        (
            {"over": {"lora.rank": ("4", "8"), "lora.alpha": ("8",)}},
            r"with --over lora\.rank, here lora\.rank, lora\.alpha",
        ),
        ({"num_draws": 2}, "with --draws 3, here 2"),
        ({"num_tuning_draws": 1}, "with --tuning-draws 2, here 1"),
        ({"tuned": {RATE: ("4e-3",)}}, r"with --tune train\.learning_rate=\S+: \S+ is not among those here"),
    ],
)
def test_a_folder_is_of_one_comparison(tmp_path: Path, other: dict[str, Any], said: str) -> None:
    begin(tmp_path, BASE, GRID)
    with pytest.raises(StoreError, match=f"holds another comparison, {said}; ask for that too, or choose --out"):
        begin(tmp_path, BASE, replace(GRID, **other))
    assert read(tmp_path) == (BASE, GRID)


def test_a_folder_is_of_one_run_file_and_of_nothing_else(tmp_path: Path) -> None:
    begin(tmp_path, BASE, GRID)
    with pytest.raises(StoreError, match=r"another comparison: federation\.rounds is 10 there, 3 here"):
        begin(tmp_path, preset("digits", "federation.rounds=3"), GRID)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="something that is no comparison"):
        begin(tmp_path / "other", BASE, GRID)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "run.toml").write_text("mine")
    with pytest.raises(StoreError, match="something that is no comparison"):
        begin(tmp_path / "own", BASE, GRID)
    assert [path.read_text() for path in (tmp_path / "own").iterdir()] == ["mine"]
    with pytest.raises(StoreError, match=r"--out .*: cannot be read \(Not a directory\)"):
        begin(tmp_path / "own" / "run.toml", BASE, GRID)


def test_a_comparison_that_was_cut_off_when_it_began_begins(tmp_path: Path) -> None:
    begin(tmp_path, BASE, GRID)
    (tmp_path / "grid.json").rename(tmp_path / "grid.json.tmp")
    begin(tmp_path, BASE, MORE)
    assert read(tmp_path) == (BASE, MORE)


def test_commands_that_begin_and_end_at_once_do_not_meet(tmp_path: Path) -> None:
    def command(folder: Path) -> None:
        begin(folder, BASE, GRID)
        write(gathered(folder, command=""), folder)

    with ThreadPoolExecutor(8) as pool:
        for number in range(5):
            list(pool.map(command, [tmp_path / str(number)] * 8))
            assert not list((tmp_path / str(number)).glob("*.tmp"))
            assert read(tmp_path / str(number)) == (BASE, GRID)


def test_a_value_is_one_however_it_is_spelled_and_keeps_the_folders_spelling_and_order(tmp_path: Path) -> None:
    begin(tmp_path, BASE, replace(GRID, over={"lora.rank": ("4", "8"), "train.schedule": ("cosine",)}))
    before = {cell.folder for cell in (*tuning_cells(read(tmp_path)[1]), *final_cells(read(tmp_path)[1], {}))}
    again = replace(
        GRID,
        over={"train.schedule": ('"cosine"', "constant"), "lora.rank": ("8.0", "4")},
        tuned={RATE: ("0.004", "0.001", "0.01")},
    )
    begin(tmp_path, BASE, again)
    _, grid = read(tmp_path)
    assert grid.over == {"lora.rank": ("8", "4"), "train.schedule": ("cosine", "constant")}
    assert list(grid.over) == ["lora.rank", "train.schedule"]
    assert grid.tuned == {RATE: ("4e-3", "1e-3", "0.01")}
    assert before < {cell.folder for cell in (*tuning_cells(grid), *final_cells(grid, {}))}


def test_a_folder_has_a_name_of_its_own_however_many_settings_there_are(tmp_path: Path) -> None:
    over = {f"train.{'x' * 40}_{number}": ("1",) for number in range(6)}
    cells = [next(final_cells(Grid(("fedit",), {**over, "lora.rank": (rank,)}), {})) for rank in ("4", "8")]
    names = {Path(cell.folder).parent.name for cell in cells}
    assert len(names) == 2
    for name in names:
        assert len(name) < 255
        (tmp_path / name).mkdir()
