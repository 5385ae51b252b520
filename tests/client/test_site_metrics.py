"""A site's metrics after each of its events, and over a real worker at a site on the bench."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry
from site_bench import Bench, StartBench, adapter, train, wait_until

from fedlora.client.site.events import Began, Connected, Disconnected, Ended, Finished, Idle, Settled, StandingTold
from fedlora.client.site.gpus import Gpu, gpu_reader
from fedlora.client.site.site_metrics import SiteMetrics
from fedlora.v1 import session_pb2

GPU = Gpu(1, used_bytes=3 << 30, size_bytes=8 << 30, busy_share=0.5)


def shown(metrics: SiteMetrics) -> Callable[..., float | None]:
    registry = CollectorRegistry()
    registry.register(metrics)
    return lambda name, **labels: registry.get_sample_value(f"fedlora_{name}", labels)


def test_a_site_for_which_the_server_has_no_run_is_in_order_and_one_that_comes_counts_no_second_connection() -> None:
    metrics = SiteMetrics(certificate=None, gpus=list)
    value = shown(metrics)
    metrics(Idle())
    assert (value("site_state", state="no_run"), metrics.obstacle) == (1, "")
    metrics(Connected(5))
    assert (value("site_state", state="starting"), value("site_connections_total")) == (1, 1)
    for event in (StandingTold("withheld"), Disconnected(), Idle()):
        metrics(event)
    assert (metrics.obstacle, value("site_connections_total")) == ("", 2)


def test_the_round_is_that_of_the_run_at_present() -> None:
    metrics = SiteMetrics(certificate=None, gpus=list)
    value = shown(metrics)
    for event, found in (
        (Connected(50), 0), (Began("train", 50), 50), (Disconnected(), 50), (Connected(50, is_new=False), 50),
        (Connected(3), 0), (Began("train", 1), 1), (Began("work"), 1),
    ):  # fmt: skip
        metrics(event)
        assert value("site_round") == found


def test_a_site_whose_run_is_over_is_finished_and_not_away() -> None:
    metrics = SiteMetrics(certificate=None, gpus=list)
    for event in (Connected(5), StandingTold(""), Disconnected()):
        metrics(event)
    assert (metrics.obstacle, metrics.is_finished) == ("away", False)
    metrics(Finished())
    assert (metrics.obstacle, metrics.is_finished) == ("", True)
    assert shown(metrics)("site_state", state="finished") == 1


def test_a_site_is_away_starting_ready_at_work_and_not_ready_in_turn() -> None:
    metrics = SiteMetrics(certificate=None, gpus=list)
    value = shown(metrics)
    told = [
        (Connected(5), "starting"), (StandingTold(""), "ready"), (Began("train", 2), "at_work"),
        (Began("work"), "at_work"), (Ended("work", 1.0), "at_work"), (Ended("train", 2.0), "ready"),
        (StandingTold("paused"), "not_ready"), (Disconnected(), "away"), (Connected(5, is_new=False), "starting"),
    ]  # fmt: skip
    for event, state in told:
        metrics(event)
        assert value("site_state", state=state) == 1
        assert metrics.obstacle == ("" if state in ("ready", "at_work") else state.replace("_", " "))
    assert value("site_connections_total") == 2
    assert value("site_round") == 2
    assert value("site_phase_seconds_sum", phase="train") == 2


def test_what_the_server_says_of_updates_is_counted_by_its_code() -> None:
    metrics = SiteMetrics(certificate=None, gpus=lambda: [GPU])
    for refusal in ("", "norm", "made_up", ""):
        metrics(Settled(1, refusal))
    value = shown(metrics)
    assert value("site_updates_accepted_total") == 2
    assert value("site_updates_refused_total", reason="norm") == 1
    assert value("site_updates_refused_total", reason="other") == 1
    assert value("gpu_memory_used_bytes", gpu="1") == 3 << 30
    assert value("gpu_utilization_ratio", gpu="1") == 0.5


def test_gpus_can_be_asked_for_on_any_machine() -> None:
    assert all(0 <= gpu.busy_share <= 1 and gpu.used_bytes <= gpu.size_bytes for gpu in gpu_reader()())


def test_a_site_that_the_server_turns_away_is_not_ready(start_bench: StartBench) -> None:
    metrics = SiteMetrics(certificate=None, gpus=list)
    bench: Bench = start_bench(listener=metrics)
    bench.connect()
    metrics(Connected(5))
    bench.readiness()
    wait_until(lambda: metrics.obstacle == "")
    turned_away = session_pb2.TurnedAway(reason="other_base_model")
    bench.site.take(session_pb2.ConnectResponse(turned_away=turned_away))
    assert (metrics.obstacle, shown(metrics)("site_state", state="not_ready")) == ("not ready", 1)


def test_a_training_on_the_bench_is_told_phase_by_phase(start_bench: StartBench) -> None:
    metrics = SiteMetrics(certificate=None, gpus=list)
    bench: Bench = start_bench(listener=metrics)
    bench.connect()
    bench.readiness()
    bench.ask("1", train(1), adapter())
    bench.answer()
    bench.acknowledge("1", "norm")
    value = shown(metrics)
    wait_until(lambda: value("site_phase_seconds_count", phase="train") == 1)
    for phase in ("rehearse", "download", "work", "upload"):
        assert value("site_phase_seconds_count", phase=phase) == 1, phase
    assert value("site_rounds_trained_total") == 1
    assert value("site_steps_total") == 3
    assert value("site_updates_refused_total", reason="norm") == 1
    assert (value("site_adapter_bytes_total", direction="down") or 0) > 0
    assert (value("site_adapter_bytes_total", direction="up") or 0) > 0
