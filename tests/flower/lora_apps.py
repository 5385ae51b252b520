"""A tiny PEFT model and the ClientApp that trains it, in a module of its own because workers unpickle it by name."""

import io
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from fedlora.training.flower_round import load_round

RANK, ALPHA = 2, 3
PATHS = ("first", "second")
HEAD = "base_model.model.head.weight"


def lora_config(rank: int = RANK) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=list(PATHS), modules_to_save=["head"])


def base_model() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = OrderedDict(
            first=nn.Linear(6, 10), fold=nn.Tanh(), second=nn.Linear(10, 8), again=nn.Tanh(), head=nn.Linear(8, 2)
        )
        return nn.Sequential(layers)


def make_model(config: LoraConfig | None = None) -> PeftModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = get_peft_model(base_model(), config or lora_config())  # type: ignore[arg-type]
    assert isinstance(model, PeftModel)
    return model


def examples(partition: int) -> tuple[Tensor, Tensor]:
    """Return inputs (n, 6) and targets (n, 2), of which each partition has its own kind and number."""
    random = torch.Generator().manual_seed(partition)
    inputs = torch.randn(num_examples(partition), 6, generator=random)
    inputs[:, partition % 6] += 1.5
    return inputs, torch.stack([inputs[:, :3].prod(1), inputs[:, 3:].sum(1).sin()], 1)


def num_examples(partition: int) -> int:
    return 20 + 10 * partition


def loss_of(model: nn.Module, partition: int) -> Tensor:
    inputs, targets = examples(partition)
    return nn.functional.mse_loss(model(inputs), targets)


@cache
def resident_model() -> PeftModel:
    """Return the model that this process keeps for all nodes and rounds."""
    torch.set_num_threads(1)
    return make_model()


def make_app() -> ClientApp:
    """Return an app of which the first node does what the configuration has under `misdeed`."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        config = message.content.config_records["config"]
        arrays = message.content.array_records["arrays"]
        model = resident_model()
        if config.get("plain"):
            model = make_model()
            set_peft_model_state_dict(model, arrays.to_torch_state_dict())
        else:
            load_round(model, arrays, trains=config.get("lora-trains", "A,B"))  # Flower's FedAvg has no such key.
        loss = _fit(model, partition)
        metrics: dict[str, int | float | list[int] | list[float]] = {
            "num-examples": num_examples(partition),
            "loss": loss,
        }
        tensors = {key: tensor.clone() for key, tensor in get_peft_model_state_dict(model).items()}
        content = RecordDict({"arrays": ArrayRecord(tensors), "metrics": MetricRecord(metrics)})
        if partition == 0 and (misdeed := config.get("misdeed")):
            MISDEEDS[str(misdeed)](content)
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        load_round(resident_model(), message.content.array_records["arrays"])
        with torch.no_grad():
            loss = float(loss_of(resident_model(), partition))
        metrics = MetricRecord({"num-examples": num_examples(partition), "loss": loss})
        if partition == 0 and (misdeed := message.content.config_records["config"].get("misdeed")):
            metrics["loss" if misdeed == "nan-metric" else "num-examples"] = float("nan")
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def _fit(model: nn.Module, partition: int) -> float:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(8):
        loss = loss_of(model, partition)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float(loss)


def _lie(content: RecordDict) -> None:
    """Claim 2^40 numbers in the header of an array that has few."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**20, 2**20)})
    content.array_records["arrays"][HEAD] = Array("float32", (2, 8), "numpy.ndarray", file.getvalue() + bytes(64))


def _as(change: Callable[[np.ndarray], np.ndarray], key: str = HEAD) -> Callable[[RecordDict], None]:
    def misdeed(content: RecordDict) -> None:
        arrays = content.array_records["arrays"]
        arrays[key] = Array(change(arrays[key].numpy()))

    return misdeed


def _weight(value: float | list[float] | None) -> Callable[[RecordDict], None]:
    def misdeed(content: RecordDict) -> None:
        metrics = content.metric_records["metrics"]
        if value is None:
            del metrics["num-examples"]
        else:
            metrics["num-examples"] = value

    return misdeed


def _add(key: str) -> Callable[[RecordDict], None]:
    def misdeed(content: RecordDict) -> None:
        content.array_records["arrays"][key] = Array(np.ones((2, 2), np.float32))

    return misdeed


def _take_over(content: RecordDict) -> None:
    arrays = content.array_records["arrays"]
    for key in arrays:
        arrays[key] = Array(np.full(arrays[key].shape, 7, np.float32))
    content.metric_records["metrics"]["num-examples"] = 1e12


def _lose(content: RecordDict) -> None:
    del content.array_records["arrays"][HEAD]


def _cut(content: RecordDict) -> None:
    array = content.array_records["arrays"][HEAD]
    content.array_records["arrays"][HEAD] = Array(array.dtype, array.shape, array.stype, array.data[:-4])


def _pickle(content: RecordDict) -> None:
    content.array_records["arrays"][HEAD] = Array("float32", (2, 8), "torch.save", b"\x80\x04.")


def _scribble(content: RecordDict) -> None:
    content.array_records["arrays"][HEAD] = Array("float32", (2, 8), "numpy.ndarray", b"\x93NUMPY\x01\x00\x03\x00(((")


def _raise(_content: RecordDict) -> None:
    raise ValueError("out of\nmemory")


def _hold(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[3] = value
        return array

    return change


def _clear_metrics(content: RecordDict) -> None:
    del content["metrics"]


def _send_two(content: RecordDict) -> None:
    content["more"] = ArrayRecord([np.ones(2)])


def _brag(content: RecordDict) -> None:
    content.metric_records["metrics"]["accuracy"] = 1.0


def _lose_the_loss(content: RecordDict) -> None:
    content.metric_records["metrics"]["loss"] = float("nan")


def _list_the_loss(content: RecordDict) -> None:
    content.metric_records["metrics"]["loss"] = [0.1, 0.2]


def _add_a_config(content: RecordDict) -> None:
    content["more"] = ConfigRecord({"says": "hello"})


FIRST_A = "base_model.model.first.lora_A.weight"
MISDEEDS: Mapping[str, Callable[[RecordDict], None]] = {
    "nan": _as(_hold(np.nan)),
    "infinity": _as(_hold(-np.inf), FIRST_A),
    "huge": _as(_hold(1e7)),
    "broadcastable": _as(lambda array: array[:1], FIRST_A),
    "transposed": _as(lambda array: array.T.copy()),
    "half": _as(lambda array: array.astype(np.float16)),
    "big-endian": _as(lambda array: array.astype(">f4")),
    "lie": _lie,
    "cut": _cut,
    "pickle": _pickle,
    "scribble": _scribble,
    "extra": _add("base_model.model.third.lora_A.weight"),
    "alias": _add("base_model.model.first.lora_A.default.weight"),
    "base-change": _add("base_change.first.A"),
    "missing": _lose,
    "two-records": _send_two,
    "no-metrics": _clear_metrics,
    "no-weight": _weight(None),
    "list-weight": _weight([3.0]),
    "zero-weight": _weight(0.0),
    "negative-weight": _weight(-15.0),
    "nan-weight": _weight(np.nan),
    "infinite-weight": _weight(np.inf),
    "takeover": _take_over,
    "error": _raise,
    # What is not refused.
    "loud": _as(lambda array: 1000 * array, "base_model.model.first.lora_B.weight"),
    "boast": _brag,
    "list-metric": _list_the_loss,
    "nan-metric": _lose_the_loss,
    "config": _add_a_config,
    "fortran": _as(np.asfortranarray),
}
