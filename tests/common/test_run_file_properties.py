"""Any run is written and read back as it was, and any table is either a run or refused."""

import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.aggregation import METHODS, LoraFair, LoraFairCosine, LoraFairTwoSided
from fedlora.common import config as sections
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.common.run_file import differences, parse_run, to_toml
from fedlora.common.spelling import spelled

few = settings(derandomize=True, database=None, deadline=None, max_examples=60)

counts = st.integers(1, 10**6)
positives = st.floats(0, exclude_min=True, allow_infinity=False)
non_negatives = st.floats(0, allow_infinity=False)
fractions = st.floats(0, 1, exclude_max=True)
shares = st.floats(0, 1, exclude_min=True)
texts = st.text(min_size=1)
optional_texts = st.none() | texts
run_names = st.text("abc XYZ-_.é大", min_size=1, max_size=60).filter(lambda name: not name.startswith("."))

run_sections = st.builds(sections.RunSection, name=run_names, seed=st.integers(0, 2**70))
# Of a layer's path. What is more of an expression, the server cannot match.
endings = st.from_regex(r"[a-z0-9_]{1,8}(\.[a-z0-9_]{1,8}){0,2}", fullmatch=True)
lora_sections = st.builds(
    sections.LoraSection,
    rank=counts,
    alpha=positives,
    dropout=fractions,
    target_modules=st.just("auto") | st.lists(st.text(), min_size=1).map(tuple),
    use_rslora=st.booleans(),
    rank_pattern=st.dictionaries(endings, counts, max_size=3),
    alpha_pattern=st.dictionaries(endings, positives, max_size=3),
    # Of two names that are one in Unicode's composed form, without blanks around, only one is given.
    client_ranks=st.lists(st.text(), unique_by=spelled, max_size=3).map(lambda names: dict.fromkeys(names, 1)),
)
train_sections = st.builds(
    sections.TrainSection,
    batch_size=counts,
    optimizer=st.sampled_from(["adamw", "sgd"]),
    learning_rate=positives,
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=fractions,
    max_grad_norm=non_negatives,
) | st.builds(sections.TrainSection, steps=st.none(), epochs=positives)
federation_sections = st.builds(
    sections.FederationSection,
    rounds=counts,
    fraction=shares,
    weighting=st.sampled_from(["examples", "uniform"]),
    start_from=optional_texts,
)
partitions = st.one_of(
    st.builds(sections.ByGroup),
    st.builds(sections.Iid, num_clients=counts),
    st.builds(sections.Dirichlet, num_clients=counts, alpha=positives),
    st.builds(sections.LabelShards, num_clients=counts, shards_per_client=counts),
)
methods = st.one_of(
    st.builds(LoraFair, ridge=non_negatives, corrects=st.sampled_from(["A", "B"])),
    st.builds(LoraFairCosine, penalty=non_negatives, repairs_scale=st.booleans()),
    st.builds(LoraFairTwoSided, ridge=non_negatives, sweeps=counts),
    st.sampled_from([METHODS[name]() for name in ("fedit", "ffa_lora", "rolora", "flora", "flex_lora")]),
)
robust_sections = st.builds(sections.RobustSection, regauge=st.booleans(), clip=st.none() | positives)
tests = fractions | texts


@st.composite
def runs(draw: st.DrawFn) -> RunConfig:
    is_text = draw(st.booleans())
    task = sections.SequenceClassification(max_length=7) if is_text else sections.ImageClassification(image_size=9)
    return RunConfig(
        run=draw(run_sections),
        model=sections.ModelSection(name=draw(texts), revision=draw(optional_texts)),
        task=task,
        data=sections.DataSection(
            path=draw(texts),
            test=draw(tests),
            validation=draw(fractions),
            group=draw(texts if is_text else optional_texts),
            split_by=draw(optional_texts),
        ),
        partition=draw(partitions),
        lora=draw(lora_sections),
        train=draw(train_sections),
        federation=draw(federation_sections),
        aggregation=draw(methods),
        robust=draw(robust_sections),
    )


@few
@given(runs(), st.booleans())
def test_a_written_run_is_read_back_as_it_was(config: RunConfig, comments: bool) -> None:
    assert parse_run(tomllib.loads(to_toml(config, comments=comments))) == config


@few
@given(runs(), runs())
def test_runs_differ_where_their_differences_say(one: RunConfig, other: RunConfig) -> None:
    assert differences(one, one) == {}
    assert bool(differences(one, other)) == (one != other)


names = st.sampled_from([*RunConfig.model_fields, "trian", "x", ""])
keys = st.sampled_from(["name", "kind", "by", "method", "steps", "epochs", "rank", "test", "target_modules", "", "x"])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))
tables = st.dictionaries(names, values | st.dictionaries(keys, values, max_size=4), max_size=4)


def refusal(table: dict[str, Any], overrides: list[str]) -> str:
    """Return why the table is no run, or nothing if it is one."""
    try:
        parse_run(table, overrides)
    except ConfigError as error:
        return str(error)
    return ""


@settings(few, max_examples=150)
@given(tables)
def test_any_table_is_a_run_or_refused_with_a_line_for_each_finding(table: dict[str, Any]) -> None:
    assert all(line.startswith("run: ") for line in refusal(table, []).splitlines())


@few
@given(tables, st.lists(st.text("train.stepby=\"'[]{}#\n \\3é", max_size=20), max_size=3))
def test_any_override_is_taken_or_refused(table: dict[str, Any], overrides: list[str]) -> None:
    message = refusal(table, overrides)
    assert not message or message.startswith(("run: ", "--set "))
