"""What two dataclasses have in common is taken over by name."""

from dataclasses import dataclass, fields

from fedlora.common.messages import Score, TrainReceipt
from fedlora.common.same_fields import same_fields
from fedlora.server.record.round_report import ClientReport


@dataclass(frozen=True)
class Measured:
    loss: float
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Told:
    name: str
    loss: float


def test_only_what_both_have_is_taken() -> None:
    assert same_fields(Measured(0.5, (1.0,)), Told) == {"loss": 0.5}


def test_a_client_in_the_report_is_its_receipt_with_what_the_server_adds() -> None:
    receipt = TrainReceipt(
        "run", 1, 0, "a", "ok", 10, 8, 0.5, Score(1, 0.5, 1.0), Score(1, 0.25, 1.0), {"training": 1.5},
        num_tokens=70, micro_batch_size=2,
    )  # fmt: skip
    report = ClientReport.of(receipt, seconds={"training": 1.5, "answered": 2.0}, age=1, is_unchanged=True)
    assert (report.age, report.is_unchanged, report.seconds) == (1, True, {"training": 1.5, "answered": 2.0})
    told = {field.name for field in fields(ClientReport)} - {"age", "is_unchanged", "is_zero", "seconds", "share"}
    assert {name: getattr(report, name) for name in told} == {name: getattr(receipt, name) for name in told}
