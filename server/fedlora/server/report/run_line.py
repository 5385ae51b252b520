"""A run in a line. Pure."""

from fedlora.common.config import RunConfig


def summary(config: RunConfig, *, num_clients: int) -> str:
    """Return the run in a line: clients, model, method, and what of its training is out of the ordinary."""
    lora, train = config.lora, config.train
    model = config.model.name.rpartition("/")[2]
    bits = config.model.quantization
    weights = {"tokens": "weighted by answer tokens", "uniform": "all clients weigh alike"}
    parts = [
        f"{num_clients} client{'' if num_clients == 1 else 's'}",
        model if bits == "none" else f"{model} in {bits.removesuffix('bit')} bits",
        f"{'DoRA of ' if lora.use_dora else ''}rank {lora.rank}",
        "" if lora.init == "default" else f"{lora.init} start",
        config.method_name,
        "" if config.federation.server_optimizer == "none" else f"server's {config.federation.server_optimizer}",
        "noised for each client" if config.privacy.unit == "client" else "",
        weights.get(config.federation.weighting, ""),
        f"FedProx with mu {train.proximal_mu:g}" if train.proximal_mu else "",
        "packed examples" if train.packing else "",
        {"reset": "optimiser state reset", "shared": "optimiser state shared"}.get(train.optimizer_state, ""),
        f"client momentum {train.client_momentum:g}" if train.client_momentum else "",
        f"B at {train.b_learning_rate_ratio:g} times the rate" if train.b_learning_rate_ratio != 1 else "",
        f"seed {config.run.seed}",
    ]
    return ", ".join(part for part in parts if part)
