"""Shared moments in a plan: their bytes are those that travel, and what the server keeps of them."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent))

from test_plan import adapter_of

from fedlora.adapters import pack
from fedlora.adapters.differences import Precision, encode_file
from fedlora.adapters.keys import to_state_dict
from fedlora.adapters.moments import pack_moments, trained_tensors
from fedlora.aggregation import METHODS
from fedlora.planning.server_cost import server_cost
from fedlora.planning.traffic import Traffic, traffic_of

WHOLE = {"exp_avg": True, "exp_avg_sq": True, "step": False}
SCALAR = {"exp_avg": True, "exp_avg_sq": False, "step": False}


def moments(form: dict[str, bool], trains: tuple[str, ...]) -> dict[str, Tensor]:
    trained = trained_tensors(to_state_dict(adapter_of(0)), trains)
    return {
        f"{key}/{name}": torch.ones_like(tensor) if is_whole else torch.tensor(1.0)
        for key, tensor in trained.items()
        for name, is_whole in form.items()
    }


def traffic(name: str, precision: Precision, form: dict[str, bool], *, num_rounds: int = 5) -> Traffic:
    return traffic_of(
        adapter_of(0),
        METHODS[name](),
        num_clients=2,
        num_rounds=num_rounds,
        precision=precision,
        init_changes_base=False,
        form=form,
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("form", [WHOLE, SCALAR], ids=["whole", "scalar"])
@pytest.mark.parametrize("name", ["fedit", "ffa_lora", "rolora"])
def test_the_bytes_are_those_of_the_encoded_files(
    tmp_path: Path, precision: Precision, form: dict[str, bool], name: str
) -> None:
    found, trains = traffic(name, precision, form), METHODS[name]().plan(1).trains
    frozen, sent = "".join({"A", "B"} - set(trains)), moments(form, trains)

    def encoded_bytes(packed: bytes) -> int:
        (tmp_path / "start").write_bytes(pack(adapter_of(0)))
        (tmp_path / "update").write_bytes(packed)
        encode_file(tmp_path / "update", tmp_path / "encoded", reference=tmp_path / "start", precision=precision)
        return (tmp_path / "encoded").stat().st_size

    assert found.up == pytest.approx(encoded_bytes(pack(adapter_of(1), without=frozen, moments=sent)), rel=0.03)
    down = encoded_bytes(pack(adapter_of(1)))
    down += encoded_bytes(pack_moments(moments(form, METHODS[name]().plan(5).trains)))
    assert found.down == found.down_last == pytest.approx(down, rel=0.03)


def test_the_only_round_brings_none_and_fresh_pairs_have_none() -> None:
    assert traffic("fedit", "float32", WHOLE, num_rounds=1).down == traffic("fedit", "float32", {}).down
    for field in ("up", "down"):
        assert getattr(traffic("flora", "float32", WHOLE), field) == getattr(traffic("flora", "float32", {}), field)


def test_the_server_keeps_them_and_a_simulation_holds_every_clients() -> None:
    adapter, method = adapter_of(0), METHODS["fedit"]()
    plain, shared = (server_cost(adapter, method, num_clients=2, num_shared_moments=number) for number in (0, 2))
    assert shared.kept - plain.kept == 3 * 2 * adapter.size_bytes()
    assert shared.updates == 3 * plain.updates
