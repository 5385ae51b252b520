"""A batch norm that is trained whole: its statistics are averaged, and what it counts stays a whole number."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn

from fedlora.flower import LoraFairStrategy
from fedlora.simulation.inprocess import InProcessGrid
from fedlora.training.flower_round import load_round

CONFIG = LoraConfig(r=2, target_modules=["first"], modules_to_save=["norm"])
COUNTED = "base_model.model.norm.num_batches_tracked"
MEAN = "base_model.model.norm.running_mean"


def make_model() -> PeftModel:
    torch.manual_seed(0)
    base = nn.Sequential(OrderedDict(first=nn.Linear(4, 4), norm=nn.BatchNorm1d(4)))
    model = get_peft_model(base, CONFIG)  # type: ignore[arg-type]
    assert isinstance(model, PeftModel)
    return model


def make_norm_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        model = make_model()
        load_round(model, message.content.array_records["arrays"])
        for _ in range(1 + 2 * partition):
            model(torch.randn(8, 4, generator=torch.Generator().manual_seed(partition)))
        arrays = ArrayRecord(get_peft_model_state_dict(model))
        if message.content.config_records["config"].get("misdeed") and partition == 0:
            arrays[COUNTED] = Array(np.array(1.5, np.float32))
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


@pytest.mark.filterwarnings("ignore:Could not find a config file")
@pytest.mark.parametrize(("misdeed", "counted"), [("", 2), ("half", 3)])
def test_what_a_batch_norm_counts_is_averaged_to_a_whole_number_of_its_own_type(misdeed: str, counted: int) -> None:
    with InProcessGrid(make_norm_app, num_nodes=2, environments=[{"OMP_NUM_THREADS": "1"}]) as grid:
        strategy = LoraFairStrategy(lora_config=CONFIG, min_available_nodes=2, fraction_evaluate=0.0)
        first = ArrayRecord(get_peft_model_state_dict(make_model()))
        result = strategy.start(grid, first, num_rounds=1, timeout=60, train_config=ConfigRecord({"misdeed": misdeed}))
    tensors = result.arrays.to_torch_state_dict()
    assert tensors[COUNTED].dtype == torch.int64
    assert tensors[COUNTED] == counted
    assert tensors[MEAN].dtype == torch.float32
    assert tensors[MEAN].abs().max() > 0
    reasons = [refused.reason for refused in strategy.reports[1].refused]
    assert reasons == ([f"{COUNTED} is float32; expected int64, as it was sent"] if misdeed else [])
    load_round(make_model(), result.arrays)
