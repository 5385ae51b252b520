"""What a run would take, before weights are fetched or anything is trained; and what cannot work."""

import os
from dataclasses import dataclass

import torch

from fedlora.common.config import BASE_CHANGING_INITS, CausalLm, RunConfig, idle_settings
from fedlora.common.errors import ModelError
from fedlora.methods import Method, loadable_methods
from fedlora.models.pins import local_checkpoint, pin_lines
from fedlora.planning.clients import planned_clients
from fedlora.planning.private_examples import privacy_lines
from fedlora.planning.server_cost import ServerCost, server_cost
from fedlora.planning.traffic import Traffic, traffic_of
from fedlora.server.rounds.draw import share
from fedlora.server.run_method import method_of
from fedlora.server.run_optimizer import server_optimizer_of
from fedlora.server.run_privacy import client_privacy_of
from fedlora.training.footprint.outline import ASSUMED_LABELS, outline_of
from fedlora.training.footprint.speed import estimated_seconds
from fedlora.training.footprint.step import StepCost, autocast_dtype, step_cost
from fedlora.training.schedule import steps_of_round

# What CUDA itself takes of a GPU, beside torch's allocator, and what is lost between its blocks.
_CUDA_CONTEXT_BYTES = 600 * 2**20
_USABLE_SHARE = 0.95


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    Attributes:
        device: where a client is taken to train: "cuda" or "cpu".
        num_parameters: of the base model.
        num_trained: numbers that a client trains in the first round.
        num_clients: whose updates a round has.
        precision: of the adapters on the wire.
        step: a client's memory, and the work of a step.
        traffic: bytes of each method, the run's own first.
        server: what the run's own method takes of the server.
        training_seconds: of the client with most examples in a round, estimated; None where its device is not here.
        notes: what was assumed, and what to look at.
        epsilon: what the global adapters of all planned rounds tell of one client at most; None without noise.
    """

    name: str
    model: str
    device: str
    num_parameters: int
    num_trained: int
    num_clients: int
    precision: str
    step: StepCost
    traffic: tuple[Traffic, ...]
    server: ServerCost
    training_seconds: float | None
    notes: tuple[str, ...]
    epsilon: float | None = None


def plan_of(config: RunConfig) -> Plan:
    """Return what a run would take.

    Raises:
        FedloraError: it cannot work: the model is missing or of another kind, target modules or ranks do not fit, texts
            are too long, or it takes more memory than the GPU that is here has.
    """
    method = method_of(config)
    privacy = client_privacy_of(config, method)
    device = _device(config)
    outline = outline_of(config, trains=method.plan(1).trains)
    init_changes_base = config.lora.init in BASE_CHANGING_INITS
    changes_base = method.changes_base or init_changes_base
    step = step_cost(outline, config, is_cuda=device == "cuda", changes_base=changes_base)
    _require_memory(step, config, device)
    clients = planned_clients(config)
    num_clients = _num_asked(config, clients.num_clients)

    needs_former = config.train.client_momentum > 0

    def traffic(one: Method) -> Traffic:
        return traffic_of(
            outline.adapter,
            one,
            num_clients=num_clients,
            num_rounds=config.federation.rounds,
            precision=config.wire_precision,
            init_changes_base=init_changes_base,
            needs_former=needs_former,
            form=config.train.shared_moments,
        )

    others = [kind() for name, kind in loadable_methods()[0].items() if name != method.name]
    return Plan(
        name=config.run.name,
        model=config.model.name,
        device=device,
        num_parameters=outline.num_parameters,
        num_trained=outline.num_trained,
        num_clients=num_clients,
        precision=config.wire_precision,
        step=step,
        traffic=tuple(traffic(one) for one in (method, *others)),
        server=server_cost(
            outline.adapter,
            method,
            num_clients=num_clients,
            server_optimizer=server_optimizer_of(config.federation),
            keeps_former=needs_former,
            num_shared_moments=sum(config.train.shared_moments.values()),
        ),
        training_seconds=_training_seconds(step, config, device, num_examples=clients.num_examples),
        notes=(
            *(privacy.notes(config.federation.rounds) if privacy else ()),
            *clients.notes,
            *privacy_lines(config, clients),
            *outline.notes,
            *_notes(config, step, device, num_trained=outline.num_trained),
            *_pin_notes(config),
        ),
        epsilon=None if privacy is None else privacy.epsilon,
    )


def _device(config: RunConfig) -> str:
    """Return the device to plan for: as the run says, else CUDA where it is here or for quantised weights."""
    if config.train.device != "auto":
        return "cuda" if config.train.device == "cuda" else "cpu"
    return "cuda" if torch.cuda.is_available() or config.model.quantization != "none" else "cpu"


def _num_asked(config: RunConfig, num_clients: int) -> int:
    """Return how many of the clients are asked in a round."""
    settings = config.federation
    return settings.cohort or share(settings.fraction, num_clients)


def _training_seconds(step: StepCost, config: RunConfig, device: str, *, num_examples: int) -> float | None:
    """Return what a client with so many examples needs for a round."""
    if device == "cuda" and not torch.cuda.is_available():
        return None
    dtype = autocast_dtype(config, is_cuda=device == "cuda") or torch.float32
    return estimated_seconds(steps_of_round(config.train, num_examples) * step.flops, device, dtype)


def _require_memory(step: StepCost, config: RunConfig, device: str) -> None:
    if device != "cuda" or not torch.cuda.is_available():
        return
    total = torch.cuda.get_device_properties(0).total_memory
    if refusal := too_large(step, config, total):
        raise ModelError(refusal)


def too_large(step: StepCost, config: RunConfig, total: int) -> str:
    """Return why a GPU with `total` bytes cannot do the step, and what to change; nothing where it can."""
    training, evaluation = (sum(parts.values()) for parts in (step.training, step.evaluation))
    room = int(_USABLE_SHARE * total) - _CUDA_CONTEXT_BYTES
    if max(training, evaluation) <= room:
        return ""
    if evaluation > training:
        what, remedies = "judging", [f"evaluation.batch_size below {config.evaluation_batch_size}"]
    else:
        what, remedies = "training", []
        if not config.train.gradient_checkpointing:
            remedies.append("train.gradient_checkpointing = true")
        if (size := config.train.micro_batch_size or config.train.batch_size) > 1:
            remedies.append(f"train.micro_batch_size below {size}")
    if config.model.quantization != "4bit":
        remedies.append('model.quantization = "4bit"')
    if not isinstance(config.task, CausalLm) or not remedies:
        remedies.append("a smaller model")
    else:
        remedies.append("a smaller task.max_length")
    return (
        f"{what} would take {max(training, evaluation) / 1e9:.1f} GB of this GPU's {total / 1e9:.1f} GB, of which "
        f"{room / 1e9:.1f} GB can be used; try {', '.join(remedies)}"
    )


def _notes(config: RunConfig, step: StepCost, device: str, *, num_trained: int) -> list[str]:
    notes = list(idle_settings(config))
    if config.task.kind != "image_classification":
        max_length = getattr(config.task, "max_length", 0)
        notes.append(
            f"worst case: every text has all {max_length:,} tokens of task.max_length"
            + (", and all of them are learned" if isinstance(config.task, CausalLm) else "")
        )
    if config.task.kind.endswith("_classification") and not config.data.labels:
        notes.append(f"{ASSUMED_LABELS} labels are assumed, because data.labels is empty")
    if config.task.kind.endswith("_classification") and config.model.head == "auto":
        notes.append('model.head = "auto": what the checkpoint lacks beside its head is trained whole too')
    if device == "cuda" and not torch.cuda.is_available():
        why = ", which model.quantization is for" if config.model.quantization != "none" else ""
        notes.append(f"WARNING: planned for CUDA{why}; this machine has none, and the clients need it")
    if device == "cpu" and sum(step.training.values()) > (memory := _machine_bytes()):
        notes.append(f"WARNING: training takes more than the {memory / 1e9:.1f} GB of memory of this machine")
    if kept := config.train.frozen_cache_megabytes:
        notes.append(
            f"up to {kept:,} MB more for what frozen layers give, which are computed once; planned as without it"
        )
    if config.privacy.unit == "example":
        size = 4 * num_trained * (config.train.micro_batch_size or config.train.batch_size)
        notes.append(
            f"up to {size / 1e6:,.0f} MB more for the gradients of the single examples of a forward pass, which "
            "train.micro_batch_size bounds; planned as without them"
        )
    if config.train.compile:
        notes.append("train.compile is planned as without it; compiled, a step keeps fewer activations as a rule")
    notes.append(
        "memory is of tensors, the peak; "
        + (
            f"CUDA itself takes about {_CUDA_CONTEXT_BYTES / 2**20:.0f} MB more"
            if device == "cuda"
            else "the process itself takes about 0.5 GB more, and its allocator may keep what was freed"
        )
    )
    return notes


def _pin_notes(config: RunConfig) -> list[str]:
    """Return what pins the base model for all sites, where its weights are here."""
    if (folder := local_checkpoint(config)) is None:
        return []
    lines, is_other = pin_lines(config, folder)
    if is_other:
        return [f"WARNING: [model] pins another base model than is here: {line}" for line in lines]
    return [f"[model] {line} pins the base model that is here for all sites" for line in lines]


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
