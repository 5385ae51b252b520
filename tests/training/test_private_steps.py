"""Steps that are private to each example: gradients against a loop by hand, the clip, the noise and the batches."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from fedlora.common.config import RunConfig
from fedlora.common.errors import ModelError
from fedlora.models.base_model import load_base_model
from fedlora.models.reach import logits_of
from fedlora.training.data import load_federated_data
from fedlora.training.example_gradients import ExampleGradients
from fedlora.training.frozen_layers import FrozenLayersKept
from fedlora.training.kept_outputs import KeptOutputs
from fedlora.training.peft_bridge import ResidentModel, add_lora
from fedlora.training.private_steps import StepPrivacy, poisson_batches
from fedlora.training.tasks import Batch
from fedlora.training.trainer import LocalTrainer

MakeRun = Callable[..., RunConfig]
CPU = torch.device("cpu")
# What a sound test fails by chance.
BY_CHANCE = 1e-9


class InDoubles:
    """A classification in float64, each of whose examples counts so many times."""

    metric_name = "accuracy"

    def __init__(
        self, task: Any, *, is_alike: bool = True, times: Callable[[Tensor], Tensor] = torch.ones_like
    ) -> None:
        """Without `is_alike` its batches do not say that they have one row for each example."""
        self._task, self._is_alike, self._times = task, is_alike, times

    def collate(self, prepared: Any, indices: np.ndarray, *, device: torch.device | str = "cpu") -> Batch:
        batch: Batch = self._task.collate(prepared, indices, device=device)
        inputs = {name: found.double() if found.is_floating_point() else found for name, found in batch.inputs.items()}
        return Batch(inputs, batch.targets) if self._is_alike else OtherBatch(inputs, batch.targets)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        losses = functional.cross_entropy(output, batch.targets, reduction="none")
        return (losses * self._times(batch.targets.double())).mean()


class OtherBatch(Batch):
    """A batch of which only its task knows what its tensors are."""


@dataclass(frozen=True, eq=False)
class Held:
    """A model that has been moved off its start, in which B is zero, and the examples of a client."""

    resident: ResidentModel
    task: Any
    prepared: Any

    def gradients(self, *, is_kept: bool = False) -> ExampleGradients:
        model = self.resident.peft_model
        frozen = FrozenLayersKept(model, kept=KeptOutputs(), origin="", max_megabytes=100) if is_kept else None
        return ExampleGradients(
            self.resident, self.task, device=CPU, precision=nullcontext, tolerance=1e-3, frozen=frozen
        )

    def by_hand(self, indices: Sequence[int], clip: float) -> list[Tensor]:
        total = [torch.zeros_like(parameter) for parameter in self.resident.parameters]
        for index in indices:
            batch = self.task.collate(self.prepared, np.array([index]))
            loss = self.task.loss(logits_of(self.resident.peft_model(**batch.inputs)), batch)
            found = torch.autograd.grad(loss, self.resident.parameters)
            norm = torch.cat([gradient.flatten() for gradient in found]).norm()
            for tensor, gradient in zip(total, found, strict=True):
                tensor.add_(gradient, alpha=min(1.0, clip / float(norm)))
        return total


def held(config: RunConfig, **of_task: Any) -> Held:
    torch.manual_seed(0)
    data = load_federated_data(config)
    base = load_base_model(config, data.labels)
    resident = add_lora(base.module, config.lora, heads=base.heads, task_type=base.peft_task_type, name="tiny")
    resident.set_training(False)
    prepared = base.task.prepare(next(iter(data.clients.values())).training)
    task: Any = base.task
    if config.task.kind != "causal_lm":
        resident.peft_model.double()
        task = InDoubles(task, **of_task)
    with torch.no_grad():
        for parameter in resident.parameters:
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return Held(resident, task, prepared)


@pytest.fixture
def texts(tmp_path: Any) -> dict[str, str]:
    path = tmp_path / "texts.csv"
    rows = [f"{('bad', 'good')[place % 2]},a {'very ' * place}good film,reader" for place in range(12)]
    path.write_text("\n".join(["label,text,source", *rows]))
    return {"path": str(path)}


@pytest.mark.parametrize("way", ["together", "alone", "with frozen layers", "texts", "conversations"])
def test_the_sum_is_that_of_each_gradient_clipped_by_itself(
    way: str,
    vision_run: MakeRun,
    text_run: MakeRun,
    chat_run: MakeRun,
    texts: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    upper = {"exclude_modules": r".*\.0\..*"}
    match way:
        case "texts":
            ours = held(text_run(data=texts))
        case "conversations":
            ours = held(chat_run())
        case "with frozen layers":
            ours = held(vision_run(lora=upper))
        case _:
            ours = held(vision_run(), is_alike=way == "together")
    gradients, indices = ours.gradients(is_kept=way == "with frozen layers"), [3, 1, 4, 5]
    norms = [float(torch.cat([one.flatten() for one in ours.by_hand([index], 1e9)]).norm()) for index in indices]
    # Some are clipped, and some are not.
    clip = float(np.median(norms))

    found = gradients.clipped_sum(ours.prepared, [np.array(indices[:3]), np.array(indices[3:])], clip=clip)

    rtol = 1e-3 if way == "conversations" else 1e-9
    for one, other in zip(found.gradients, ours.by_hand(indices, clip), strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * clip)
    assert found.num_not_finite == 0
    together = "together for the examples" in caplog.text
    assert together == (way in ("together", "with frozen layers"))
    assert together or "one after the other: " in caplog.text


def test_a_gradient_that_is_not_finite_counts_as_none(vision_run: MakeRun) -> None:
    ours = held(vision_run(), times=lambda targets: torch.where(targets == 0, torch.inf, 1.0))
    labels = ours.prepared.targets[:6]

    found = ours.gradients().clipped_sum(ours.prepared, [np.arange(6)], clip=0.1)

    others = [place for place in range(6) if labels[place] != 0]
    assert found.num_not_finite == 6 - len(others) > 0
    for one, other in zip(found.gradients, ours.by_hand(others, 0.1), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def trained(ours: Held, config: RunConfig, privacy: StepPrivacy, **settings: Any) -> Tensor:
    """Return by how much a round's steps have moved what is trained, flat."""
    plain = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 1.0, "steps": 1, "precision": "float32"}
    train = config.train.model_copy(update={**plain, **settings})
    before = [parameter.detach().clone() for parameter in ours.resident.parameters]
    trainer: LocalTrainer[Any] = LocalTrainer(ours.resident, ours.task, train, device=CPU)
    trainer.train(ours.prepared, progress=(0.0, 1.0), batch_seed=1, dropout_seed=1, privacy=privacy)
    pairs = zip(ours.resident.parameters, before, strict=True)
    return torch.cat([(parameter.detach() - start).flatten() for parameter, start in pairs])


def test_a_huge_example_moves_a_step_by_the_clip_over_the_batch_and_no_further(vision_run: MakeRun) -> None:
    config = vision_run()
    ours = held(config, times=lambda targets: torch.where(targets == 0, 1e6, 0.0))
    size = len(ours.prepared)
    num_huge = int((ours.prepared.targets == 0).sum())

    moved = trained(ours, config, StepPrivacy(1e-9, 0.25), batch_size=size)

    assert 0.0 < float(moved.norm()) <= 0.25 * num_huge / size * (1 + 1e-6)
    one = held(config, times=lambda targets: torch.full_like(targets, 1e6))
    pixels, targets = one.prepared.pixels[:1], one.prepared.targets[:1]
    alone = replace(one, prepared=replace(one.prepared, pixels=pixels, targets=targets))
    assert float(trained(alone, config, StepPrivacy(1e-9, 0.25), batch_size=1).norm()) == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_a_step_without_gradients_is_noise_of_the_stated_size(
    vision_run: MakeRun, micro_batch_size: int | None
) -> None:
    config = vision_run()
    ours = held(config, times=torch.zeros_like)
    noise = StepPrivacy(2.0, 0.5)

    moved = trained(ours, config, noise, steps=3, batch_size=10, micro_batch_size=micro_batch_size)

    squares = float((moved / (2.0 * 0.5 / 10)).square().sum()) / 3
    low, high = stats.chi2.ppf([BY_CHANCE / 2, 1 - BY_CHANCE / 2], df=len(moved))
    assert low < squares < high
    again = trained(ours, config, noise, steps=3, batch_size=10)
    assert not torch.equal(moved, again)


def test_beyond_a_smaller_rank_there_is_no_noise(vision_run: MakeRun) -> None:
    config = vision_run()
    ours = held(config, times=torch.zeros_like)
    smaller = ours.resident.read()
    layers = {
        path: replace(layer, A=layer.A[:2].clone(), B=layer.B[:, :2].clone()) for path, layer in smaller.layers.items()
    }
    ours.resident.load(replace(smaller, layers=layers))

    trained(ours, config, StepPrivacy(2.0, 0.5), steps=2)

    for name, parameter in ours.resident.trained().items():
        if "lora_A" in name:
            assert parameter[2:].abs().max() == 0.0 < parameter[:2].abs().min()
        elif "lora_B" in name:
            assert parameter[:, 2:].abs().max() == 0.0 < parameter[:, :2].abs().min()


def test_a_factor_that_is_not_trained_has_no_noise(vision_run: MakeRun) -> None:
    """Under FFA-LoRA, so that B A has noise in proportion to A, and none times noise."""
    config = vision_run()
    ours = held(config)
    given = ours.resident.read()
    ours.resident.load(given, trains=("B",))
    trained(ours, config, StepPrivacy(1.0, 1.0))
    for path, layer in ours.resident.read().layers.items():
        assert layer.A.equal(given.layers[path].A)
        assert not layer.B.equal(given.layers[path].B)


def test_an_example_is_in_each_batch_with_the_same_probability() -> None:
    num_examples, batch_size, num_steps = 50, 10, 400
    batches = poisson_batches(num_examples, batch_size, num_steps)
    counts = np.bincount(np.concatenate(batches), minlength=num_examples)
    chance = BY_CHANCE / (2 * num_examples)
    low, high = stats.binom.ppf([chance, 1 - chance], num_steps, batch_size / num_examples)
    assert low <= counts.min() < counts.max() <= high
    assert len({len(batch) for batch in batches}) > 3
    assert all(len(set(batch.tolist())) == len(batch) for batch in batches)
    assert [batch.tolist() for batch in poisson_batches(5, 5, 2)] == [[0, 1, 2, 3, 4]] * 2


def test_steps_are_noise_where_no_example_is_drawn(vision_run: MakeRun) -> None:
    """Of 48 examples one is drawn in a step, on average: in 30 steps, none in some of them."""
    config = vision_run()
    moved = trained(held(config), config, StepPrivacy(1.0, 1.0), steps=30, batch_size=1)
    assert moved.isfinite().all()


def test_float16_is_refused(vision_run: MakeRun) -> None:
    config = vision_run()
    with pytest.raises(ModelError, match="does not go with float16"):
        trained(held(config), config, StepPrivacy(1.0, 1.0), precision="float16")
