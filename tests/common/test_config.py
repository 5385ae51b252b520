"""The run file's sections: complete, described, frozen and strict."""

import re
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from fedlora.common.config import LoraSection, RunConfig, RunSection, TrainSection
from fedlora.common.errors import ConfigError
from fedlora.common.run_file import parse_run, parse_toml, to_toml
from fedlora.methods import METHODS


def all_sections() -> list[type[BaseModel]]:
    sections = []
    for name, field in RunConfig.model_fields.items():
        sections += METHODS.values() if name == "aggregation" else get_args(field.annotation) or [field.annotation]
    return sections


def test_every_section_is_found_by_these_tests() -> None:
    names = {section.__name__ for section in all_sections()}
    assert {"RunSection", "Dirichlet", "LoraFair", "EvaluationSection"} <= names


@pytest.mark.parametrize("section", all_sections(), ids=lambda section: section.__name__)
def test_every_field_has_a_default_and_a_description_of_one_line(section: type[BaseModel]) -> None:
    for name, field in section.model_fields.items():
        assert not field.is_required(), f"{section.__name__}.{name} has no default"
        assert field.description, f"{section.__name__}.{name} has no description"
        assert "\n" not in field.description


@pytest.mark.parametrize("section", all_sections(), ids=lambda section: section.__name__)
def test_every_default_is_valid_and_cannot_be_changed(section: type[BaseModel]) -> None:
    made = section()
    for name in section.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(made, name, getattr(made, name))


@pytest.mark.parametrize("section", all_sections(), ids=lambda section: section.__name__)
def test_no_float_may_be_nan_or_infinite(section: type[BaseModel]) -> None:
    for name, field in section.model_fields.items():
        if "float" not in str(field.annotation):
            continue
        for value in (float("nan"), float("inf"), -float("inf")):
            with pytest.raises(ValidationError, match=re.escape(name)):
                section.model_validate({name: value})


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a\\b", "a\nb", "a\0b", "", "x" * 61])
def test_a_name_that_cannot_be_a_folders_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        RunSection(name=name)


def test_a_name_in_any_script_and_with_spaces_is_taken() -> None:
    assert RunSection(name="Studie 2: größer, 大").name == "Studie 2: größer, 大"


def test_a_number_is_no_string_and_a_string_no_number() -> None:
    for wrong in ({"steps": "8"}, {"steps": 8.0}, {"steps": True}, {"learning_rate": "1e-3"}, {"optimizer": 1}):
        with pytest.raises(ValidationError):
            TrainSection.model_validate(wrong)
    assert TrainSection.model_validate({"learning_rate": 1}).learning_rate == 1.0


def test_target_modules_are_an_expression_or_a_list_with_something_in_it() -> None:
    assert LoraSection.model_validate({"target_modules": ["q", "v"]}).target_modules == ("q", "v")
    assert LoraSection.model_validate({"target_modules": r".*\.q"}).target_modules == r".*\.q"
    for wrong in ([], "", "q(", [1], 5):
        with pytest.raises(ValidationError, match="target_modules"):
            LoraSection.model_validate({"target_modules": wrong})


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules"])
def test_an_expression_that_is_none_is_refused_in_one_line(key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_run({"lora": {key: "q_proj("}})
    assert str(refused.value).startswith(f"run: lora.{key} is 'q_proj(', which is no regular expression (missing )")
    assert "\n" not in str(refused.value)


def test_layers_to_leave_out_are_in_the_written_run() -> None:
    for given in (["q_proj", "fc1"], r".*vision_tower\..*"):
        config = parse_run({"lora": {"exclude_modules": given}})
        assert parse_toml(to_toml(config), origin="again") == config
    assert "exclude_modules = []" in to_toml(parse_run({}))


def test_steps_and_epochs_exclude_each_other() -> None:
    assert TrainSection(steps=None, epochs=0.5).epochs == 0.5
    for wrong in ({"steps": None}, {"steps": 3, "epochs": 1.0}):
        with pytest.raises(ValidationError, match="needs either steps or epochs, and not both"):
            TrainSection.model_validate(wrong)
