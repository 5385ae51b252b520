"""The tests run the same whatever their caller has exported."""

import os
import subprocess
import sys
from pathlib import Path

EXPORTED = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "COLUMNS": "20",
    "FORCE_COLOR": "1", "https_proxy": "http://127.0.0.1:9", "NO_PROXY": "*", "TERM": "dumb",
    "PYTHONIOENCODING": "ascii", "TZ": "Asia/Kolkata",
}  # fmt: skip


def test_what_the_caller_has_exported_is_forgotten() -> None:
    found = {name: os.environ[name] for name in EXPORTED if name in os.environ}
    assert found == {}


def test_it_is_forgotten_before_anything_is_imported() -> None:
    chosen = f"{__file__}::{test_what_the_caller_has_exported_is_forgotten.__name__}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", chosen],
        cwd=Path(__file__).parents[1],
        env=os.environ | EXPORTED,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
