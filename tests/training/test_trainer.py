"""The training loop against a loop written by hand, its reproducibility, and evaluation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedlora.adapters import Adapter, pack
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.models.base_model import load_base_model
from fedlora.models.devices import choose_device
from fedlora.training import trainer as trainer_module
from fedlora.training.data import load_federated_data
from fedlora.training.peft_bridge import add_lora
from fedlora.training.schedule import learning_rate_factor
from fedlora.training.trainer import LocalTrainer, TrainingResult, _batch_indices

MakeRun = Callable[..., RunConfig]
CPU = torch.device("cpu")


class Bench:
    """A trainer with two clients' data and the run's first adapter."""

    def __init__(self, config: RunConfig) -> None:
        torch.manual_seed(0)
        data = load_federated_data(config)
        base = load_base_model(config, data.labels)
        self.resident = add_lora(base.module, config.lora, heads=base.heads, name="tiny")
        self.initial = self.resident.read()
        self.task = base.task
        self.trainer: LocalTrainer[Any] = LocalTrainer(self.resident, base.task, config.train, device=CPU)
        self.mine, self.other = (base.task.prepare(data.clients[name].training) for name in ("chalk", "print"))
        self.test = base.task.prepare(data.test)

    def train(self, *, progress: tuple[float, float] = (0.0, 0.1), seed: int = 1) -> TrainingResult:
        """Train from the first adapter on the first client's examples."""
        self.resident.load(self.initial)
        return self.trainer.train(self.mine, progress=progress, batch_seed=seed, dropout_seed=seed)

    def batches(self, batch_size: int, num_steps: int, seed: int = 1) -> list[Any]:
        indices = _batch_indices(len(self.mine), batch_size, np.random.default_rng(seed))
        return [self.task.collate(self.mine, next(indices)) for _ in range(num_steps)]


@pytest.fixture
def bench(vision_run: MakeRun) -> Callable[..., Bench]:
    """Return a function that gives a bench over a run with changed sections."""
    return lambda **sections: Bench(vision_run(**sections))


def distance(one: Adapter, other: Adapter) -> float:
    """Return the largest difference between two adapters' numbers."""
    pairs = [(one.dense[path], other.dense[path]) for path in one.dense]
    for path, layer in one.layers.items():
        pairs += [(layer.A, other.layers[path].A), (layer.B, other.layers[path].B)]
    return max(float((left - right).abs().max()) for left, right in pairs)


@pytest.mark.parametrize(
    "train",
    [
        {},
        {"weight_decay": 0.1, "max_grad_norm": 0.01},
        {"max_grad_norm": 0.0, "schedule": "cosine", "warmup": 0.05},
        {"optimizer": "sgd", "learning_rate": 0.1},
        {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.1, "schedule": "linear"},
    ],
    ids=str,
)
def test_training_equals_a_loop_written_by_hand(bench: Callable[..., Bench], train: dict[str, Any]) -> None:
    ours = bench(train={"steps": 4, **train})
    result = ours.train(progress=(0.0, 0.1))
    trained = ours.resident.read()
    settings = ours.trainer.settings

    ours.resident.load(ours.initial)
    model = ours.resident.peft_model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, weight_decay=settings.weight_decay)
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, momentum=settings.momentum, weight_decay=settings.weight_decay)
    losses = []
    for step, batch in enumerate(ours.batches(settings.batch_size, 4)):
        factor = learning_rate_factor((step + 0.5) / 4 * 0.1, schedule=settings.schedule, warmup=settings.warmup)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
        loss = functional.cross_entropy(model(**batch.inputs), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        if settings.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        losses.append(float(loss.detach()))

    assert distance(trained, ours.initial) > 1e-4
    assert distance(trained, ours.resident.read()) < 1e-6
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert result.num_steps == 4


def test_a_run_in_two_rounds_has_the_rates_of_one_round_twice_as_long(bench: Callable[..., Bench]) -> None:
    """With SGD without momentum, and the same batch in every step."""
    ours = bench(
        train={"steps": 2, "batch_size": 1000, "optimizer": "sgd", "momentum": 0.0, "schedule": "cosine", "warmup": 0.3}
    )
    ours.train(progress=(0.0, 0.5))
    ours.trainer.train(ours.mine, progress=(0.5, 1.0), batch_seed=2, dropout_seed=2)
    in_two = ours.resident.read()
    ours.trainer.settings = ours.trainer.settings.model_copy(update={"steps": 4})
    ours.train(progress=(0.0, 1.0))
    assert distance(in_two, ours.resident.read()) < 1e-6


def test_a_run_of_a_single_step_learns_under_every_schedule(bench: Callable[..., Bench]) -> None:
    for schedule in ("constant", "linear", "cosine"):
        ours = bench(train={"steps": 1, "schedule": schedule, "warmup": 0.1})
        ours.train(progress=(0.0, 1.0))
        assert distance(ours.resident.read(), ours.initial) > 0


def test_training_learns(bench: Callable[..., Bench]) -> None:
    ours = bench(train={"steps": 30, "learning_rate": 0.01})
    everything = np.arange(len(ours.mine))
    before = ours.trainer.evaluate(ours.mine, everything, batch_size=64)
    ours.train()
    after = ours.trainer.evaluate(ours.mine, everything, batch_size=64)
    assert after.metrics.mean() > 0.9 > before.metrics.mean()


def test_seconds_are_told_by_phase_and_fit_together(bench: Callable[..., Bench]) -> None:
    seconds = bench().train().seconds
    assert seconds.keys() == {"forward", "backward", "optimizer", "training"}
    assert min(seconds.values()) > 0
    assert seconds["forward"] + seconds["backward"] + seconds["optimizer"] <= seconds["training"]


def test_the_same_seeds_give_the_same_bits_whatever_the_model_did_before(bench: Callable[..., Bench]) -> None:
    ours = bench(lora={"dropout": 0.3}, train={"steps": 3})
    ours.train()
    first = pack(ours.resident.read())

    ours.trainer.train(ours.other, progress=(0.5, 0.6), batch_seed=9, dropout_seed=9)
    ours.trainer.evaluate(ours.test, np.arange(len(ours.test)), batch_size=7)
    torch.rand(5)
    ours.train()

    assert pack(ours.resident.read()) == first


def test_another_worker_gives_the_same_bits(bench: Callable[..., Bench]) -> None:
    adapters = []
    for _ in range(2):
        ours = bench(lora={"dropout": 0.3})
        ours.train()
        adapters.append(pack(ours.resident.read()))
    assert adapters[0] == adapters[1]


def test_other_seeds_give_other_bits(bench: Callable[..., Bench]) -> None:
    """The order of batches and the dropout each count."""
    ours = bench(lora={"dropout": 0.3})
    adapters = []
    for batch_seed, dropout_seed in ((1, 1), (2, 1), (1, 2)):
        ours.resident.load(ours.initial)
        ours.trainer.train(ours.mine, progress=(0.0, 0.1), batch_seed=batch_seed, dropout_seed=dropout_seed)
        adapters.append(pack(ours.resident.read()))
    assert len(set(adapters)) == 3


def test_a_step_that_an_error_cut_off_leaves_no_trace(bench: Callable[..., Bench]) -> None:
    ours = bench()
    ours.train()
    expected = pack(ours.resident.read())
    batch = ours.batches(8, 1)[0]
    functional.cross_entropy(ours.resident.peft_model(**batch.inputs), batch.targets).backward()

    ours.train()

    assert pack(ours.resident.read()) == expected


@pytest.mark.parametrize(
    ("epochs", "batch_size", "num_examples", "expected"),
    [(1.0, 8, 80, 10), (0.5, 8, 80, 5), (2.0, 8, 20, 5), (0.01, 8, 80, 1), (3.0, 16, 5, 3)],
)
def test_epochs_are_counted_in_steps(
    bench: Callable[..., Bench], epochs: float, batch_size: int, num_examples: int, expected: int
) -> None:
    ours = bench(train={"steps": None, "epochs": epochs, "batch_size": batch_size})
    assert ours.trainer.num_steps(num_examples) == expected


def test_a_pass_takes_each_example_once() -> None:
    batches = _batch_indices(10, 4, np.random.default_rng(0))
    drawn = np.concatenate([next(batches) for _ in range(5)])
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist()


def test_a_batch_larger_than_the_data_set_is_the_data_set() -> None:
    batches = _batch_indices(3, 8, np.random.default_rng(0))
    assert [sorted(next(batches)) for _ in range(3)] == [[0, 1, 2]] * 3


@pytest.mark.parametrize("batch_size", [1, 1000])
def test_batches_of_one_and_of_everything_train(bench: Callable[..., Bench], batch_size: int) -> None:
    ours = bench(train={"batch_size": batch_size})
    assert ours.train().is_finite
    assert distance(ours.resident.read(), ours.initial) > 0


def test_bfloat16_trains_nearly_as_float32_and_its_adapter_is_float32(bench: Callable[..., Bench]) -> None:
    exact, ours = bench(train={"precision": "float32"}), bench(train={"precision": "bfloat16"})
    loss, rounded = exact.train().loss, ours.train().loss
    assert rounded != loss
    assert rounded == pytest.approx(loss, rel=0.02)
    assert all(layer.A.dtype == torch.float32 for layer in ours.resident.read().layers.values())

    everything = np.arange(len(ours.test))
    exact.resident.load(exact.initial)
    ours.resident.load(exact.initial)
    losses = [one.trainer.evaluate(one.test, everything, batch_size=16).losses for one in (exact, ours)]
    assert not np.array_equal(*losses)
    np.testing.assert_allclose(*losses, atol=0.1)


def test_auto_precision_on_the_cpu_is_float32(bench: Callable[..., Bench]) -> None:
    assert bench(train={"precision": "auto"}).train().loss == bench(train={"precision": "float32"}).train().loss


def test_a_loss_that_is_no_number_is_told(bench: Callable[..., Bench]) -> None:
    result = bench(train={"steps": 5, "learning_rate": 1e30}).train()
    assert not result.is_finite
    assert not np.isfinite(result.loss)


def test_an_adapter_that_the_last_step_broke_is_told(bench: Callable[..., Bench]) -> None:
    """Its loss was computed before the step, and is a number."""
    result = bench(train={"steps": 1, "learning_rate": 1e39}).train()
    assert np.isfinite(result.loss)
    assert not result.is_finite


def test_evaluation_equals_a_hand_computation_whatever_the_batch_size(bench: Callable[..., Bench]) -> None:
    ours = bench()
    ours.train()
    indices = np.array([5, 0, 17, 2, 11])
    batch = ours.task.collate(ours.test, indices)
    model = ours.resident.peft_model.eval()
    with torch.no_grad():
        chances = model(**batch.inputs).double().softmax(dim=-1)
    labels = batch.targets

    for batch_size in (1, 2, 5, 100):
        judged = ours.trainer.evaluate(ours.test, indices, batch_size=batch_size)
        np.testing.assert_allclose(judged.losses, -chances[range(5), labels].log(), atol=1e-5)
        assert judged.predictions.tolist() == chances.argmax(1).tolist()
        assert judged.metrics.tolist() == (chances.argmax(1) == labels).double().tolist()


def test_no_examples_have_no_scores(bench: Callable[..., Bench]) -> None:
    ours = bench()
    judged = ours.trainer.evaluate(ours.test, np.empty(0, np.int64), batch_size=4)
    assert [len(column) for column in vars(judged).values()] == [0, 0, 0, 0]


def test_evaluation_is_without_dropout_and_changes_nothing(bench: Callable[..., Bench]) -> None:
    ours = bench(lora={"dropout": 0.5})
    ours.train()
    before = pack(ours.resident.read())
    everything = np.arange(len(ours.test))
    losses = [ours.trainer.evaluate(ours.test, everything, batch_size=16).losses for _ in range(2)]
    assert np.array_equal(*losses)
    assert pack(ours.resident.read()) == before


def test_a_device_that_is_not_there_is_one_line() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(ConfigError, match=f"train.device is '{missing}'"):
        choose_device(missing)


@pytest.mark.gpu
def test_a_gpu_trains_nearly_as_the_cpu(bench: Callable[..., Bench]) -> None:
    ours = bench(train={"precision": "float32"})
    ours.train()
    expected = ours.resident.read()
    device = torch.device("cuda")
    ours.resident.peft_model.to(device)
    ours.trainer.device = device
    ours.train()
    assert distance(ours.resident.read(), expected) < 1e-3


def out_of_memory_above(ours: Bench, num_examples: int) -> list[int]:
    """Make forward passes over more examples fail as on a full GPU; the sizes that were tried go into the list."""
    sizes: list[int] = []

    def refuse(_module: Any, _positional: Any, named: dict[str, torch.Tensor]) -> None:
        sizes.append(len(named["pixel_values"]))
        if sizes[-1] > num_examples:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    ours.resident.peft_model.register_forward_pre_hook(refuse, with_kwargs=True)
    return sizes


def test_out_of_memory_halves_the_forward_pass_and_the_step_stays_the_same(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    sgd = {"optimizer": "sgd", "learning_rate": 0.1}
    whole, ours = bench(train=sgd), bench(train=sgd)
    expected = whole.train()
    sizes = out_of_memory_above(ours, 3)
    result = ours.train()
    assert sizes == [8, 4, *([2] * 4 * 3)]
    assert (result.micro_batch_size, expected.micro_batch_size) == (2, 0)
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    assert distance(ours.resident.read(), whole.resident.read()) < 1e-5
    assert "out of memory: 4 examples a forward pass from here on, not 8" in caplog.text
    # What was learned of the memory holds for the rounds that follow.
    sizes.clear()
    ours.train()
    assert set(sizes) == {2}


def test_one_example_that_does_not_fit_is_an_honest_failure(bench: Callable[..., Bench]) -> None:
    ours = bench()
    out_of_memory_above(ours, 0)
    with pytest.raises(torch.OutOfMemoryError):
        ours.train()


def test_out_of_memory_while_judging_judges_fewer_at_once(bench: Callable[..., Bench]) -> None:
    ours = bench()
    expected = ours.trainer.evaluate(ours.test, np.arange(10), batch_size=8)
    sizes = out_of_memory_above(ours, 4)
    judged = ours.trainer.evaluate(ours.test, np.arange(10), batch_size=8)
    assert sizes == [8, 4, 4, 2]
    np.testing.assert_allclose(judged.losses, expected.losses, atol=1e-5)
    assert judged.predictions.tolist() == expected.predictions.tolist()


def test_fedprox_is_the_gradient_of_its_penalty(bench: Callable[..., Bench]) -> None:
    ours = bench(
        train={"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.1, "max_grad_norm": 0.0, "proximal_mu": 2.0}
    )
    ours.train()
    trained = ours.resident.read()

    ours.resident.load(ours.initial)
    start = [parameter.detach().clone() for parameter in ours.resident.parameters]
    ours.resident.set_training(True)
    for batch in ours.batches(8, 3):
        logits = ours.resident.peft_model(**batch.inputs)
        moved = zip(ours.resident.parameters, start, strict=True)
        penalty = sum((parameter - begin).square().sum() for parameter, begin in moved)
        loss = functional.cross_entropy(logits, batch.targets) + 2.0 / 2 * penalty
        gradients = torch.autograd.grad(loss, ours.resident.parameters)
        with torch.no_grad():
            for parameter, gradient in zip(ours.resident.parameters, gradients, strict=True):
                parameter.sub_(0.1 * gradient)
    assert distance(trained, ours.resident.read()) < 1e-6


def test_a_strong_pull_keeps_an_update_near_the_start(bench: Callable[..., Bench]) -> None:
    moved = []
    for proximal_mu in (0.0, 20.0):
        ours = bench(train={"optimizer": "sgd", "learning_rate": 0.02, "steps": 20, "proximal_mu": proximal_mu})
        ours.train()
        moved.append(distance(ours.resident.read(), ours.initial))
    assert moved[1] < 0.5 * moved[0]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_kept_moments_make_two_rounds_one(bench: Callable[..., Bench], optimizer: str) -> None:
    ours = bench(train={"optimizer": optimizer, "optimizer_state": "keep", "batch_size": 100, "steps": 3})
    ours.resident.load(ours.initial)
    whole = {"progress": (0.0, 1.0), "batch_seed": 1, "dropout_seed": 1}
    ours.trainer.train(ours.mine, **whole, max_steps=3)  # type: ignore[arg-type]
    last = ours.trainer.train(ours.mine, **whole, max_steps=3)  # type: ignore[arg-type]
    reset = ours.resident.read()
    ours.resident.load(ours.initial)
    first = ours.trainer.train(ours.mine, **whole, max_steps=3)  # type: ignore[arg-type]
    ours.trainer.train(ours.mine, **whole, max_steps=3, moments=first.moments)  # type: ignore[arg-type]
    kept = ours.resident.read()
    ours.resident.load(ours.initial)
    six = bench(train={"optimizer": optimizer, "batch_size": 100, "steps": 6})
    six.resident.load(six.initial)
    six.trainer.train(six.mine, **whole)  # type: ignore[arg-type]
    assert distance(kept, six.resident.read()) < 1e-6
    assert distance(reset, six.resident.read()) > 1e-4
    assert last.moments.keys() == first.moments.keys()


def test_a_round_that_takes_too_long_ends_after_the_step_at_work(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    ours = bench(train={"steps": 6})
    bounded = LocalTrainer(ours.resident, ours.task, ours.trainer.settings, device=CPU, max_seconds=1e-9)
    ours.resident.load(ours.initial)
    result = bounded.train(ours.mine, progress=(0.0, 0.1), batch_seed=1, dropout_seed=1)
    assert (result.num_steps, result.is_finite) == (1, True)
    assert distance(ours.resident.read(), ours.initial) > 0
    assert "ended after 1 of 6 steps: limits.max_seconds is over" in caplog.text
    assert ours.train().num_steps == 6


def test_moments_that_are_not_kept_are_not_copied(bench: Callable[..., Bench]) -> None:
    assert bench().train().moments == {}


@pytest.mark.slow  # a minute of compiling, and it needs a C++ compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_trains_as_the_plain_one(bench: Callable[..., Bench]) -> None:
    plain, compiled = bench(), bench(train={"compile": True})
    expected, result = plain.train(), compiled.train()
    assert result.loss == pytest.approx(expected.loss, rel=1e-4)
    assert distance(plain.resident.read(), compiled.resident.read()) < 1e-3


def test_the_loss_scale_of_float16_is_each_rounds_own(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that which steps are left out as too large says nothing of who was trained here before."""
    monkeypatch.setattr(trainer_module, "_FIRST_LOSS_SCALE", 2.0**18)
    ours = bench(train={"steps": 6, "precision": "float16"})
    first = ours.train()
    before = ours.resident.read()
    assert ours.train().loss == first.loss
    assert distance(before, ours.resident.read()) == 0.0
    assert distance(before, ours.initial) > 0.0
