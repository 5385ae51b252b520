"""What an operator sees of a server and its sites from outside: metrics, health, readiness, traces."""

import json
import re
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from deployment import Deployment, Process
from monitoring_files import METRIC, README, queries, rules
from small_run import write_run_file
from test_deployment import SITES, site_file
from watched_deployment import Watched, address_of, families, page, sampled, traced, value, watched_deployment

from fedlora.server.run_queue.metrics import StoreMetrics
from fedlora.server.run_queue.store import RunStore


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, tiny_vision_model: Path, tiny_digits: Path) -> Iterator[Watched]:
    with watched_deployment(tmp_path_factory.mktemp("watched"), tiny_vision_model, tiny_digits) as found:
        yield found


def test_a_server_shows_its_rounds_sites_bytes_errors_and_certificates(watched: Watched) -> None:
    scrape = watched.server
    num_rounds = value(scrape, "fedlora_rounds_total")
    assert num_rounds >= 3
    assert value(scrape, "fedlora_run_rounds") == 500
    assert value(scrape, "fedlora_updates_accepted_total") == 2 * num_rounds
    assert value(scrape, "fedlora_updates_refused_total", reason="norm") == 0
    assert value(scrape, "fedlora_adapter_bytes_total", direction="up") > 0
    assert value(scrape, "fedlora_adapter_bytes_total", direction="down") > 0
    assert value(scrape, "fedlora_phase_seconds_count", phase="training") == num_rounds
    assert value(scrape, "fedlora_phase_seconds_sum", phase="training") > 0
    assert (
        value(scrape, "fedlora_aggregation_error", stage="before")
        >= value(scrape, "fedlora_aggregation_error", stage="after")
        > 0
    )
    assert 0 <= value(scrape, "fedlora_metric") <= 1
    assert value(scrape, "fedlora_loss", of="training") > 0
    states = ("away", "starting", "ready", "at_work", "not_ready")
    assert sum(value(scrape, "fedlora_sites", state=state) for state in states) == 2
    assert value(scrape, "fedlora_disk_free_bytes") > 0
    began = value(scrape, "process_start_time_seconds")
    assert began < value(scrape, "fedlora_last_round_timestamp_seconds") < began + 86_400
    assert value(scrape, "fedlora_certificate_expiry_timestamp_seconds", whose="server") > began


def test_a_site_shows_its_trainings_phases_bytes_and_certificate(watched: Watched) -> None:
    scrape = watched.site
    num_trained = value(scrape, "fedlora_site_rounds_trained_total")
    assert num_trained >= 3
    assert value(scrape, "fedlora_site_steps_total") == 3 * num_trained
    assert value(scrape, "fedlora_site_connections_total") == 1
    assert value(scrape, "fedlora_site_phase_seconds_count", phase="rehearse") == 1
    assert value(scrape, "fedlora_site_phase_seconds_count", phase="work") >= num_trained
    assert value(scrape, "fedlora_site_phase_seconds_sum", phase="forward") > 0
    assert value(scrape, "fedlora_site_updates_accepted_total") >= num_trained - 1
    for direction in ("up", "down"):
        assert value(scrape, "fedlora_site_adapter_bytes_total", direction=direction) > 0
    assert value(scrape, "fedlora_site_examples") > 0
    assert value(scrape, "fedlora_certificate_expiry_timestamp_seconds", whose="site") > 1e9


def test_no_label_says_more_than_a_word_of_a_small_set(watched: Watched) -> None:
    for scrape in (watched.server, watched.site):
        assert not [word for word in (*SITES, "/", "digits") if word in re.sub("^#.*$", "", scrape, flags=re.M)]
        for family in families(scrape).values():
            labels = {name for sample in family.samples for name in sample.labels} - {"le"}
            assert len(labels) <= 1, family.name
            assert len({sample.labels[name] for sample in family.samples for name in labels}) <= 60, family.name


def test_what_alerts_and_dashboard_ask_for_is_exported(watched: Watched, tmp_path: Path) -> None:
    of_a_store = StoreMetrics(RunStore.opened(tmp_path / "store"), certificate_of={})
    exported = sampled(watched.server, watched.site) | {family.name for family in of_a_store.collect()}
    asked = {name for text in (*(rule["expr"] for rule in rules()), *queries()) for name in METRIC.findall(text)}
    assert len(asked) > 30
    assert asked - exported == set()


def test_what_is_exported_is_documented_and_nothing_else(watched: Watched, tmp_path: Path) -> None:
    of_a_store = StoreMetrics(RunStore.opened(tmp_path / "store"), certificate_of={})
    exported = {family.name for family in of_a_store.collect()} | {
        name.removesuffix("_info") if name == "fedlora_build_info" else name
        for scrape in (watched.server, watched.site)
        for name in families(scrape)
        if not name.startswith("process_")
    }
    tables = "".join(line for line in README.read_text().splitlines(keepends=True) if line.startswith("| `fedlora_"))
    documented = {
        name.removesuffix("_total").removesuffix("_info")
        for name in re.findall(r"`(fedlora_[a-z_]+?)(?:\{[a-z]+\})?`", tables)
    }
    assert exported == documented


def test_promtool_finds_nothing_to_mend_in_what_is_scraped(watched: Watched) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    for scrape in (watched.server, watched.site):
        found = subprocess.run(
            [promtool, "check", "metrics"], input=scrape, capture_output=True, text=True, check=False
        )
        assert (found.returncode, found.stdout + found.stderr) == (0, "")


def test_a_sites_spans_lie_in_the_servers_phases_of_the_same_round(watched: Watched) -> None:
    deployment = watched.deployment
    sites = {name: traced(deployment.sites[name]) for name in SITES}
    server = traced(deployment.server)
    while not {"train", "work", "download", "upload"} <= {span["name"] for span in sites["pencil"]}:
        sites["pencil"] = traced(deployment.sites["pencil"])
    known = {span["context"]["span_id"]: span for span in server}
    for name, spans in sites.items():
        joined = [(span, known[span["parent_id"]]) for span in spans if span["parent_id"] in known]
        trained = [(span, request) for span, request in joined if span["name"] == "train"]
        assert trained, "the site's trainings join the server's requests"
        for span, request in trained:
            assert span["context"]["trace_id"] == request["context"]["trace_id"]
            assert request["attributes"]["fedlora.site"] == name
            phase = known.get(request["parent_id"])
            if phase is not None and phase["parent_id"] in known:
                assert phase["name"] == "train"
                assert known[phase["parent_id"]]["attributes"]["fedlora.round"] == span["attributes"]["fedlora.round"]
        below = {span["context"]["span_id"]: span["name"] for span in spans}
        inner = {span["name"] for span in spans if below.get(span["parent_id"]) == "train"}
        assert inner == {"download", "work", "upload"}
    written = json.dumps([span["attributes"] for spans in (server, *sites.values()) for span in spans])
    assert not [word for word in ("/", "digits", ".npz") if word in written]


def test_who_takes_part_is_ready_and_who_has_lost_its_server_is_not(watched: Watched) -> None:
    deployment, site = watched.deployment, watched.deployment.sites[SITES[0]]
    for process in (deployment.server, site):
        assert page(process, "/health") == (200, "alive\n")
        assert page(process, "/ready") == (200, "ready\n")
    deployment.server.kill()
    site.wait_for("trying again")
    assert page(site, "/ready") == (503, "away\n")
    assert page(site, "/health") == (200, "alive\n")


@pytest.mark.slow
def test_the_last_scrape_of_server_and_site_says_that_their_run_is_finished(
    tmp_path: Path, tiny_vision_model: Path, tiny_digits: Path
) -> None:
    overrides = ("federation.sites=1", "federation.rounds=1", 'data.labels=["0","1","2"]')
    run = write_run_file(tmp_path, tiny_vision_model, tiny_digits, *overrides)
    scrapes: dict[str, list[str]] = {"server": [], SITES[0]: []}

    def scrape(process: Process) -> None:
        address = address_of(process)
        with suppress(OSError):
            while True:
                with urllib.request.urlopen(f"{address}/metrics", timeout=20) as answer:
                    scrapes[process.name].append(answer.read().decode())

    with Deployment(tmp_path, run) as deployment:
        deployment.server.arguments = [*deployment.server.arguments, "--metrics", "0"]
        deployment.server.start()
        deployment.server.wait_for("listening on")
        name = SITES[0]
        site = deployment.add_site(name, site_file(tmp_path, name, tiny_digits), token=deployment.invite(name))
        site.arguments = [*site.arguments, "--metrics", "0"]
        site.start()
        scrapers = [threading.Thread(target=scrape, args=(process,)) for process in (deployment.server, site)]
        for scraper in scrapers:
            scraper.start()
        assert (deployment.server.wait(300), site.wait(300)) == (0, 0), deployment.server.text
        for scraper in scrapers:
            scraper.join()
    assert value(scrapes[deployment.server.name][-1], "fedlora_run_state", state="finished") == 1
    assert value(scrapes[name][-1], "fedlora_site_state", state="finished") == 1


def test_a_port_that_is_taken_is_one_line_before_anything_starts(watched: Watched, tmp_path: Path) -> None:
    site = watched.deployment.sites[SITES[0]]
    taken = site.wait_for(r"watched on http://[^:]+:(\d+)")[1]
    run = watched.deployment.folder / "run.toml"
    with Deployment(tmp_path, run) as second:
        refused = second.command(*second.server.arguments, "--metrics", taken)
    assert refused.returncode == 1
    errors = [line for line in refused.stderr.splitlines() if line.startswith("error:")]
    assert errors == [
        f"error: cannot listen on {taken} for metrics (Address already in use); is another process there? "
        "Choose another --metrics"
    ]
    assert not (tmp_path / "server").exists()
