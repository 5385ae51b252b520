"""Ray: Flower's own simulation engine, which runs the same two apps on it, and whole runs in processes of its own.

With RAY_ADDRESS set, Ray joins that cluster, on whose machines fedlora must be installed. The number
of workers is then the cluster's affair.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from flwr.app import ConfigRecordValues, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedlora.common.channels import speaks_grpc
from fedlora.common.errors import ConfigError, RunError, one_line
from fedlora.models.bitsandbytes_door import spare_bitsandbytes

_POLL_SECONDS, _REACH_SECONDS = 0.5, 20.0

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
    ray = _imported_ray()
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


def do_on_ray(
    work: Callable[[], str], *, num_workers: int | None, num_most: int, meanwhile: Callable[[], None]
) -> None:
    """Do the same work in several processes of Ray's at once, one for each core, or for each GPU where there are any.

    Args:
        work: picklable; returns why it could not be done, "" if it is.
        num_workers: cores of a Ray of our own.
        num_most: so many processes at most.
        meanwhile: called again and again until all have ended, and once after that.

    Raises:
        ConfigError: Ray is not installed, or is not where RAY_ADDRESS says.
        RunError: a process has ended early, or could not do it.
    """
    ray = _imported_ray()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        num_gpus = _start_ray(ray, num_workers)
        # Ray has put its own in its place, which would end this process with another status.
        signal.signal(signal.SIGTERM, handler)
        num_places = num_gpus or int(ray.cluster_resources().get("CPU", 1))
        remote = ray.remote(num_cpus=1, num_gpus=1 if num_gpus else 0, max_retries=0)(_done)
        pending = [remote.remote(work) for _ in range(max(1, min(num_places, num_most)))]
        while pending:
            ended, pending = ray.wait(pending, timeout=_POLL_SECONDS)
            for said in ended:
                if why := ray.get(said):
                    raise RunError(why)
            meanwhile()
    except (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.NodeDiedError,
    ) as error:
        raise RunError(f"Ray: {one_line(error)}; the same command goes on with what is left") from error
    finally:
        ray.shutdown()


def _done(work: Callable[[], str]) -> str:
    return work()


def _imported_ray() -> Any:
    """Return Ray.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.update(_ENVIRONMENT)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError("--engine ray needs Ray; pip install 'fedlora[ray]'") from error
    return ray


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
    """Start Ray, or join the cluster at RAY_ADDRESS, and return its number of GPUs.

    Raises:
        ConfigError: there is no such cluster.
    """
    require_reachable(os.environ.get("RAY_ADDRESS", ""))
    pythonpath = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    own = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": num_workers, "include_dashboard": False}
    variables = {**_ENVIRONMENT, "PYTHONPATH": pythonpath, "FLWR_LOG_LEVEL": "ERROR"}
    try:
        ray.init(runtime_env={"env_vars": variables}, logging_level=logging.ERROR, log_to_driver=True, **own)
    except ConnectionError as error:
        address = os.environ.get("RAY_ADDRESS", "")
        raise ConfigError(f"RAY_ADDRESS is {address!r}, and no Ray answers there ({one_line(error)})") from error
    return int(ray.cluster_resources().get("GPU", 0))


def require_reachable(address: str) -> None:
    """Raise ConfigError where nothing speaks gRPC, as Ray's head does; Ray itself would go on trying for minutes."""
    place = address.removeprefix("ray://")
    if ":" not in place or os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return
    if not speaks_grpc(place, seconds=_REACH_SECONDS):
        raise ConfigError(
            f"RAY_ADDRESS is {address!r}, and no Ray answers there within {_REACH_SECONDS:g} seconds; expected "
            "host:port of the head of a running cluster, or no RAY_ADDRESS for a Ray of this machine"
        )
