"""The run file: what is read, overridden, refused with its path, and written."""

import re
import tomllib
from pathlib import Path

import pytest

from fedlora.common.config import Dirichlet, Iid, ImageClassification, RunConfig, SequenceClassification
from fedlora.common.errors import ConfigError
from fedlora.common.run_file import differences, load_run, parse_run, to_toml
from fedlora.methods.fedit import FedIT

NAN, INFINITY = float("nan"), float("inf")


def refusal(table: dict[str, object], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_run(table, overrides)
    return str(caught.value)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# What is wrong, and the line that says so.
REFUSED: list[tuple[dict[str, object], str]] = [
    ({"trian": {}}, "trian: unknown section; did you mean [train]?"),
    ({"zzz": {}}, "zzz: unknown section; the sections are run, model, task, "),
    ({"train": {"lerning_rate": 1}}, "train.lerning_rate: unknown key; did you mean train.learning_rate?"),
    ({"train": {"rank": 4}}, "train.rank: unknown key; did you mean lora.rank?"),
    ({"train": {"zzz": 4}}, "train.zzz: unknown key; [train] has steps, epochs, batch_size"),
    ({"train": {"": 4}}, "train.: unknown key; [train] has"),
    ({"lora": {"rank": "8"}}, "lora.rank is '8': input should be a valid integer"),
    ({"lora": {"rank": 0}}, "lora.rank is 0: input should be greater than or equal to 1"),
    ({"lora": {"rank": True}}, "lora.rank is True: input should be a valid integer"),
    ({"train": {"learning_rate": NAN}}, "train.learning_rate is nan: input should be a finite number"),
    ({"train": {"learning_rate": INFINITY}}, "train.learning_rate is inf: input should be a finite number"),
    ({"train": {"learning_rate": 10**400}}, "train.learning_rate is 1000"),
    ({"federation": {"fraction": NAN}}, "federation.fraction is nan: "),
    ({"data": {"test": 1.0}}, "data.test is 1.0: input should be less than 1, or input should be a valid string"),
    ({"train": {"optimizer": "adam"}}, "train.optimizer is 'adam': input should be 'adamw' or 'sgd'"),
    ({"train": {"steps": 3, "epochs": 1}}, "train needs either steps or epochs, and not both"),
    ({"train": 5}, "train is 5; expected a section: [train] and its keys below"),
    ({"task": "x"}, "task is 'x'; expected a section: [task] and its keys below"),
    ({"run": [{"name": "x"}]}, "run is [{'name': 'x'}]; expected a section"),
    ({"partition": {"by": "dirichlett"}}, "partition.by is 'dirichlett'; expected one of 'group', 'iid', 'dirichlet'"),
    ({"partition": {"by": 5}}, "partition.by is '5'; expected one of"),
    ({"partition": {"alpha": 1.0}}, "partition.alpha does not go with partition.by = 'group'; remove one of them"),
    ({"partition": {"by": "iid", "num_client": 2}}, "partition.num_client: unknown key; did you mean partition.num_c"),
    ({"aggregation": {"method": "fedit", "ridge": 1}}, "aggregation.ridge does not go with aggregation.method = 'fed"),
    ({"aggregation": {"method": "median"}}, "aggregation.method is 'median'; expected one of 'fedex_lora', 'fedit', "),
    ({"task": {"kind": "sequence_classification"}}, "task.kind = sequence_classification needs a text encoder in mod"),
    (
        {"task": {"kind": "sequence_classification"}, "model": {"name": "bert"}},
        'partition.by = "group" needs data.group, the column that names each row\'s group',
    ),
    ({"run": {"name": "../x"}}, "run.name is '../x'; expected the name of a folder"),
]


@pytest.mark.parametrize(("table", "line"), REFUSED, ids=[line.partition(" is ")[0][:50] for _, line in REFUSED])
def test_what_is_wrong_is_named_by_its_path_in_one_line(table: dict[str, object], line: str) -> None:
    message = refusal(table)
    assert message.startswith(f"run: {line}")
    assert "\n" not in message


def test_every_finding_has_a_line_of_its_own() -> None:
    lines = refusal({"lora": {"rank": "x", "alfa": 2}, "trian": {}}).splitlines()
    assert lines == [
        "run: lora.rank is 'x': input should be a valid integer",
        "run: lora.alfa: unknown key; did you mean lora.alpha?",
        "run: trian: unknown section; did you mean [train]?",
    ]


def test_an_empty_file_is_the_default_run(tmp_path: Path) -> None:
    assert load_run(write(tmp_path / "run.toml", "")) == RunConfig()


def test_a_file_is_read_whatever_its_letters_and_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", '\ufeff[run]\nname = "größer"\n[data]\npath = "数据/集.npz"\n')
    config = load_run(path)
    assert (config.run.name, config.data.path) == ("größer", "数据/集.npz")


def test_a_missing_file_is_refused_with_how_to_write_one(tmp_path: Path) -> None:
    message = re.escape("run.toml: no such file; `fedlora simulate --print-config > run.toml` writes one")
    with pytest.raises(ConfigError, match=message):
        load_run(tmp_path / "run.toml")


def test_what_is_no_readable_toml_is_refused_with_its_path(tmp_path: Path) -> None:
    broken, binary = write(tmp_path / "broken.toml", "[run\n"), tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, message in [(broken, "not valid TOML: "), (binary, "cannot be read"), (tmp_path, "cannot be read")]:
        with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: {message}"):
            load_run(path)


def test_a_wrong_value_in_a_file_is_refused_with_the_files_path(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", "[train]\nlearning_rate = nan\n")
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: train\.learning_rate is nan"):
        load_run(path)


def test_overrides_are_toml_values_or_plain_text() -> None:
    config = parse_run(
        {"train": {"steps": 4}},
        [
            "train.steps=7",
            "train.learning_rate = 1e-4",
            "run.name=two words",
            'data.path="a=b.npz"',
            "lora.target_modules=['q', 'v']",
        ],
    )
    assert (config.train.steps, config.train.learning_rate) == (7, 1e-4)
    assert (config.run.name, config.data.path) == ("two words", "a=b.npz")
    assert config.lora.target_modules == ("q", "v")


@pytest.mark.parametrize("override", ["", "train", "train.steps", "steps=3", "train=3", "=3", "train.=3", ".steps=3"])
def test_an_override_of_another_form_is_refused_with_an_example(override: str) -> None:
    expected = f"--set {override}: expected section.key=value, such as train.learning_rate=0.001"
    assert refusal({}, override) == expected


def test_an_override_below_what_is_no_section_is_refused() -> None:
    assert refusal({"train": 5}, "train.steps=3") == "--set train.steps=3: train is not a section"


def test_an_override_with_a_wrong_key_or_value_is_refused_with_its_path() -> None:
    assert refusal({}, "train.stepps=3") == "run: train.stepps: unknown key; did you mean train.steps?"
    assert refusal({}, "train.learning_rate=nan").startswith("run: train.learning_rate is nan")
    assert refusal({}, "train.steps=").startswith("run: train.steps is ''")


@pytest.mark.parametrize("overrides", [("partition.by=iid", "partition.num_clients=3"),
                                       ("partition.num_clients=3", "partition.by=iid")])  # fmt: skip
def test_another_choice_starts_its_section_anew_in_any_order_of_the_overrides(overrides: tuple[str, ...]) -> None:
    table = {"partition": {"by": "dirichlet", "alpha": 0.1, "num_clients": 9}}
    assert parse_run(table, overrides).partition == Iid(num_clients=3)
    assert parse_run(table, ["partition.by=iid"]).partition == Iid()


def test_the_same_choice_again_keeps_its_section() -> None:
    table = {"partition": {"by": "dirichlet", "alpha": 0.1, "num_clients": 9}}
    expected = Dirichlet(alpha=0.1, num_clients=9)
    assert parse_run(table, ["partition.by=dirichlet"]).partition == expected


def test_every_choice_can_be_changed_by_an_override() -> None:
    assert parse_run({"aggregation": {"ridge": 0.5}}, ["aggregation.method=fedit"]).aggregation == FedIT()
    image = {"task": {"image_size": 32}}
    text = parse_run(image, ["task.kind=sequence_classification", "model.name=bert", "data.group=site"])
    assert text.task == SequenceClassification()
    assert parse_run(image).task == ImageClassification(image_size=32)


def test_steps_and_epochs_replace_each_other() -> None:
    for table, overrides, expected in [
        ({"train": {"epochs": 2}}, [], (None, 2.0)),
        ({"train": {"steps": 4}}, ["train.epochs=2"], (None, 2.0)),
        ({"train": {"epochs": 2}}, ["train.steps=4"], (4, None)),
        ({}, ["train.epochs=2", "train.steps=4"], (4, None)),
    ]:
        train = parse_run(table, overrides).train
        assert (train.steps, train.epochs) == expected


def test_the_callers_table_is_left_as_it_is() -> None:
    table: dict[str, object] = {"partition": {"by": "dirichlet", "alpha": 0.1}}
    parse_run(table, ["partition.by=iid", "train.steps=3"])
    assert table == {"partition": {"by": "dirichlet", "alpha": 0.1}}


def test_the_written_file_explains_every_key_and_comments_out_the_unset_ones() -> None:
    lines = to_toml(RunConfig()).splitlines()
    assert lines[0] == "[run]"
    for line in filter(None, lines):
        assert re.fullmatch(r"\[\w+\]|(# )?\w+ =.*\S +# \S.*|# \w+ = +# \S.*", line), line
    assert "# revision =                       # the commit or tag of a hub model" in lines
    assert 'optimizer = "adamw"                # adamw or sgd' in lines
    assert not any(
        "#" in line for line in to_toml(RunConfig(), comments=False).splitlines() if not line.startswith("#")
    )


def test_a_written_text_may_hold_any_character() -> None:
    modules = ("a\x7fb", 'quo"te', "back\\slash", "new\nline", "\U0001f600", "")
    config = parse_run({"lora": {"target_modules": list(modules)}, "data": {"path": "\t".join(modules)}})
    assert parse_run(tomllib.loads(to_toml(config))) == config


def test_an_unset_key_can_be_set_by_removing_its_comment_sign() -> None:
    text = to_toml(RunConfig()).replace("# revision =      ", 'revision = "v2" ')
    assert parse_run(tomllib.loads(text)).model.revision == "v2"


def test_differences_name_the_key_with_both_values() -> None:
    other = parse_run({}, ["lora.rank=4", "partition.by=iid"])
    assert differences(RunConfig(), RunConfig()) == {}
    assert differences(RunConfig(), other) == {
        "lora.rank": (8, 4),
        "partition.by": ("group", "iid"),
        "partition.num_clients": (None, 5),
    }
