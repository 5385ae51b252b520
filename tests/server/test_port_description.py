"""What the port says of itself: readiness by the health service, and services by reflection on loopback alone."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

sys.path.append(str(Path(__file__).parent))

from open_port import DEADLINE_SECONDS, enrolled, open_port

from fedlora.common.channels import open_channel
from fedlora.server.identity.authority import Authority
from fedlora.server.sites.grpc.port import Port

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
READY = health_pb2.HealthCheckRequest(service="fedlora.v1.SessionService")
LISTED = reflection_pb2.ServerReflectionRequest(list_services="")


def test_a_port_is_ready_not_ready_and_ready_again_and_lives_all_the_while() -> None:
    is_ready = True
    with (
        Port("127.0.0.1:0", None, lambda _server: None, is_ready=lambda: is_ready, look_seconds=0.02) as port,
        open_channel(f"127.0.0.1:{port.number}", None) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        told = (response.status for response in health.Watch(READY, timeout=DEADLINE_SECONDS))
        assert next(status for status in told if status == SERVING)
        is_ready = False
        assert next(told) == NOT_SERVING
        assert health.Check(health_pb2.HealthCheckRequest(service="")).status == SERVING
        is_ready = True
        assert next(told) == SERVING


def test_a_port_in_plain_text_lists_its_services_and_describes_them(tmp_path: Path) -> None:
    with open_port(tmp_path) as port, open_channel(port.address, None) as channel:
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        (listed,) = ask(iter([LISTED]), timeout=DEADLINE_SECONDS)
        names = {service.name for service in listed.list_services_response.service}
        ours = {f"fedlora.v1.{name}Service" for name in ("Session", "AdapterExchange", "Registry", "Enrolment")}
        assert ours < names
        symbol = reflection_pb2.ServerReflectionRequest(file_containing_symbol="fedlora.v1.SessionService")
        (described,) = ask(iter([symbol]), timeout=DEADLINE_SECONDS)
        assert described.file_descriptor_response.file_descriptor_proto


def test_a_port_with_certificates_describes_itself_to_nobody(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "identity", datetime.now(UTC))
    with (
        open_port(tmp_path, authority) as port,
        open_channel(port.address, enrolled(authority, "north")) as channel,
    ):
        with pytest.raises(grpc.RpcError) as refused:
            list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([LISTED])))
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        health = health_pb2_grpc.HealthStub(channel)
        told = health.Watch(READY, timeout=DEADLINE_SECONDS)
        assert next(response for response in told if response.status == SERVING)
