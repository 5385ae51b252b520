"""What speaks against a run, by its run file alone, before a model is loaded, fetched or looked up. Pure.

A run file comes from the server. Each of its keys that could make a site read, fetch, run or tell something that its
owner has not named is looked at here; where the data lie, the device and the test set are the site's own anyway
(`for_site`).
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fedlora.client.site.site_file import SiteConfig
from fedlora.common.config import CausalLm, DataSection, ImageClassification, OwnTask, RunConfig, SequenceClassification
from fedlora.common.messages import SiteDescription
from fedlora.common.resources import PACKAGE_PREFIX

_FINGERPRINT = "sha256:"
# Times the number of examples: at 1 one of them may be told whole.
_MOST_DELTA = 0.1
_COLUMNS = ("text", "prompt", "completion", "image", "label", "group", "split_by")
_PATH_OF_A_MODULE = re.compile(r"[\w./-]+")


@dataclass(frozen=True)
class Objection:
    """Why a site takes no part: the code that the server is told, and a line for the site's own log."""

    code: str
    line: str


def objection_to(run: RunConfig, site: SiteConfig) -> Objection | None:
    """Return what speaks against a run, None if nothing does."""
    checks: Sequence[Callable[[RunConfig, SiteConfig], Objection | None]] = (
        _to_run, _to_privacy, _to_model, _to_task, _to_columns, _to_layers, _to_sizes
    )  # fmt: skip
    return next((found for check in checks if (found := check(run, site)) is not None), None)


def objection_to_what_was_loaded(run: RunConfig, site: SiteConfig, description: SiteDescription) -> Objection | None:
    """Return what speaks against a run once base model and data are there, None if nothing does."""
    limits, fingerprint = site.limits, description.base_model_fingerprint
    names = {run.model.name, f"{run.model.name}@{run.model.revision}", fingerprint}
    if limits.base_models and names.isdisjoint(limits.base_models):
        return _model_objection(f"base model {run.model.name} ({fingerprint}) is not in limits.base_models")
    num, train = description.num_examples, run.train
    batch = min(description.step_examples or train.batch_size, num)
    steps = train.steps or max(1, round((train.epochs or 0) * num / max(1, batch)))
    seen = min(num, batch * min(steps, limits.max_steps or steps))
    if seen < limits.least_examples:
        return Objection(
            "too_few_examples",
            f"a round would train on {seen} of this site's {num} examples, and what is learned from so few shows them; "
            f"expected at least limits.least_examples = {limits.least_examples}",
        )
    if run.privacy.unit == "example" and run.privacy.delta * num > _MOST_DELTA:
        return Objection(
            "too_little_privacy",
            f"the run has privacy.delta = {run.privacy.delta:g}; expected at most {_MOST_DELTA / num:.2g}, a tenth of "
            f"1 in this site's {num:,} examples: one of them might be told whole",
        )
    return None


def _to_run(run: RunConfig, site: SiteConfig) -> Objection | None:
    runs = site.limits.runs
    if not runs or any(fnmatchcase(run.run.name, pattern) for pattern in runs):
        return None
    return Objection(
        "run_not_allowed",
        f"the run is {run.run.name!r}, and limits.runs = {list(runs)}; to take part in it, name it there",
    )


def _to_privacy(run: RunConfig, site: SiteConfig) -> Objection | None:
    """A site may ask for more privacy than a run has to offer; a budget is kept to in its own worker."""
    line = next(_missing_privacy(run, site), "")
    return Objection("too_little_privacy", line) if line else None


def _missing_privacy(run: RunConfig, site: SiteConfig) -> Iterator[str]:
    limits, privacy, federation = site.limits, run.privacy, run.federation
    if limits.secure_sums and not privacy.secure_sums:
        yield (
            "the run has privacy.secure_sums = false, by which its server learns this site's own update; expected "
            "true, by limits.secure_sums"
        )
    num_asked = federation.cohort or max(1, int(federation.fraction * federation.sites + 0.5))
    if num_asked < limits.least_cohort:
        yield (
            f"a round may have {num_asked} sites (federation.cohort, or federation.fraction of federation.sites); "
            f"expected limits.least_cohort = {limits.least_cohort} or more"
        )
    for key in ("epsilon_per_run", "epsilon"):
        if getattr(limits, key) is not None and privacy.unit != "example":
            yield f'the run has privacy.unit = "{privacy.unit}"; expected "example", by limits.{key}'
    if limits.epsilon_per_run is not None and (privacy.epsilon or math.inf) > limits.epsilon_per_run:
        has = "no privacy.epsilon" if privacy.epsilon is None else f"privacy.epsilon = {privacy.epsilon:g}"
        yield f"the run has {has}; expected at most limits.epsilon_per_run = {limits.epsilon_per_run:g}"
    if privacy.unit == "example" and site.brings_trainer:
        yield 'the run has privacy.unit = "example", and the steps of a trainer of one\'s own have no noise'


def _to_model(run: RunConfig, site: SiteConfig) -> Objection | None:
    """A site loads its own copy, what its file names, or what lies in a package that it names."""
    name, limits = run.model.name, site.limits
    names = {name, f"{name}@{run.model.revision}"}
    is_here = site.model.path is not None or _package_of(name) in limits.packages
    is_told_by_weights = not limits.base_models or any(entry.startswith(_FINGERPRINT) for entry in limits.base_models)
    if not names.isdisjoint(limits.base_models) or (is_here and is_told_by_weights):
        return None
    return _model_objection(
        f"the run's base model is {name!r}, which this site does not load: it is not in limits.base_models = "
        f"{list(limits.base_models)}, nor in limits.packages = {list(limits.packages)}; to allow it, name it there, or "
        "a copy of your own in [model] path"
    )


def _model_objection(line: str) -> Objection:
    return Objection("base_model_not_allowed", line)


def _package_of(name: str) -> str | None:
    return name.removeprefix(PACKAGE_PREFIX).partition("/")[0] if name.startswith(PACKAGE_PREFIX) else None


def _to_task(run: RunConfig, site: SiteConfig) -> Objection | None:
    task, limits = run.task, site.limits
    if isinstance(task, OwnTask) and task.name not in limits.tasks:
        return Objection(
            "task_not_allowed",
            f"the run's task is {task.name!r}, which is code of its own; to allow it: limits.tasks = "
            f"{[*limits.tasks, task.name]}",
        )
    if isinstance(task, CausalLm) and task.chat_template is not None and "chat_template" not in limits.allow:
        return Objection(
            "chat_template_not_allowed",
            "the run brings a chat template of its own, a program that says what of a conversation is learned; to "
            'allow it: limits.allow = ["chat_template"]',
        )
    return None


def _to_columns(run: RunConfig, site: SiteConfig) -> Objection | None:
    if site.brings_trainer:
        return None  # No column is read by its name.
    known = {value for value in site.data.model_dump().values() if isinstance(value, str)} | {*site.limits.columns}
    named = {
        f"data.{key}": column
        for key in _COLUMNS
        if (column := getattr(run.data, key)) != DataSection.model_fields[key].default
        and getattr(site.data, key) is None
        and column not in known
    }
    if not named:
        return None
    keys = ", ".join(f"{key} = {column!r}" for key, column in named.items())
    return Objection(
        "column_not_allowed",
        f"the run names columns that this site's file does not: {keys}; to allow them: limits.columns = "
        f"{[*site.limits.columns, *dict.fromkeys(named.values())]}, or name this site's own under [data]",
    )


def _to_layers(run: RunConfig, site: SiteConfig) -> Objection | None:
    lora, limits = run.lora, site.limits
    if unknown := [name for name in lora.modules_to_save if name not in limits.modules_to_save]:
        return Objection(
            "module_not_allowed",
            f"the run trains {unknown[0]!r} whole (lora.modules_to_save); to allow it: limits.modules_to_save = "
            f"{[*limits.modules_to_save, *unknown]}",
        )
    if "expressions" in limits.allow:
        return None
    if found := [text for text in _patterns(run) if not _PATH_OF_A_MODULE.fullmatch(text)]:
        return Objection(
            "expression_not_allowed",
            f"the run chooses layers by the regular expression {found[0][:80]!r}, and one can be made that never ends; "
            'to allow it: limits.allow = ["expressions"]',
        )
    return None


def _patterns(run: RunConfig) -> Iterator[str]:
    """Yield what PEFT takes for a regular expression."""
    lora = run.lora
    for modules in (lora.target_modules, lora.exclude_modules):
        if isinstance(modules, str):
            yield modules
    yield from lora.rank_pattern
    yield from lora.alpha_pattern


def _to_sizes(run: RunConfig, site: SiteConfig) -> Objection | None:
    for key, asked, limit in _sizes(run):
        most = getattr(site.limits, limit)
        if asked > most:
            return Objection(
                "over_a_limit",
                f"the run asks for {key} = {asked:,}, more than this site allows (limits.{limit} = {most:,}); raise it "
                "to take part",
            )
    return None


def _sizes(run: RunConfig) -> Iterator[tuple[str, float, str]]:
    """Yield each key of the run that has a limit, with its value and the limit's name."""
    task, train = run.task, run.train
    yield "lora.rank", run.lora.rank, "max_rank"
    yield "lora.rank_pattern", max([0, *run.lora.rank_pattern.values()]), "max_rank"
    yield "train.epochs", train.epochs or 0, "max_epochs"
    yield "train.batch_size", train.batch_size, "max_batch_size"
    yield "evaluation.batch_size", run.evaluation_batch_size, "max_batch_size"
    yield "federation.rounds", run.federation.rounds, "max_rounds"
    if isinstance(task, CausalLm | SequenceClassification):
        yield "task.max_length", task.max_length, "max_length"
    if isinstance(task, ImageClassification):
        yield "task.image_size", task.image_size, "max_image_size"
    if run.evaluation.generate:
        yield "evaluation.max_new_tokens", run.evaluation.max_new_tokens, "max_length"
