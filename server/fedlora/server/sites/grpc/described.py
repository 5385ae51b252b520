"""What the port says of itself: whether it serves and is ready, and on loopback which services there are."""

import asyncio
import logging
from collections.abc import Callable

import grpc.aio
from grpc_health.v1 import health, health_pb2
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from fedlora.v1 import enrolment_pb2, exchange_pb2, registry_pb2, session_pb2

logger = logging.getLogger(__name__)

# By this name the health service tells of readiness; by the empty one, that the process lives.
READY_SERVICE = "fedlora.v1.SessionService"
_MODULES = (enrolment_pb2, exchange_pb2, registry_pb2, session_pb2)


def describe_services(server: grpc.aio.Server) -> None:
    """Have a server on loopback say which services it has and what they take, to whoever asks."""
    ours = [service.full_name for module in _MODULES for service in module.DESCRIPTOR.services_by_name.values()]
    reflection.enable_server_reflection([*ours, health.SERVICE_NAME, reflection.SERVICE_NAME], server)


async def keep_ready(servicer: HealthServicer, is_ready: Callable[[], bool], *, seconds: float) -> None:
    """Have the health service say whether the server is ready, without end; it is asked every so many seconds."""
    while True:
        try:
            found = await asyncio.to_thread(is_ready)
        except Exception:
            logger.exception("whether the server is ready cannot be found out; this is a bug in fedlora")
            found = False
        status = health_pb2.HealthCheckResponse.SERVING if found else health_pb2.HealthCheckResponse.NOT_SERVING
        await servicer.set(READY_SERVICE, status)
        await asyncio.sleep(seconds)
