"""Flower's own simulation engine, which runs on Ray: the same two apps, on this machine or on a cluster.

With RAY_ADDRESS set, Ray joins that cluster, on whose machines fedlora must be installed. The number
of workers is then the cluster's affair.
"""

import logging
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from flwr.app import ConfigRecordValues, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedlora.common.errors import ConfigError
from fedlora.models.bitsandbytes_door import spare_bitsandbytes

# Flower and Ray otherwise report their use over the network, and Ray warns of what a later version will do.
_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def run_on_ray(
    make_client_app: Callable[[], ClientApp],
    make_server_app: Callable[[], ServerApp],
    *,
    num_nodes: int,
    num_workers: int | None,
) -> None:
    """Run a ServerApp to its end against `num_nodes` virtual nodes; the arguments are those of `run_in_process`.

    Raises:
        ConfigError: Ray is not installed.
    """
    os.environ.update(_ENVIRONMENT)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError("--engine ray needs Ray; pip install 'fedlora[ray]'") from error
    from flwr.simulation import run_simulation

    # Flower announces each of its phases, and that `run_simulation` will give way to `flwr run`. What the same process
    # does with Flower afterwards, such as a strategy of its own, is to be heard again.
    flower_log = logging.getLogger("flwr")
    level = flower_log.level
    flower_log.setLevel(logging.ERROR)
    try:
        num_gpus = _start_ray(ray, num_workers)
        client_app = ResidentApp(ray.put(make_client_app))
        resources: dict[str, ConfigRecordValues] = {"num_cpus": 1, "num_gpus": 1.0 if num_gpus else 0.0}
        run_simulation(
            make_server_app(),
            client_app,
            num_supernodes=num_nodes,
            backend_config={"client_resources": resources},
        )
    finally:
        ray.shutdown()
        flower_log.setLevel(level)


class ResidentApp(ClientApp):
    """A ClientApp that is fetched once per worker; Flower sends the app itself with every message."""

    def __init__(self, reference: Any) -> None:
        """`reference` is Ray's, to a callable that makes the ClientApp."""
        super().__init__()
        self._reference = reference

    def __call__(self, message: Message, context: Context) -> Message:
        return _resident_app(self._reference)(message, context)


@cache
def _resident_app(reference: Any) -> ClientApp:
    import ray

    spare_bitsandbytes()
    make_client_app: Callable[[], ClientApp] = ray.get(reference)
    return make_client_app()


def _start_ray(ray: Any, num_workers: int | None) -> int:
    """Start Ray, or join the cluster at RAY_ADDRESS, and return its number of GPUs."""
    pythonpath = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    own = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": num_workers, "include_dashboard": False}
    variables = {**_ENVIRONMENT, "PYTHONPATH": pythonpath, "FLWR_LOG_LEVEL": "ERROR"}
    ray.init(runtime_env={"env_vars": variables}, logging_level=logging.ERROR, log_to_driver=True, **own)
    return int(ray.cluster_resources().get("GPU", 0))
