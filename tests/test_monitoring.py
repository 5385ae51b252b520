"""The files under deploy/monitoring, against one another and the tools that read them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from monitoring_files import DASHBOARD, MONITORING, README, loaded, queries, rules


def promtool(*arguments: str | Path) -> None:
    command = shutil.which("promtool")
    if command is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False, cwd=MONITORING)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_says_who_and_what_and_is_explained() -> None:
    explained = set(re.findall(r"`(Fedlora\w+)`", README.read_text()))
    alerts = [rule for rule in rules() if "alert" in rule]
    assert {rule["alert"] for rule in alerts} == explained
    for rule in alerts:
        assert rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]
        assert rule["annotations"]["summary"].startswith("{{ $labels.instance }}: "), rule["alert"]


def test_each_alert_has_a_test_in_which_it_fires() -> None:
    tests = (MONITORING / "alerts.test.yml").read_text()
    fired = set(re.findall(r'alertname="(Fedlora\w+)"', tests)) | set(re.findall(r"alertname: (Fedlora\w+)", tests))
    assert {rule["alert"] for rule in rules() if "alert" in rule} == fired


def test_promtool_accepts_the_rules_and_their_tests_pass() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("test", "rules", "alerts.test.yml")


def test_promtool_reads_each_query_of_the_dashboard(tmp_path: Path) -> None:
    written = [re.sub(r"\$__rate_interval", "5m", query) for query in queries()]
    assert len(written) > 30
    records = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(written)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": records}]}))
    promtool("check", "rules", path)


def test_each_panel_has_a_place_of_its_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells


def test_what_is_scraped_is_where_the_readme_and_compose_say() -> None:
    overlay = loaded(MONITORING / "compose.monitoring.yaml")["services"]
    port = overlay["server"]["environment"]["FEDLORA_METRICS"].rpartition(":")[2]
    targets = {
        folder: [
            target
            for name in ("server", "clients")
            for group in loaded(MONITORING / folder / f"{name}.yml")
            for target in group["targets"]
        ]
        for folder in ("targets", "targets-compose")
    }
    watched = [name for name, service in overlay.items() if "FEDLORA_METRICS" in service.get("environment", {})]
    assert targets["targets-compose"] == [f"{name}:{port}" for name in watched]
    assert all(target.startswith("127.0.0.1:") for target in targets["targets"])
    assert f"--metrics {targets['targets'][0].rpartition(':')[2]}" in README.read_text()
    mounted = {volume.split(":")[0] for service in overlay.values() for volume in service.get("volumes", [])}
    for path in (each for each in mounted if each.startswith("./")):
        assert (MONITORING.parent / path).exists(), path
