"""What stands in the files under deploy/monitoring."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
DASHBOARD = MONITORING / "grafana" / "dashboards" / "fedlora.json"
README = MONITORING / "README.md"
# Ours begin with fedlora_; what a rule here records has colons in its name.
METRIC = re.compile(r"(?<![\w:])(?:fedlora|process)_[a-z_]+(?![\w:])")
# Of a machine with GPUs alone.
ONLY_WITH_GPUS = {"fedlora_gpu_memory_used_bytes", "fedlora_gpu_memory_size_bytes", "fedlora_gpu_utilization_ratio"}


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rules() -> list[dict[str, Any]]:
    return [rule for group in loaded(MONITORING / "alerts.yml")["groups"] for rule in group["rules"]]


def queries() -> Iterator[str]:
    """Yield the queries of the dashboard."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
