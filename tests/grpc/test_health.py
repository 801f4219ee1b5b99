import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub, add_HealthServicer_to_server
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from famulus.v1 import run_service_pb2
from famulus_server.api.draining import Drain
from famulus_server.api.health import Health

SERVICES = [f"famulus.v1.{noun}Service" for noun in ("Assistant", "Run", "Thread", "Usage", "UserData")]
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("name", ["", "startup", "liveness", "readiness", *SERVICES])
def test_every_name_serves(grpc_channel: grpc.Channel, name: str) -> None:
    assert HealthStub(grpc_channel).Check(HealthCheckRequest(service=name)).status == SERVING


def test_unknown_name_is_not_found(grpc_channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        HealthStub(grpc_channel).Check(HealthCheckRequest(service="nonsense"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_lists_all_services_and_their_files(grpc_channel: grpc.Channel) -> None:
    requests = [
        ServerReflectionRequest(list_services=""),
        ServerReflectionRequest(file_containing_symbol="famulus.v1.RunService"),
    ]
    listed, file = ServerReflectionStub(grpc_channel).ServerReflectionInfo(iter(requests))
    names = {service.name for service in listed.list_services_response.service}
    assert {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} == names
    found = FileDescriptorProto.FromString(file.file_descriptor_response.file_descriptor_proto[0])
    assert found.name == run_service_pb2.DESCRIPTOR.name


@dataclass
class Patient:
    """A health service over a store that a test can take away."""

    stub: Any
    drain: Drain
    health: Health
    answering: bool = True
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def ping(self) -> None:
        self.asked.set()
        if not self.answering:
            raise ConnectionError("gone")

    async def status(self, name: str) -> int:
        return int((await self.stub.Check(HealthCheckRequest(service=name))).status)


@pytest.fixture
async def patient() -> AsyncIterator[Patient]:
    drain = Drain()

    async def ping() -> None:
        await made.ping()

    health = Health(services=SERVICES, ping=ping, drain=drain, interval_seconds=0.02)
    server = grpc.aio.server()
    add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        made = Patient(HealthStub(channel), drain, health)
        await health.look()
        following = asyncio.create_task(health.follow_store())
        yield made
        following.cancel()
    await server.stop(None)


async def test_readiness_follows_the_store_and_liveness_does_not(patient: Patient) -> None:
    readiness = patient.stub.Watch(HealthCheckRequest(service="readiness"))
    statuses = [(await readiness.read()).status]
    patient.answering = False
    statuses.append((await readiness.read()).status)
    assert await patient.status("liveness") == SERVING
    assert await patient.status("startup") == SERVING
    assert await patient.status("") == NOT_SERVING
    assert await patient.status("famulus.v1.RunService") == NOT_SERVING
    patient.answering = True
    statuses.append((await readiness.read()).status)
    assert statuses == [SERVING, NOT_SERVING, SERVING]


async def test_store_that_hangs_is_not_ready(patient: Patient) -> None:
    readiness = patient.stub.Watch(HealthCheckRequest(service="readiness"))
    assert (await readiness.read()).status == SERVING

    async def hang() -> None:
        await asyncio.Event().wait()

    patient.ping = hang  # type: ignore[method-assign]
    assert (await readiness.read()).status == NOT_SERVING


async def test_watch_of_an_unknown_name_says_so_and_stays_open(patient: Patient) -> None:
    watching = patient.stub.Watch(HealthCheckRequest(service="nonsense"))
    assert (await watching.read()).status == HealthCheckResponse.SERVICE_UNKNOWN
    assert not watching.done()
    watching.cancel()


async def test_draining_is_told_to_watchers_and_ends_their_streams(patient: Patient) -> None:
    readiness = patient.stub.Watch(HealthCheckRequest(service="readiness"))
    liveness = patient.stub.Watch(HealthCheckRequest(service="liveness"))
    assert (await readiness.read()).status == SERVING
    assert (await liveness.read()).status == SERVING
    patient.drain.start()
    patient.health.drain()
    assert (await readiness.read()).status == NOT_SERVING
    assert await readiness.read() is grpc.aio.EOF
    assert await liveness.read() is grpc.aio.EOF
    assert await patient.status("liveness") == SERVING
