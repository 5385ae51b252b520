"""A client's own trainer as its script makes it, over the run's LoRA layers; what does not fit the run is refused."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from peft import LoraConfig, PeftModel
from torch import nn
from transformers import Trainer, set_seed

from fedlora.adapters import unpack
from fedlora.adapters.keys import factor_of, to_state_dict
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, DataError, FedloraError, ModelError, one_line
from fedlora.common.random_streams import stream_seed
from fedlora.training.memory import is_out_of_memory
from fedlora.training.own_trainer.reference import Reference, marks_of, require_same_base
from fedlora.training.peft_bridge import ResidentModel, add_lora, saved_name

logger = logging.getLogger(__name__)

MakeTrainer = Callable[[str, RunConfig], Trainer]

# Settings of PEFT with which the same tensors act otherwise than in the run.
_OTHER_LORA = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "use_qalora",
)  # fmt: skip

# numpy takes no larger ones.
MOST_SEED = 2**32
_PARTS = ("validation", "test")


@dataclass(frozen=True, eq=False)
class OwnTrainer:
    """A trainer that fits the run.

    Attributes:
        trainer: the script's.
        resident: its model.
        held: its data sets by part: training, and validation and test where there are any.
    """

    trainer: Trainer
    resident: ResidentModel
    held: Mapping[str, Sized]

    def num_examples(self, part: str) -> int:
        """Return how many examples of "training", "validation" or "test" there are."""
        return len(self.held.get(part, ()))

    @property
    def examples_a_step(self) -> int:
        """The examples of an optimiser step."""
        args = self.trainer.args
        return args.train_batch_size * args.gradient_accumulation_steps


def made_trainer(make_trainer: MakeTrainer, client: str, config: RunConfig, reference: Reference) -> OwnTrainer:
    """Return the trainer that a script makes for a client.

    Random numbers that it draws meanwhile come from the run's seed and the client's name.

    Raises:
        ConfigError: it is no trainer, or its arguments or the run's settings do not let it train in rounds.
        DataError: its data sets cannot be counted.
        ModelError: its model is another one than the run's, or the script raised something.
    """
    _require_settings(config)
    set_seed(stream_seed(config.run.seed, client=client, purpose="trainer") % MOST_SEED)
    with script_at_work("make_trainer"):
        trainer: Any = make_trainer(client, config)
    if not isinstance(trainer, Trainer):
        raise ConfigError(f"make_trainer returned {type(trainer).__name__}; expected a transformers.Trainer")
    _require_trainer(trainer)
    held = _data_sets(trainer)
    return OwnTrainer(trainer, _resident(trainer, config, reference), held)


@contextmanager
def script_at_work(what: str) -> Iterator[None]:
    """Let a script's own code do its part; want of memory and our own errors are passed on as they are.

    Raises:
        ModelError: it raised anything else.
    """
    try:
        yield
    except FedloraError:
        raise
    except (Exception, SystemExit) as error:
        # The end of a process, such as argparse's, would begin anew with each worker that takes its place.
        if is_out_of_memory(error):
            raise
        # It is a user's code: where it went wrong is theirs to read, in their own log.
        logger.exception("%s raised an error", what)
        raise ModelError(
            f"{what} raised {type(error).__name__}: {one_line(str(error) or type(error).__name__)}"
        ) from error


def _require_settings(config: RunConfig) -> None:
    """Refuse what a run asks for and only fedlora's own loop does."""
    train = config.train
    for is_set, key, remedy in (
        (train.proximal_mu > 0, f"train.proximal_mu = {train.proximal_mu:g}", "0"),
        (train.client_momentum > 0, f"train.client_momentum = {train.client_momentum:g}", "0"),
        (config.federation.weighting == "tokens", 'federation.weighting = "tokens"', '"examples"'),
        (config.model.quantization != "none", f'model.quantization = "{config.model.quantization}"', '"none"'),
    ):
        if is_set:
            raise ConfigError(f"{key} is of fedlora's own training, and no trainer of one's own does it; set {remedy}")


def _require_trainer(trainer: Any) -> None:
    """Refuse arguments with which a trainer cannot train in rounds."""
    args = trainer.args
    for is_set, found, remedy in (
        (trainer.model_init is not None, "model_init makes a new model for each training", "give model="),
        (
            trainer.optimizer is not None or trainer.lr_scheduler is not None,
            "optimizers= are ready ones, which cannot start afresh in a round",
            "give optimizer_cls_and_kwargs, or override create_optimizer",
        ),
        (
            args.load_best_model_at_end,
            "load_best_model_at_end would send another adapter than the last",
            "leave it out",
        ),
        *(
            (getattr(args, name), f"{name} would turn the trained model itself into half precision", "leave it out")
            for name in ("bf16_full_eval", "fp16_full_eval")
        ),
        (args.auto_find_batch_size, "auto_find_batch_size begins a round again half trained", "leave it out"),
        (
            args.world_size > 1 or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled,
            "the trainer is one of several processes",
            "a client trains in one: leave out torchrun, deepspeed and fsdp",
        ),
        (
            getattr(trainer.model, "is_quantized", False),
            "the model's weights are quantised, and cannot be compared with the run's",
            "load it without",
        ),
    ):
        if is_set:
            raise ConfigError(f"make_trainer: {found}; {remedy}")


def _data_sets(trainer: Any) -> dict[str, Sized]:
    """Return a trainer's data sets by part: `eval_dataset` is for validation, or has a data set for each part."""
    given = trainer.eval_dataset
    evaluated = given if isinstance(given, dict) else {"validation": given}
    if unknown := [name for name in evaluated if name not in _PARTS]:
        raise DataError(
            f"make_trainer: eval_dataset has {unknown[0]!r}; expected one data set, or {' and '.join(_PARTS)}"
        )
    held = {
        part: found for part, found in {"training": trainer.train_dataset, **evaluated}.items() if found is not None
    }
    for part, found in held.items():
        if not hasattr(found, "__len__") or not hasattr(found, "__getitem__"):
            raise DataError(
                f"make_trainer: the data set for {part} is {type(found).__name__}, which has no length; clients weigh "
                "by their numbers of examples: give one with __len__ and __getitem__"
            )
    if not len(held.get("training", ())):
        raise DataError("make_trainer: train_dataset has no examples")
    return cast(dict[str, Sized], held)


def _resident(trainer: Any, config: RunConfig, reference: Reference) -> ResidentModel:
    """Return a trainer's model with the run's LoRA layers: its own ones, or those that are put into it here."""
    whole = (*reference.heads, *config.lora.modules_to_save)
    require_same_base(marks_of(trainer.model, without=whole), reference.marks, name=config.model.name)
    if not isinstance(trainer.model, PeftModel):
        resident = add_lora(
            trainer.model,
            config.lora,
            heads=reference.heads,
            task_type=reference.peft_task_type,
            name=config.model.name,
            unreached=reference.unreached,
        )
        trainer.model = trainer.model_wrapped = trainer.callback_handler.model = resident.peft_model
        return resident
    _require_same_lora(trainer.model, config, reference)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            # Small steps are lost in half of the bits.
            parameter.data = parameter.data.float()
    resident = ResidentModel(trainer.model, base_model_name=config.model.name)
    own = resident.read().layers
    for path, layer in unpack(reference.initial).layers.items():
        if (found := own[path].scaling) != layer.scaling:
            raise ModelError(
                f"make_trainer: the model's {path} acts with {found:g} B A, the run's with {layer.scaling:g} B A; set "
                "lora_alpha and use_rslora to lora.alpha and lora.use_rslora, or leave LoRA to the run"
            )
    return resident


def _require_same_lora(model: PeftModel, config: RunConfig, reference: Reference) -> None:
    """Check that what a model trains is what the run's adapters hold.

    Raises:
        ModelError: it trains something else.
    """
    remedy = "leave LoRA to the run: give the trainer the plain model"
    if [*model.peft_config] != ["default"] or not isinstance(model.peft_config["default"], LoraConfig):
        kinds = ", ".join(f"{name}: {settings.peft_type}" for name, settings in model.peft_config.items())
        raise ModelError(f"make_trainer: the model has the adapters {kinds}; expected one of LoRA; {remedy}")
    if other := [key for key in _OTHER_LORA if getattr(model.peft_config["default"], key, None) not in (None, False)]:
        raise ModelError(f"make_trainer: the model's LoRA has {other[0]}, which the run's does not; {remedy}")
    found: dict[str, nn.Parameter] = {
        saved_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    expected = to_state_dict(unpack(reference.initial))
    if outside := sorted(name for name in found.keys() - expected.keys() if not factor_of(name)):
        raise ModelError(
            f"make_trainer: the model trains {outside[0]}, which the run's adapter does not have; freeze it, or name "
            "its module in lora.modules_to_save"
        )
    if found.keys() != expected.keys():
        raise ModelError(
            f"make_trainer: the model trains {len(found)} tensors, of {_ends(found)}; the run {len(expected)}, of "
            f"{_ends(expected)} (lora.target_modules, modules_to_save); {remedy}"
        )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise ModelError(
                f"make_trainer: the model's {name} is {tuple(found[name].shape)}, the run's {tuple(tensor.shape)} "
                f"(lora.rank = {config.lora.rank}); {remedy}"
            )


def _ends(names: Mapping[str, object]) -> str:
    """Return what the modules of these tensors are called."""
    paths = (name.partition(".lora_")[0] if factor_of(name) else name.rpartition(".")[0] for name in names)
    return ", ".join(sorted({path.rpartition(".")[2] for path in paths})) or "nothing"
