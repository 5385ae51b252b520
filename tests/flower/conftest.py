"""One in-process grid for all tests of the strategy: four nodes, one worker that keeps its model."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlora.simulation.inprocess import InProcessGrid

sys.path.append(str(Path(__file__).parent))  # The workers import lora_apps by its name.

NUM_NODES = 4


@pytest.fixture(scope="module")
def grid() -> Iterator[InProcessGrid]:
    import lora_apps

    environments = [{"OMP_NUM_THREADS": "1"}]
    with InProcessGrid(
        lora_apps.make_app, num_nodes=NUM_NODES, environments=environments, preload=("fedlora.client.worker.app",)
    ) as grid:
        yield grid
