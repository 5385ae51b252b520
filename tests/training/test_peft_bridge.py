"""Adapters in and out of a model in memory, and what PEFT alone makes of them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn

from fedlora.adapters import Adapter, LoraLayer, load_adapter, pack, save_adapter, unpack
from fedlora.adapters.keys import to_state_dict
from fedlora.common.config import LoraSection, RunConfig
from fedlora.common.errors import AdapterError, ModelError
from fedlora.models.base_model import load_base_model
from fedlora.training.peft_bridge import ResidentModel, add_lora

MakeRun = Callable[..., RunConfig]
LABELS = ("a", "b", "c")
PIXELS = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Perceptron(nn.Module):
    """A user's own model: a convolution, batch norm, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.default_hidden = nn.Linear(4 * 7 * 7, 16)
        self.classifier = nn.Sequential(nn.ReLU(), nn.Linear(16, 3))

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.default_hidden(self.features(pixel_values)))
        return logits


def resident_vit(config: RunConfig, *, seed: int = 0) -> ResidentModel:
    torch.manual_seed(seed)
    base = load_base_model(config, LABELS)
    return add_lora(base.module, config.lora, heads=base.heads, task_type=base.peft_task_type, name=config.model.name)


def resident_perceptron(*, targets: tuple[str, ...] = ("default_hidden",), dropout: float = 0.0) -> ResidentModel:
    torch.manual_seed(0)
    settings = LoraSection(rank=2, target_modules=targets, dropout=dropout)
    return add_lora(Perceptron(), settings, heads=("classifier",), name="perceptron")


def logits(model: nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        output: Tensor = model(pixel_values=PIXELS)
    return output


def scrambled(adapter: Adapter, seed: int = 7) -> Adapter:
    """Return an adapter of the same shapes with other numbers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    layers = {path: LoraLayer(draw(pair.A), draw(pair.B), pair.scaling) for path, pair in adapter.layers.items()}
    return Adapter(layers, {path: draw(tensor) for path, tensor in adapter.dense.items()}, adapter.config)


def assert_equal(found: Adapter, expected: Adapter) -> None:
    tensors, others = to_state_dict(found), to_state_dict(expected)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def test_what_is_loaded_is_read_again_bit_for_bit(vision_run: MakeRun) -> None:
    resident = resident_vit(vision_run())
    given = scrambled(resident.read())

    resident.load(unpack(pack(given)))

    assert_equal(resident.read(), given)


def test_what_was_read_stays_as_it_was_when_the_model_goes_on(vision_run: MakeRun) -> None:
    resident = resident_vit(vision_run())
    first = resident.read()
    kept = unpack(pack(first))
    resident.load(scrambled(first))
    assert_equal(first, kept)


def test_a_fresh_adapter_changes_nothing_and_a_loaded_one_does(vision_run: MakeRun) -> None:
    torch.manual_seed(0)
    plain = load_base_model(vision_run(), LABELS).module
    before = logits(plain)
    resident = resident_vit(vision_run())
    fresh = resident.read()

    assert torch.equal(logits(resident.peft_model), before)
    resident.load(scrambled(fresh))
    assert not torch.allclose(logits(resident.peft_model), before)
    resident.load(fresh)
    assert torch.equal(logits(resident.peft_model), before)


def test_the_adapter_acts_as_its_formula_says() -> None:
    """W x + b + scaling B A x, with scaling = alpha / rank."""
    resident = resident_perceptron()
    given = scrambled(resident.read())
    resident.load(given)
    pair = given.layers["default_hidden"]
    assert pair.scaling == 16.0 / 2
    torch.manual_seed(0)
    plain = Perceptron()
    with torch.no_grad():
        plain.default_hidden.weight += pair.scaling * pair.B @ pair.A
        plain.classifier[1].weight.copy_(given.dense["classifier.1.weight"])
        plain.classifier[1].bias.copy_(given.dense["classifier.1.bias"])
    torch.testing.assert_close(logits(resident.peft_model), logits(plain), rtol=1e-4, atol=1e-4)


def test_only_lora_pairs_and_heads_are_trained(vision_run: MakeRun) -> None:
    resident = resident_vit(vision_run())
    adapter = resident.read()
    trained = sum(parameter.numel() for parameter in resident.peft_model.parameters() if parameter.requires_grad)
    assert trained * 4 == adapter.size_bytes()
    assert {path.rpartition(".")[2] for path in adapter.layers} == {"q_proj", "v_proj"}
    assert set(adapter.dense) == {"classification_head.weight", "classification_head.bias"}


@pytest.mark.parametrize("damage", ["rank", "missing_layer", "extra_layer", "missing_head", "head_size", "scaling"])
def test_an_adapter_that_does_not_fit_leaves_the_model_unchanged(vision_run: MakeRun, damage: str) -> None:
    resident = resident_vit(vision_run())
    before = resident.read()
    given = scrambled(before)
    layers, dense = dict(given.layers), dict(given.dense)
    last = sorted(layers)[-1]
    if damage == "rank":
        A, B = layers[last].A, layers[last].B
        layers[last] = LoraLayer(torch.cat([A, A]), torch.cat([B, B], 1), layers[last].scaling)
    elif damage == "missing_layer":
        del layers[last]
    elif damage == "extra_layer":
        layers["embeddings.q_proj"] = layers[last]
    elif damage == "missing_head":
        del dense["classification_head.weight"]
    elif damage == "head_size":
        dense["classification_head.weight"] = torch.zeros(5, 64)
    elif damage == "scaling":
        layers[last] = dataclasses.replace(layers[last], scaling=1.0)

    with pytest.raises(AdapterError):
        resident.load(Adapter(layers, dense, given.config))

    assert_equal(resident.read(), before)


@pytest.mark.parametrize("head", ["linear", "auto"])
def test_peft_alone_gives_the_same_logits_with_the_head(vision_run: MakeRun, tmp_path: Path, head: str) -> None:
    config = vision_run(model={"head": head})
    resident = resident_vit(config)
    resident.load(scrambled(resident.read()))
    save_adapter(resident.read(), tmp_path)

    torch.manual_seed(1)
    loaded = PeftModel.from_pretrained(load_base_model(config, LABELS).module, str(tmp_path))

    expected, found = resident.peft_model(pixel_values=PIXELS), loaded(pixel_values=PIXELS)
    torch.testing.assert_close(getattr(found, "logits", found), getattr(expected, "logits", expected), rtol=0, atol=0)


def test_the_plain_encoder_takes_the_lora_part(vision_run: MakeRun, tiny_vision_model: Path, tmp_path: Path) -> None:
    resident = resident_vit(vision_run())
    given = scrambled(resident.read())
    resident.load(given)
    save_adapter(given, tmp_path)

    plain = transformers.AutoModel.from_pretrained(tiny_vision_model)
    before = plain(pixel_values=PIXELS).last_hidden_state
    encoder = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    hidden = encoder(pixel_values=PIXELS).last_hidden_state

    assert not torch.allclose(hidden, before)
    features = torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], dim=1)
    expected = nn.functional.linear(
        features, given.dense["classification_head.weight"], given.dense["classification_head.bias"]
    )
    torch.testing.assert_close(logits(resident.peft_model), expected, rtol=1e-5, atol=1e-5)


def test_what_peft_saves_of_the_model_is_what_we_save(vision_run: MakeRun, tmp_path: Path) -> None:
    resident = resident_vit(vision_run())
    resident.load(scrambled(resident.read()))
    resident.peft_model.save_pretrained(str(tmp_path / "theirs"))
    save_adapter(resident.read(), tmp_path / "ours")
    theirs, ours = load_adapter(tmp_path / "theirs"), load_adapter(tmp_path / "ours")
    assert_equal(theirs, ours)
    differing = {key for key in ours.config if ours.config[key] != theirs.config.get(key)}
    assert differing <= {"base_model_name_or_path", "auto_mapping", "target_modules", "modules_to_save"}


def test_a_users_own_model_keeps_its_names_even_where_they_look_like_pefts() -> None:
    adapter = resident_perceptron().read()
    assert set(adapter.layers) == {"default_hidden"}
    assert set(adapter.dense) == {"classifier.1.weight", "classifier.1.bias"}


def test_batch_statistics_stay_those_of_the_checkpoint() -> None:
    resident = resident_perceptron()
    statistics = {name: value.clone() for name, value in resident.peft_model.named_buffers()}
    assert any("running_mean" in name for name in statistics)

    resident.set_training(True)
    resident.peft_model(pixel_values=PIXELS[:1])

    assert all(torch.equal(value, statistics[name]) for name, value in resident.peft_model.named_buffers())


def test_dropout_is_on_in_training_and_off_in_evaluation() -> None:
    resident = resident_perceptron(dropout=0.5)
    resident.load(scrambled(resident.read()))

    resident.set_training(True)
    assert not torch.equal(resident.peft_model(pixel_values=PIXELS), resident.peft_model(pixel_values=PIXELS))
    resident.set_training(False)
    assert torch.equal(resident.peft_model(pixel_values=PIXELS), resident.peft_model(pixel_values=PIXELS))


def test_an_adapter_with_a_number_that_is_none_is_not_finite() -> None:
    resident = resident_perceptron()
    assert resident.is_finite()
    adapter = resident.read()
    adapter.dense["classifier.1.bias"][1] = float("inf")
    resident.load(adapter)
    assert not resident.is_finite()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"target_modules": ("qqq",)}, "'qqq' matches no linear layer"),
        ({"target_modules": ("q_proj", "mlp")}, "'mlp' matches layers.0.mlp, a "),
        ({"target_modules": ("projection",)}, "'projection' matches embeddings.patch_embeddings.projection, a Conv2d"),
        ({"target_modules": ("classification_head",)}, "matches no linear layer"),
        ({"rank": 33}, "lora.rank is 33, more than q_proj"),
    ],
)
def test_targets_and_ranks_that_do_not_fit_are_refused_in_one_line(
    vision_run: MakeRun, settings: dict[str, object], expected: str
) -> None:
    config = vision_run(lora=settings)
    base = load_base_model(config, LABELS)
    with pytest.raises(ModelError) as refused:
        add_lora(base.module, config.lora, heads=base.heads, name="tiny")
    assert expected in str(refused.value)
    if "rank" not in settings:
        assert "it has fc1, fc2, k_proj, o_proj, q_proj, v_proj" in str(refused.value)


def test_target_modules_can_be_named_by_the_end_of_their_path(vision_run: MakeRun) -> None:
    resident = resident_vit(vision_run(lora={"target_modules": ["1.attention.q_proj", "fc1"]}))
    assert sorted(path.split(".", 1)[1] for path in resident.read().layers) == [
        "0.mlp.fc1",
        "1.attention.q_proj",
        "1.mlp.fc1",
    ]


def test_auto_says_which_linear_layers_there_are_where_it_finds_no_query() -> None:
    with pytest.raises(ModelError, match="it has default_hidden"):
        add_lora(Perceptron(), LoraSection(rank=2), heads=("classifier",), name="perceptron")
    with pytest.raises(ModelError, match="no linear layers outside its head"):
        add_lora(Perceptron(), LoraSection(rank=2), heads=("classifier", "default_hidden"), name="perceptron")


def test_a_head_that_is_not_there_or_would_take_more_than_itself_is_refused() -> None:
    settings = LoraSection(rank=2, target_modules=("default_hidden",))
    with pytest.raises(ModelError, match=r"'clasifier' is no module .* features, default_hidden, classifier"):
        add_lora(Perceptron(), settings, heads=("clasifier",), name="perceptron")
    module = Perceptron()
    module.add_module("old_classifier", nn.Linear(2, 2))
    with pytest.raises(ModelError, match="also how old_classifier ends"):
        add_lora(module, settings, heads=("classifier",), name="perceptron")


@pytest.mark.parametrize(("family", "targets"), [("ConvNext", ["pwconv1", "pwconv2"]), ("ResNet", ["convolution"])])
def test_a_convolutional_encoder_takes_lora_in_its_linear_layers_only(
    vision_run: MakeRun, tmp_path: Path, family: str, targets: list[str]
) -> None:
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
    config_class = getattr(transformers, f"{family}Config")
    settings = config_class(**(sizes if family == "ConvNext" else {**sizes, "embedding_size": 8}))
    getattr(transformers, f"{family}Model")(settings).save_pretrained(tmp_path)
    config = vision_run(model={"name": str(tmp_path)}, lora={"target_modules": targets})
    if family == "ResNet":
        with pytest.raises(ModelError, match="a Conv2d, not a linear layer; it has no linear layers"):
            resident_vit(config)
    else:
        assert len(resident_vit(config).read().layers) == 4
