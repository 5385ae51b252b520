"""The README's Flower app, as it stands there, on Flower's simulation engine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedlora.adapters import load_adapter

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_the_readmes_flower_app_runs_learns_and_leaves_a_peft_folder(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (example,) = (
        code
        for code in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
        if "run_simulation(" in code
    )
    script = tmp_path / "app.py"
    script.write_text(example, encoding="utf-8")
    quiet = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_HOME": str(tmp_path / "flower"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    ended = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    accuracy, error_after = map(float, ended.stdout.strip().splitlines()[-1].split())
    assert accuracy > 0.7
    assert 0 < error_after < 1
    assert "is left out" not in ended.stderr
    adapter = load_adapter(tmp_path / "flower-adapter")
    assert len(adapter.layers) == 4
    assert set(adapter.dense) == {"classifier.weight", "classifier.bias"}
