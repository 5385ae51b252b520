"""The protobuf of a deployment: what goes in comes out, what is a site's own stays there, and nonsense is refused."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.common.bounds import MAX_EXAMPLES, MAX_TOKENS, PHASES
from fedlora.common.errors import RunError
from fedlora.common.messages import (
    EvaluateReceipt,
    EvaluateRequest,
    Failure,
    InitialiseReceipt,
    InitialiseRequest,
    Score,
    SiteDescription,
    TrainReceipt,
    TrainRequest,
)
from fedlora.common.wire import (
    read_description,
    read_receipt,
    read_request,
    write_description,
    write_receipt,
    write_request,
)
from fedlora.v1 import messages_pb2 as pb
from fedlora.v1 import session_pb2

T = TypeVar("T")

many_messages = settings(derandomize=True, max_examples=60, deadline=None)

SECRET = "/mnt/ward-3/patients.csv"
SECRET_BYTES = (b"/mnt/", b"ward-3", b"patients", b"malignant", b"ward 3", b"secret/base", b"tensors")

runs = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
shown = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=40)
small = st.integers(0, 2**32 - 1)
counts = st.integers(1, 2**32 - 1)
large = st.integers(0, 2**64 - 1)
examples = st.integers(0, MAX_EXAMPLES)
numbers = st.floats(-1e30, 1e30) | st.sampled_from([math.nan, math.inf, -math.inf])
codes = st.from_regex(r"[a-z_]{1,40}", fullmatch=True)
scores = st.builds(Score, st.integers(1, MAX_EXAMPLES), numbers, numbers, st.integers(0, MAX_TOKENS))
factors = st.sampled_from([("A",), ("B",), ("A", "B")])

train_requests = st.builds(TrainRequest, runs, counts, small, large, counts, small, st.just(b""), factors)
evaluate_requests = st.tuples(st.integers(0, 2**31), counts).flatmap(
    lambda shard: st.builds(
        EvaluateRequest, runs, small, st.none() | large, st.just(shard[0]),
        st.just(min(shard[0] + shard[1], 2**32 - 1)), st.booleans(),
    )
)  # fmt: skip
train_receipts = st.builds(
    TrainReceipt, runs, small, small, words, shown, examples, examples, numbers, st.none() | scores, st.none() | scores,
    st.dictionaries(st.sampled_from(PHASES), st.floats(0, 1e9), max_size=5),
    withheld=st.sampled_from([(), ("loss",), ("scores",), ("loss", "scores")]),
)  # fmt: skip
evaluate_receipts = st.builds(
    EvaluateReceipt, runs, small, small, st.dictionaries(words, scores, max_size=4),
    st.dictionaries(large, large, max_size=6),
)  # fmt: skip
receipts = st.one_of(train_receipts, evaluate_receipts, st.just(InitialiseReceipt()), st.builds(Failure, codes))
descriptions = st.builds(
    SiteDescription, words, examples, examples, examples, shown, st.just(("x", "y")), st.just("secret/base"), shown,
    shown, shown, counts, st.just(True),
)  # fmt: skip


def over_the_wire(message: T, read_as: Callable[[], T]) -> T:
    """Return a protobuf as its receiver has it."""
    received = read_as()
    received.ParseFromString(message.SerializeToString())  # type: ignore[attr-defined]
    return received


def request_of(**content: Any) -> session_pb2.Request:
    return over_the_wire(session_pb2.Request(request_id="1", **content), session_pb2.Request)


def answer_of(**content: Any) -> session_pb2.Answer:
    return over_the_wire(session_pb2.Answer(request_id="1", **content), session_pb2.Answer)


def sent(receipt: Any) -> session_pb2.Answer:
    answer = session_pb2.Answer(request_id="1")
    write_receipt(receipt, answer)
    return over_the_wire(answer, session_pb2.Answer)


@given(request=st.one_of(train_requests, evaluate_requests, st.builds(InitialiseRequest, large)))
@many_messages
def test_a_request_comes_out_as_it_went_in(request: Any) -> None:
    message = session_pb2.Request(request_id="1")
    write_request(request, message)
    assert read_request(over_the_wire(message, session_pb2.Request)) == request


def test_no_number_of_examples_is_another_thing_than_zero() -> None:
    found = []
    for num_examples in (None, 0, 7):
        message = session_pb2.Request()
        write_request(EvaluateRequest("run", 1, num_examples, 0, 1, with_predictions=False), message)
        read = read_request(over_the_wire(message, session_pb2.Request))
        assert isinstance(read, EvaluateRequest)
        found.append(read.num_examples)
    assert found == [None, 0, 7]


@given(receipt=receipts)
@many_messages
def test_a_receipt_comes_out_as_it_went_in(receipt: Any) -> None:
    # By their text, in which nan is nan; maps have no order on the wire.
    assert in_order(read_receipt(sent(receipt))) == in_order(receipt)


def in_order(receipt: Any) -> str:
    maps = [name for name in ("seconds", "groups", "predictions") if hasattr(receipt, name)]
    return repr(replace(receipt, **{name: dict(sorted(getattr(receipt, name).items())) for name in maps}))


def test_a_loss_that_is_no_number_and_scores_that_are_withheld_come_out_so() -> None:
    found = read_receipt(sent(TrainReceipt("run", 1, 0, "north", "ok", withheld=("loss", "scores"))))
    assert isinstance(found, TrainReceipt)
    assert math.isnan(found.loss)
    assert (found.before, found.after, found.withheld) == (None, None, ("loss", "scores"))


@given(description=descriptions)
@many_messages
def test_a_description_comes_out_as_it_went_in_with_what_the_server_knows(description: SiteDescription) -> None:
    message = over_the_wire(write_description(description), pb.SiteDescription)
    found = read_description(message, site=description.client, labels=("x", "y"), base_model="secret/base")
    # Who knows all examples but one would know that one by the data's fingerprint.
    assert found == replace(description, data_fingerprint="")


def test_the_words_of_a_description_are_cut_to_a_line() -> None:
    long = "x" * 10_000
    message = pb.SiteDescription(
        metric_name=long, base_model_fingerprint=long, data_fingerprint=long, version=long, lora_rank=1
    )
    found = read_description(message, site="north", labels=(), base_model="base")
    assert (len(found.metric_name), len(found.version)) == (40, 40)
    assert (len(found.base_model_fingerprint), len(found.data_fingerprint)) == (100, 100)


def test_nothing_of_a_failures_text_leaves_a_site() -> None:
    raw = sent(Failure("data", f"{SECRET}: no label 'malignant'")).SerializeToString()
    assert b"data" in raw
    assert [secret for secret in SECRET_BYTES if secret in raw] == []


def test_neither_labels_nor_names_of_models_or_files_leave_a_site() -> None:
    description = SiteDescription(
        "ward 3", 10, 1, 2, "accuracy", ("benign", "malignant"), "secret/base", "f" * 64, "d" * 64, "0.1.0", 8, True
    )
    readiness = session_pb2.Readiness(description=write_description(description))
    raw = session_pb2.ConnectRequest(readiness=readiness).SerializeToString()
    assert b"accuracy" in raw
    assert [secret for secret in (*SECRET_BYTES, b"benign") if secret in raw] == []


@pytest.mark.parametrize(
    "receipt",
    [TrainReceipt("run", 1, 0, "north", "ok", 5, 1, 0.5, adapter=b"tensors"), InitialiseReceipt(b"tensors")],
)
def test_an_adapter_is_never_inside_an_answer(receipt: Any) -> None:
    assert b"tensors" not in sent(receipt).SerializeToString()


@pytest.mark.parametrize("code", ["", "A", "two words", "../etc", "x" * 41, "größe", "data\n", SECRET])
def test_a_failures_code_is_a_short_word(code: str) -> None:
    with pytest.raises(RunError, match="a failure whose code is none"):
        read_receipt(answer_of(failure=pb.Failure(code=code)))


def test_a_score_over_no_examples_is_none() -> None:
    empty = pb.Score(num_examples=0, loss=1.0, metric=1.0)
    train = pb.TrainReceipt(run="run", round=1, client="north", status="ok")
    for content in (
        {"train": pb.TrainReceipt(**{"before": empty})},
        {"train": pb.TrainReceipt(**{"after": empty})},
        {"evaluate": pb.EvaluateReceipt(run="run", round=1, groups={"north": empty})},
    ):
        with pytest.raises(RunError, match="a score over no examples"):
            read_receipt(answer_of(**content))
    assert isinstance(read_receipt(answer_of(train=train)), TrainReceipt)


def test_a_map_has_its_most_entries() -> None:
    many = pb.EvaluateReceipt(predictions=dict.fromkeys(range(100_001), 0))
    with pytest.raises(RunError, match="100,001 entries in one field; expected at most 100,000"):
        read_receipt(answer_of(evaluate=many))
    fingerprints = pb.SiteDescription(lora_rank=1, fingerprints={str(number): "sha256:0" for number in range(101)})
    with pytest.raises(RunError, match="101 entries in one field; expected at most 100"):
        read_description(fingerprints, site="north", labels=(), base_model="base")


def train_with(**fields: Any) -> TrainReceipt:
    """Return what is read of a receipt in which a peer says this of itself."""
    read = read_receipt(answer_of(train=pb.TrainReceipt(run="run", round=1, client="north", status="ok", **fields)))
    assert isinstance(read, TrainReceipt)
    return read


def test_seconds_of_invented_phases_and_times_that_are_none_are_left_out() -> None:
    invented = {f"phase {number}": 1.0 for number in range(1_000)}
    nonsense = {"forward": -1.0, "backward": math.nan, "optimizer": math.inf, "validation": 1e10}
    assert train_with(seconds=invented | nonsense | {"training": 2.5}).seconds == {"training": 2.5}


def test_of_what_is_withheld_known_names_alone_are_read() -> None:
    assert train_with(withheld=["everything", "scores", "scores", "loss"]).withheld == ("loss", "scores")


def test_a_number_beyond_all_bounds_is_infinite_and_breaks_no_sum() -> None:
    receipt = train_with(loss=-3e38, before=pb.Score(num_examples=1, loss=1e300, metric=-1e31))
    assert receipt.before is not None
    assert (receipt.loss, receipt.before.loss, receipt.before.metric) == (-math.inf, math.inf, -math.inf)


MORE, MOST = MAX_EXAMPLES + 1, 2**64 - 1


@pytest.mark.parametrize(
    "content",
    [
        {"num_examples": MORE}, {"num_examples": -1}, {"num_steps": 2**32 - 1}, {"micro_batch_size": 2**32 - 1},
        {"num_tokens": MAX_TOKENS + 1}, {"before": pb.Score(num_examples=MOST, loss=1.0, metric=1.0)},
        {"after": pb.Score(num_examples=1, loss=1.0, metric=1.0, num_tokens=MOST)},
    ],
)  # fmt: skip
def test_a_count_that_no_site_can_have_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="; expected 0 to 1"):
        train_with(**content)


@pytest.mark.parametrize("field", ["num_examples", "num_validation", "num_held_out"])
def test_a_site_that_holds_more_than_anybody_is_refused(field: str) -> None:
    message = pb.SiteDescription(**{"lora_rank": 1, field: MORE})
    with pytest.raises(RunError, match=f"{field} is 1000000001; expected 0 to 1,000,000,000"):
        read_description(message, site="north", labels=(), base_model="base")


def test_a_share_of_answers_is_between_nothing_and_all() -> None:
    for share in (-0.1, 1.1, math.nan, math.inf):
        generated = {"north": pb.Generated(num_examples=1, exact_match=share, rouge_l=0.5)}
        with pytest.raises(RunError, match=r"exact_match is .*; expected 0 to 1"):
            read_receipt(answer_of(evaluate=pb.EvaluateReceipt(run="run", round=1, generated=generated)))


def test_a_name_that_is_no_name_is_refused() -> None:
    for content in (pb.TrainReceipt(client="x" * 2001), pb.TrainReceipt(run="x" * 2001)):
        with pytest.raises(RunError, match="should have at most 2000 characters"):
            read_receipt(answer_of(train=content))


def described(**changes: Any) -> SiteDescription:
    found = SiteDescription("north", 3, 1, 2, "accuracy", (), "base", "f", "d", "0.1.0", 8, has_own_held_out=True)
    return replace(found, **changes)


def test_what_is_left_out_comes_over_the_wire_by_number_and_what_is_said_of_the_data_does_not() -> None:
    fates = {"training": {"too_long": 4, "cut": 1}, "test": {"no_answer": 2}}
    message = over_the_wire(
        write_description(described(fates=fates, notes=("'ward' is left aside",))), pb.SiteDescription
    )
    assert b"ward" not in message.SerializeToString()
    found = read_description(message, site="north", labels=(), base_model="base")
    assert (found.fates, found.notes) == (fates, ())


MANY_CODES = [first + second for first in "abcdefghijk" for second in "abcdefghij"]


@pytest.mark.parametrize("fates", [{"secret": ["cut"]}, {"test": ["a b"]}, {"test": [""]}, {"test": MANY_CODES}])
def test_a_fate_that_is_none_is_refused(fates: dict[str, list[str]]) -> None:
    by_part = {part: pb.FatesOfPart(num_examples=dict.fromkeys(codes, 1)) for part, codes in fates.items()}
    message = pb.SiteDescription(lora_rank=1, fates=by_part)
    with pytest.raises(RunError, match=r"fates? of examples"):
        read_description(message, site="north", labels=(), base_model="base")


def test_a_fate_of_more_examples_than_anybody_has_is_refused() -> None:
    message = pb.SiteDescription(lora_rank=1, fates={"test": pb.FatesOfPart(num_examples={"cut": 2**64 - 1})})
    with pytest.raises(RunError, match="a fate of 18446744073709551615 examples; expected at most 1,000,000,000"):
        read_description(message, site="north", labels=(), base_model="base")


def test_a_rank_of_nothing_is_refused() -> None:
    with pytest.raises(RunError, match="north trains rank 0; expected 1 or more"):
        read_description(pb.SiteDescription(num_examples=1), site="north", labels=(), base_model="base")


@pytest.mark.parametrize("trains", [[], ["C"], ["A", "C"], ["a"]])
def test_only_the_two_factors_can_be_trained(trains: list[str]) -> None:
    with pytest.raises(RunError, match="expected A, B or both"):
        read_request(request_of(train=pb.TrainRequest(run="run", round=1, num_rounds=1, trains=trains)))


@pytest.mark.parametrize("run", ["", ".", "..", "../..", "/", "a/b", "a\\b", "a\0", "x" * 65, "run\n"])
def test_a_run_that_would_name_another_folder_at_a_site_is_refused(run: str) -> None:
    train = pb.TrainRequest(run=run, round=1, num_rounds=1, trains=["A", "B"])
    evaluate = pb.EvaluateRequest(run=run, round=1, num_shards=1)
    for request in (request_of(train=train), request_of(evaluate=evaluate)):
        with pytest.raises(RunError, match="the server names the run"):
            read_request(request)


def test_rounds_and_shards_that_there_cannot_be_are_refused() -> None:
    for round, num_rounds in [(0, 1), (1, 0)]:
        train = pb.TrainRequest(run="run", round=round, num_rounds=num_rounds, trains=["A", "B"])
        with pytest.raises(RunError, match=f"round {round} of {num_rounds}; expected 1 or more"):
            read_request(request_of(train=train))
    for shard, num_shards in [(0, 0), (2, 2)]:
        evaluate = pb.EvaluateRequest(run="run", round=1, shard=shard, num_shards=num_shards)
        with pytest.raises(RunError, match=f"shard {shard} of {num_shards}; expected one of them"):
            read_request(request_of(evaluate=evaluate))


def test_what_this_version_does_not_know_is_refused() -> None:
    with pytest.raises(RunError, match="does not know; update fedlora here"):
        read_request(request_of())
    with pytest.raises(RunError, match="an answer that this version does not know"):
        read_receipt(answer_of())
