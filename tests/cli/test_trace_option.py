"""When traces are on, and where they go."""

import json
import sys
from pathlib import Path

import pytest

from fedlora.cli import trace_option
from fedlora.cli.serving import Watched, serve_runs
from fedlora.cli.trace_option import tracer_for
from fedlora.common.errors import ConfigError
from fedlora.server.door import Door

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture(autouse=True)
def nothing_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)


def test_nobody_is_traced_who_did_not_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with tracer_for("fedlora-server", None) as tracer:
        assert tracer is None
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    with tracer_for("fedlora-server", None) as tracer:
        assert tracer is None


def test_spans_go_to_a_file_a_line_each_under_the_name_of_the_process(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed: fedlora[trace]")
    path = tmp_path / "spans"
    for _ in range(2):
        with tracer_for("fedlora-server", path) as tracer:
            assert tracer is not None
            tracer.start_span("round").end()
    spans = [json.loads(line) for line in path.read_text().splitlines()]
    assert [span["name"] for span in spans] == ["round", "round"]
    assert spans[0]["resource"]["attributes"]["service.name"] == "fedlora-server"


def test_a_collector_that_a_variable_names_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(
        "opentelemetry.exporter.otlp.proto.http", reason="the exporter is not installed: fedlora[trace]"
    )
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    with tracer_for("fedlora-server", None) as tracer:
        assert tracer is not None


def test_a_missing_extra_and_a_file_that_cannot_be_written_are_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed: fedlora[trace]")
    nowhere = tmp_path / "none" / "spans"
    with (
        pytest.raises(ConfigError, match=r"--trace .*spans: cannot be written \(No such file"),
        tracer_for("x", nowhere),
    ):
        pass
    monkeypatch.setattr(trace_option, "find_spec", lambda _name: None)
    asked = tracer_for("x", tmp_path / "spans")
    with pytest.raises(ConfigError, match=r"--trace needs OpenTelemetry: pip install 'fedlora\[trace\]'"), asked:
        pass
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    with tracer_for("x", None) as tracer:
        assert tracer is None, "the variable may be meant for other programs"


def test_a_server_with_a_store_sends_its_spans_where_a_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed: fedlora[trace]")
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match="OTEL_ variables ask for traces: pip install"):
        serve_runs(tmp_path / "store", Door("127.0.0.1:0", is_insecure=True), Watched(None, (), None))
