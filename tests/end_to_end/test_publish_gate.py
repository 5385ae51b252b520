"""A real run that goes wrong: what has become worse is not published, and that is said wherever people look."""

import json
from collections.abc import Callable
from pathlib import Path

from deployment import deployed
from ended_runs import adapter_sha256

from fedlora.server.disk.audit import read_audit

RunFile = Callable[..., Path]


def test_a_run_that_learns_too_fast_publishes_nothing_worse_and_says_so(
    run_file: RunFile, tmp_path: Path, tiny_digits: Path, tiny_vision_model: Path
) -> None:
    run = run_file(
        "train.learning_rate=3.0",
        "federation.sites=2",
        "federation.rounds=2",
        'data.labels=["0","1","2"]',
        "exchange.publish_margin=0.2",
    )
    sites = {name: tmp_path / f"{name}.toml" for name in ("chalk", "pencil")}
    for name, path in sites.items():
        path.write_text(
            f'[site]\nname = "{name}"\n[data]\npath = "{tiny_digits}"\nonly_group = "{name}"\n'
            f'[limits]\nbase_models = ["{tiny_vision_model}"]\nleast_examples = 1\n'
        )
    with deployed(tmp_path, run, sites, is_insecure=True) as deployment:
        assert deployment.server.wait(300) == 0, deployment.server.text
    out = deployment.out
    refused = {int(number): why for number, why in json.loads((out / "unpublished.json").read_bytes()).items()}
    assert refused.keys() == {1, 2}
    assert not list((out / "published").glob("*-v*"))
    reports = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    start = [client["before"]["loss"] for client in reports[1]["clients"].values()]
    last = reports[2]["validation"]["loss"]
    assert last > 1.2 * max(start)
    for number, why in refused.items():
        assert "% above that of the start, " in why
        assert f"ERROR round {number} is not published: {why}" in deployment.server.text
        assert why in (out / "report.html").read_text()
    assert (
        f"withheld  round 2 is not published: {refused[2]}"
        in deployment.command("server", "status", "--out", str(out)).stdout
    )
    entries = [entry for entry in read_audit(out).entries if entry["event"] == "not published"]
    assert {entry["round"]: entry["reason"] for entry in entries} == refused
    # It is the run's all the same.
    assert (out / "adapter" / "adapter_model.safetensors").exists()
    assert adapter_sha256(out)
