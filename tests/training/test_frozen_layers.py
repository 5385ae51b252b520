"""Frozen lower blocks whose outputs are kept: the same model to rounding, and to the last bit the same for everyone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, ModelError
from fedlora.common.run_file import parse_run
from fedlora.models.base_model import load_base_model
from fedlora.simulation import simulate
from fedlora.training.data import load_federated_data
from fedlora.training.frozen_layers import FrozenLayersKept
from fedlora.training.kept_outputs import KeptOutputs
from fedlora.training.peft_bridge import ResidentModel, add_lora
from fedlora.training.tasks import Batch

MakeRun = Callable[..., RunConfig]

UPPER = {"exclude_modules": r".*\.0\..*"}


@dataclass(frozen=True, eq=False)
class Held:
    """A model of which the upper blocks are trained, and examples in its task's form."""

    resident: ResidentModel
    task: Any
    prepared: Any

    def batch(self, *places: int) -> Batch:
        batch: Batch = self.task.collate(self.prepared, np.array(places))
        return batch

    def kept(self, outputs: KeptOutputs | None = None, **options: Any) -> FrozenLayersKept:
        settings = {"origin": "", "max_megabytes": 100, **options}
        return FrozenLayersKept(
            self.resident.peft_model, kept=KeptOutputs() if outputs is None else outputs, **settings
        )


def held(config: RunConfig) -> Held:
    torch.manual_seed(0)
    data = load_federated_data(config)
    base = load_base_model(config, data.labels)
    resident = add_lora(base.module, config.lora, heads=base.heads, task_type=base.peft_task_type, name="tiny")
    resident.set_training(False)
    return Held(resident, base.task, base.task.prepare(data.test))


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, str]:
    """Return the section of a run's data over texts of which no two are equal, of 4 to 28 words."""
    words = [" ".join(found) for found in product(("very", "good", "film"), repeat=4)]
    rows = [f"{('bad', 'good')[place % 2]},{text}{' great' * (place % 25)},reader" for place, text in enumerate(words)]
    path = tmp_path / "texts.csv"
    path.write_text("\n".join(["label,text,source", *rows]))
    return {"path": str(path)}


@pytest.fixture(params=["vision_run", "text_run", "chat_run"])
def model(request: pytest.FixtureRequest, texts: dict[str, str]) -> Held:
    """Return a model of each task; texts and conversations are of different lengths."""
    sections = {"data": texts} if request.param == "text_run" else {}
    return held(request.getfixturevalue(request.param)(lora=UPPER, **sections))


def output(found: object) -> Tensor:
    tensor: Tensor = getattr(found, "logits", found)  # type: ignore[assignment]
    return tensor


def meant(found: Tensor, batch: Batch) -> Tensor:
    """Return what is no padding's."""
    mask, judged = batch.inputs.get("attention_mask"), batch.inputs.get("logits_to_keep")
    mask = mask if mask is None or judged is None else mask[:, judged]
    return found[mask.bool()] if mask is not None and found.shape[:2] == mask.shape else found


def test_outputs_and_gradients_are_those_of_the_whole_model(model: Held) -> None:
    batch, kept = model.batch(0, 1, 2, 3, 4), model.kept()
    parameters = model.resident.parameters
    found, expected = [], []
    for forward, gradients in ((kept, found), (kept, found), (model.resident.peft_model, expected)):
        given = meant(output(forward(**batch.inputs)), batch)
        gradients[:] = [given, *torch.autograd.grad(given.square().mean(), parameters)]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
    assert any(gradient.abs().max() > 0 for gradient in expected[1:])


def frozen_calls(model: Held, kept: FrozenLayersKept) -> list[int]:
    """Return a list that grows whenever the frozen blocks of `model` run, by the number of their examples."""
    calls: list[int] = []
    blocks = next(part for part in model.resident.peft_model.modules() if isinstance(part, nn.ModuleList))
    frozen = next(part for part in blocks[kept.num_blocks - 1].modules() if isinstance(part, nn.Linear))
    frozen.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    return calls


def test_the_frozen_blocks_run_once_for_an_example(model: Held) -> None:
    kept = model.kept()
    kept(**model.batch(0, 1, 2).inputs)  # Checked against the whole model.
    calls = frozen_calls(model, kept)
    with torch.no_grad():
        kept(**model.batch(2, 1).inputs)
        assert not calls
        kept(**model.batch(2, 3).inputs)
    assert len(calls) == 1


@pytest.mark.parametrize("megabytes", [100, 0])
def test_what_a_batch_lacks_is_computed_with_what_is_to_come(model: Held, megabytes: int) -> None:
    """The same to the last bit, in fewer passes over the frozen blocks; also where there is no room to keep it."""
    places = list(range(min(20, len(model.prepared))))
    batches = [model.batch(place) for place in places]
    outputs = KeptOutputs()
    one, other = model.kept(), model.kept(outputs, max_megabytes=megabytes)
    with torch.no_grad():
        expected = [output(one(**batch.inputs)) for batch in batches]
        other(**batches[0].inputs)
        calls = frozen_calls(model, other)
        other.look_ahead(len(batches), lambda place: batches[place].inputs)
        found = [output(other(**batch.inputs)) for batch in batches]
    for given, wanted in zip(found, expected, strict=True):
        assert torch.equal(given, wanted)
    assert 0 < len(calls) < len(batches) / 2
    assert len(outputs) == (len(places) if megabytes else 0)


def test_so_many_are_computed_at_once_as_a_step_takes(model: Held) -> None:
    kept = model.kept(chunk=3)
    kept(**model.batch(0, 1).inputs)
    sizes = frozen_calls(model, kept)
    with torch.no_grad():
        kept.look_ahead(2, lambda _: model.batch(6, 7, 8, 9).inputs)
        kept(**model.batch(2, 3, 4, 5).inputs)
    assert set(sizes) == {3}


def test_blocks_with_a_forward_of_their_own_have_it_again(model: Held) -> None:
    """As accelerate puts in the place of a class's, to move tensors between devices."""
    blocks = next(part for part in model.resident.peft_model.modules() if isinstance(part, nn.ModuleList))
    own, blocks[0].forward = blocks[0].forward, partial(blocks[0].forward)
    given = blocks[0].forward
    kept = model.kept()
    with torch.no_grad():
        kept(**model.batch(0, 1).inputs)
        kept(**model.batch(0, 1).inputs)
    assert blocks[0].forward is given
    assert given.func == own


def test_what_is_kept_depends_on_the_example_alone(model: Held) -> None:
    """To the last bit: neither on the batch that asked first, nor on its padding, nor on the order."""
    num_examples = min(20, len(model.prepared))
    one, other = KeptOutputs(), KeptOutputs()
    first, second = model.kept(one), model.kept(other)
    with torch.no_grad():
        for begin in range(0, num_examples, 3):
            first(**model.batch(*range(begin, min(begin + 3, num_examples))).inputs)
        second(**model.batch(*reversed(range(num_examples))).inputs)
        batch = model.batch(*range(num_examples))
        assert torch.equal(output(first(**batch.inputs)), output(second(**batch.inputs)))
    assert len(one) == len(other) > 0


def test_what_does_not_fit_is_computed_again_and_said_once(model: Held, caplog: pytest.LogCaptureFixture) -> None:
    outputs = KeptOutputs()
    kept, whole = model.kept(outputs, max_megabytes=0), model.kept()
    batch = model.batch(0, 1, 2)
    with torch.no_grad():
        assert torch.equal(output(kept(**batch.inputs)), output(whole(**batch.inputs)))
        kept(**batch.inputs)
    assert len(outputs) == 0
    assert [record.message for record in caplog.records if "are used up after 0 examples" in record.message] == [
        record.message for record in caplog.records
    ]
    assert len(caplog.records) == 1


def test_what_is_kept_lies_side_by_side() -> None:
    """Of any type and shape, and unchanged by what comes after it."""
    outputs = KeptOutputs()
    given = [
        torch.arange(number * 7, dtype=dtype).reshape(number, 7)
        for number in range(1, 9)
        for dtype in (torch.float32, torch.bfloat16, torch.float64)
    ]
    for place, tensor in enumerate(given):
        outputs.keep(bytes([place]), tensor, max_bytes=10**6)
    found = [outputs.get(bytes([place])) for place in range(len(given))]
    assert all(one is not None and torch.equal(one, other) for one, other in zip(found, given, strict=True))
    assert len({one.untyped_storage().data_ptr() for one in found if one is not None}) == 1
    assert len({one.untyped_storage().data_ptr() for one in given}) == len(given)


def test_modes_of_parts_are_left_as_they_are(model: Held) -> None:
    model.resident.peft_model.train()
    parts = list(model.resident.peft_model.modules())
    parts[3].training = False
    before = [part.training for part in parts]
    model.kept()(**model.batch(0, 1).inputs)
    assert [part.training for part in parts] == before


def test_models_with_other_frozen_weights_share_nothing(vision_run: MakeRun) -> None:
    model, outputs = held(vision_run(lora=UPPER)), KeptOutputs()
    model.kept(outputs, origin="one")(**model.batch(0).inputs)
    model.kept(outputs, origin="other")(**model.batch(0).inputs)
    assert len(outputs) == 2


def test_a_trained_first_block_is_named(vision_run: MakeRun) -> None:
    with pytest.raises(ModelError, match=r"layers\.0, the first of 2 blocks, is trained.*lora\.exclude_modules"):
        held(vision_run()).kept()


def test_what_is_trained_below_the_blocks_is_named(text_run: MakeRun, texts: dict[str, str]) -> None:
    model = held(text_run(lora={**UPPER, "modules_to_save": ["word_embeddings"]}, data=texts))
    with pytest.raises(ModelError, match=r"word_embeddings.* is trained and lies below the frozen blocks"):
        model.kept()(**model.batch(0).inputs)


class SkippingAhead(nn.Module):
    """Adds what its first block gives to what its last one gives."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        for block in self.blocks[:2]:
            block.requires_grad_(False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        first = self.blocks[0](pixel_values)
        last: Tensor = self.blocks[2](self.blocks[1](first))
        return last + first


def test_a_model_that_uses_more_of_its_lower_blocks_is_refused() -> None:
    torch.manual_seed(0)
    kept = FrozenLayersKept(SkippingAhead(), kept=KeptOutputs(), origin="", max_megabytes=1)
    with pytest.raises(ModelError, match=r"differ by up to .* when its 2 lower blocks are left out"):
        kept(pixel_values=torch.randn(3, 4))


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ModelError, match="Linear has no blocks in a row"):
        FrozenLayersKept(nn.Linear(2, 2), kept=KeptOutputs(), origin="", max_megabytes=1)


@pytest.mark.parametrize("other", ["compile", "packing"])
def test_it_does_not_go_with_what_runs_the_model_in_another_way(vision_run: MakeRun, other: str) -> None:
    given = vision_run().model_dump(mode="json")
    with pytest.raises(ConfigError, match=f"frozen_cache_megabytes does not go with {other} = true"):
        parse_run(given, ["train.frozen_cache_megabytes=10", f"train.{other}=true"])


def test_a_run_is_the_same_over_any_number_of_workers_and_close_to_one_that_keeps_nothing(
    vision_run: MakeRun, tmp_path: Path
) -> None:
    def run(name: str, *, megabytes: int, num_workers: int) -> Any:
        config = vision_run(
            lora=UPPER, train={"steps": 2, "frozen_cache_megabytes": megabytes}, federation={"rounds": 2}
        )
        return simulate(config, out=tmp_path / name, num_workers=num_workers)

    one, two, whole = (
        run("one", megabytes=10, num_workers=1),
        run("two", megabytes=10, num_workers=2),
        run("whole", megabytes=0, num_workers=2),
    )
    assert [report.adapter_sha256 for report in one.reports] == [report.adapter_sha256 for report in two.reports]
    for path, layer in whole.adapter.layers.items():
        assert torch.allclose(layer.B, one.adapter.layers[path].B, rtol=1e-2, atol=1e-4)
        assert layer.B.abs().max() > 1e-3
