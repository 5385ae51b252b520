"""A server with many runs: one port, one identity, and sites that stay from run to run."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest
from deployment import Deployment, free_port
from ended_runs import adapter_sha256
from test_deployment import site_file
from watched_deployment import traced

from fedlora.server.run_queue.store import RunStore

RunFile = Callable[..., Path]

SITES = ("chalk", "pencil")
RUNS = ("first", "second")
SECONDS = 300.0


@pytest.fixture
def run(run_file: RunFile) -> Callable[..., Path]:
    """Return a function that writes the small run for a deployment, exact on the wire, with overrides."""

    def write(*overrides: str) -> Path:
        exact = "exchange.precision=float32"
        return run_file("federation.sites=2", 'data.labels=["0","1","2"]', exact, *overrides)

    return write


@pytest.fixture
def server(run: Callable[..., Path], tmp_path: Path) -> Deployment:
    """Return a deployment whose server is one of many runs; nothing is started."""
    deployment = Deployment(tmp_path, run())
    store = ["--store", str(deployment.out), "--listen", deployment.address, "--metrics", str(free_port())]
    deployment.server.arguments = ["server", "start", *store, "--trace", "server.spans"]
    return deployment


def runs(deployment: Deployment, *arguments: str) -> str:
    """Return what `fedlora runs` prints of the deployment's store."""
    done = deployment.command("runs", *arguments, "--store", str(deployment.out))
    assert done.returncode == 0, done.stderr
    return done.stdout


def scraped(deployment: Deployment) -> dict[str, float]:
    """Return the server's metrics that have a single number, by name with labels."""
    port = deployment.server.arguments[deployment.server.arguments.index("--metrics") + 1]
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def states(deployment: Deployment) -> dict[str, str]:
    return {run["name"]: run["state"] for run in json.loads(runs(deployment, "list", "--json"))["runs"]}


def test_sites_stay_from_run_to_run_and_each_run_is_what_it_would_be_alone(
    server: Deployment, run: Callable[..., Path], tmp_path: Path, tiny_digits: Path
) -> None:
    files = {name: site_file(tmp_path, name, tiny_digits, 'runs = ["first", "sec*"]') for name in SITES}
    store = RunStore(server.out)
    with server:
        server.server.start()
        server.server.wait_for("no run waits")
        sites = [server.add_site(name, file, token=server.invite(name)) for name, file in files.items()]
        for site in sites:
            site.arguments = [*site.arguments, "--trace", f"{site.name}.spans"]
            site.start()
        for site in sites:
            site.wait_for("no run there for this site at present")
        for name in ("first", "second", "third"):
            runs(server, "submit", str(run(f"run.name={name}")))
        server.server.wait_for("second is finished", SECONDS)
        for site in sites:
            site.wait_for("takes no part in this run: the run is 'third', and limits.runs")
        # Of equal run files under two names, the second is not another for what the first has left behind.
        first, second = (store.run_folder(name) for name in ("first", "second"))
        assert adapter_sha256(first) == adapter_sha256(second)
        assert states(server) == {"first": "finished", "second": "finished", "third": "running"}
        assert "third: waiting" in runs(server, "show", "third")
        metrics = scraped(server)
        assert (metrics['fedlora_runs{state="finished"}'], metrics['fedlora_runs{state="running"}']) == (2, 1)
        # Of the run at work, and no more of those before it.
        assert metrics["fedlora_rounds_total"] == 0
        found = server.command("adapters", "list", server.address, "--site", str(files["chalk"]), "--run", "first")
        assert "first-v0001" in found.stdout, found.stderr
        none = server.command("adapters", "list", server.address, "--site", str(files["chalk"]), "--run", "fourth")
        assert (none.returncode, "has no such run" in none.stderr) == (1, True), none.stderr
        assert "third is stopped" in runs(server, "stop", "third")
        submit = f"fedlora runs submit {store.run_folder('third')}/run.toml --store {server.out}"
        assert f"  to go on  {submit}" in runs(server, "show", "third").splitlines()
        done = server.command("server", "status", "--out", str(store.run_folder("third")))
        assert f"  to go on  {submit}" in done.stdout.splitlines()
        assert_between_runs(server)
        assert server.command("server", "stop", "--out", str(server.out)).returncode == 0
        assert server.server.wait(SECONDS) == 0
        sites[0].stop()
    assert states(server)["third"] == "stopped"
    assert "is not enrolled" not in sites[0].text
    assert sites[0].text.count("enrolled as") == 1
    assert_traced(server)


def assert_between_runs(deployment: Deployment) -> None:
    """Check what a server shows whose last run was stopped, and that it hears of who is refused; one site is."""
    metrics = scraped(deployment)
    assert metrics['fedlora_run_state{state="stopped"}'] == 1
    assert {state: value for state, value in metrics.items() if state.startswith("fedlora_sites{") and value} == {}
    deployment.command("sites", "revoke", SITES[1], "--out", str(deployment.out))
    assert deployment.sites[SITES[1]].wait(SECONDS) == 1
    assert scraped(deployment)['fedlora_calls_refused_total{reason="revoked"}'] >= 1


def assert_traced(deployment: Deployment) -> None:
    """Check the spans of two runs of two rounds, one after the other, and that the sites' are of the right run."""
    spans = traced(deployment.server)
    known = {span["context"]["span_id"]: span for span in spans}
    first, second = ([span for span in spans if span["attributes"]["fedlora.run"] == run] for run in RUNS)
    assert len(first) + len(second) == len(spans), "no round of another run was begun"
    assert max(span["end_time"] for span in first) <= min(span["start_time"] for span in second)
    for run in (first, second):
        rounds = {span["context"]["span_id"]: span for span in run if span["name"] == "round"}
        assert sorted(span["attributes"]["fedlora.round"] for span in rounds.values()) == [0, 1, 2]
        phases = {span["context"]["span_id"]: span for span in run if span["parent_id"] in rounds}
        assert Counter(span["name"] for span in phases.values())["aggregate"] == 2
        trainings = [span for span in run if span["attributes"].get("fedlora.request") == "train"]
        assert [phases[span["parent_id"]]["name"] for span in trainings] == ["train"] * 4
    for site in deployment.sites.values():
        joined = [known[span["parent_id"]] for span in traced(site) if span["name"] == "train"]
        assert Counter(span["attributes"]["fedlora.run"] for span in joined) == {"first": 2, "second": 2}
        assert {span["attributes"]["fedlora.site"] for span in joined} == {site.name}


@pytest.mark.slow
def test_a_server_that_is_killed_goes_on_with_its_run_and_then_with_the_others(
    server: Deployment, run: Callable[..., Path], tmp_path: Path, tiny_digits: Path
) -> None:
    with server:
        server.server.start()
        server.server.wait_for("no run waits")
        for name in SITES:
            server.enrol(name, site_file(tmp_path, name, tiny_digits))
        for name in ("first", "second"):
            runs(server, "submit", str(run(f"run.name={name}", "federation.rounds=6")))
        server.server.wait_for(r"round +2/6  acc", SECONDS)
        server.server.kill()
        assert states(server) == {"first": "running", "second": "waiting"}
        server.server.start()
        server.server.wait_for("second is finished", SECONDS)
        store = RunStore(server.out)
        assert adapter_sha256(store.run_folder("first")) == adapter_sha256(store.run_folder("second"))
        assert server.server.stop() == 0
