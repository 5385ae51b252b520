"""The spans of a run over stub sites: what they are called, whose they are, and what they do not say."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed: fedlora[trace]")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from stub_runs import run_config, served
from stub_site import StubSite, honest

from fedlora.client.site.events import Began, Ended
from fedlora.client.site.site_traces import SiteTraces
from fedlora.common.tracing import context_of, traceparent_of
from fedlora.server.record.events import EvaluationStarted, RoundEnded, RoundStarted, UpdateArrived, ignore
from fedlora.server.record.round_report import RoundReport
from fedlora.server.record.running_summary import Summarised
from fedlora.server.run_traces import RunTraces

REPORT = RoundReport(1, ("a", "b"), {}, {"b": "norm"}, None, None, 0, 0, seconds={"training": 2.0})


class Traced:
    """A run's and a site's traces, and the spans that are over."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("test")
        self.run = RunTraces(self.tracer, run="digits")
        self.hear = Summarised([self.run.show])
        self.site = SiteTraces(self.tracer)

    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def one(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans() if span.name == name]
        return found


def parent_of(span: ReadableSpan) -> int:
    assert span.parent is not None, span.name
    return span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def test_a_round_holds_its_phases_these_their_requests_and_these_what_the_site_did() -> None:
    traced = Traced()
    traced.hear(RoundStarted(1, ("a", "b"), ()))
    traceparent = traced.run.asked("id-1", "a", "train")
    traced.site(Began("train", 1, traceparent))
    traced.site(Began("work"))
    traced.site(Ended("work", 1.0))
    traced.site(Ended("train", 1.0, "out_of_memory"))
    traced.run.answered("id-1", "out_of_memory")
    traced.hear(UpdateArrived(1, "a", "out_of_memory", 0.0))
    traced.hear(EvaluationStarted(1))
    traced.hear(RoundEnded(REPORT))
    round, train, request, work = (traced.one(name) for name in ("round", "aggregate", "request", "work"))
    server_train, site_train = sorted(
        (span for span in traced.spans() if span.name == "train"), key=lambda span: span.start_time or 0
    )
    assert round.parent is None
    for phase in (server_train, train, traced.one("evaluate")):
        assert parent_of(phase) == id_of(round)
    assert parent_of(request) == id_of(server_train)
    assert parent_of(site_train) == id_of(request)
    assert parent_of(work) == id_of(site_train)
    assert len({span.context.trace_id for span in traced.spans() if span.context}) == 1
    assert server_train.end_time == train.start_time, "averaging begins when the last update has come"
    assert [span.status.status_code for span in (request, site_train)] == [StatusCode.ERROR] * 2
    assert dict(request.attributes or {})["fedlora.code"] == "out_of_memory"
    assert dict(round.attributes or {})["fedlora.seconds.training"] == 2.0
    (event,) = server_train.events
    assert dict(event.attributes or {}) == {"fedlora.site": "a", "fedlora.reason": "out_of_memory"}


def test_no_words_of_a_peer_are_in_a_span() -> None:
    traced = Traced()
    traced.hear(RoundStarted(1, ("a",), ()))
    traced.run.asked("id-1", "a", "train")
    traced.run.answered("id-1", "/home/ward/file")
    traced.hear(UpdateArrived(1, "a", "/home/ward/file: label 3", 0.0))
    traced.site(Began("train", 1, "no traceparent"))
    traced.site(Ended("train", 1.0, "/home/ward/file"))
    traced.run.close()
    assert "ward" not in "".join(span.to_json() for span in traced.spans())
    assert next(span.parent for span in traced.spans() if span.name == "train") is None


def test_a_round_that_is_begun_again_or_stopped_ends_its_spans() -> None:
    traced = Traced()
    traced.hear(RoundStarted(1, ("a",), ()))
    traced.run.asked("id-1", "a", "train")
    traced.run.withdrawn("id-1")
    traced.hear(RoundStarted(1, ("a",), ()))
    traced.run.asked("id-2", "a", "train")
    traced.run.close()
    assert sorted(span.name for span in traced.spans()) == ["request", "request", "round", "train", "train"]


def test_a_run_that_is_traced_ends_in_the_same_adapter_and_its_requests_carry_their_trace(tmp_path: Path) -> None:
    traced = Traced()
    config = run_config(2)
    ended = {}
    for name, traces, listener in (("off", None, ignore), ("on", traced.run, traced.hear)):
        sites = [StubSite(site, tmp_path / name / site, honest) for site in ("a", "b")]
        events = served(config, tmp_path / name / "run", sites, listener=listener, traces=traces)
        ended[name] = [event.report.adapter_sha256 for event in events if isinstance(event, RoundEnded)]
        carried = {request.traceparent for site in sites for request in site.received}
        assert (carried == {""}) == (name == "off")
    assert ended["on"] == ended["off"]
    assert len(ended["on"]) == 2
    requests = [span for span in traced.spans() if span.name == "request"]
    assert carried == {traceparent_of(span) for span in requests}  # type: ignore[arg-type]
    rounds = {id_of(span): span for span in traced.spans() if span.name == "round"}
    phases = {id_of(span): span for span in traced.spans() if span.parent and span.parent.span_id in rounds}
    trains = [span for span in requests if dict(span.attributes or {})["fedlora.request"] == "train"]
    assert [phases[parent_of(span)].name for span in trains] == ["train", "train"]
    assert {dict(span.attributes or {})["fedlora.site"] for span in trains} == {"a", "b"}


@pytest.mark.parametrize("text", ["", "00-1-2-01", "00-" + "g" * 32 + "-" + "0" * 16 + "-01", "x" * 10_000])
def test_what_is_no_traceparent_is_no_parent(text: str) -> None:
    assert context_of(text) is None


def test_a_traceparent_is_read_as_it_was_written() -> None:
    span = Traced().tracer.start_span("x")
    context = context_of(traceparent_of(span))
    assert context is not None
    child = Traced().tracer.start_span("y", context)
    assert isinstance(child, ReadableSpan)
    assert parent_of(child) == span.get_span_context().span_id
