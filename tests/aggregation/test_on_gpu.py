"""On a GPU every method does what it does on a CPU."""

from dataclasses import replace

import pytest
import torch

from fedlora.adapters import Adapter
from fedlora.aggregation import aggregate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def moved(adapter, device):
    layers, change = (
        {path: replace(pair, A=pair.A.to(device), B=pair.B.to(device)) for path, pair in pairs.items()}
        for pairs in (adapter.layers, adapter.base_change)
    )
    return Adapter(layers, base_change=change)


@pytest.mark.parametrize("ranks", [[3] * 4, [3, 1, 2, 3]], ids=["one rank", "mixed ranks"])
@pytest.mark.parametrize("where", ["computes", "holds"])
def test_the_gpu_agrees_with_the_cpu(make_updates, any_method, whole_change, ranks, where):
    updates = make_updates(ranks=ranks, out_features=60, in_features=50)
    (start,) = make_updates(1, num_clients=1, out_features=60, in_features=50).values()
    expected = aggregate(updates, method=any_method, reference=start)
    if where == "computes":
        found = aggregate(updates, method=any_method, reference=start, device="cuda")
    else:
        there = {name: moved(update, "cuda") for name, update in updates.items()}
        found = aggregate(there, method=any_method, reference=start)
    assert found.adapter.layers["q_proj"].A.device.type == ("cpu" if where == "computes" else "cuda")
    change = whole_change(moved(found.adapter, "cpu"))
    torch.testing.assert_close(change, whole_change(expected), rtol=1e-9, atol=1e-9)
    assert found.report.error_before == pytest.approx(expected.report.error_before, rel=1e-9)
    assert found.report.error_after == pytest.approx(expected.report.error_after, rel=1e-9, abs=1e-7)
