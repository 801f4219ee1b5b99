"""Starting and stopping the whole server."""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import CreateAssistantRequest
from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.run_service_pb2 import CreateRunRequest, StreamRunRequest, WaitRunRequest, WatchRunRequest
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_pb2 import Thread
from famulus_server.api.addresses import ListenError
from famulus_server.config import Settings
from famulus_server.coordination.patience import Patience
from famulus_server.wiring import server as wiring
from famulus_server.wiring.server import open_server
from serving import refusal, said, settings_in

SCRIPT = Path(__file__).with_name("script.toml")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path, script=SCRIPT)


def listening_on(settings: Settings, address: str) -> Settings:
    return msgspec.structs.replace(settings, server=msgspec.structs.replace(settings.server, listen=address))


async def serve_and_stop(settings: Settings) -> None:
    async with open_server(settings, progress=lambda _: None):
        pass


async def test_address_that_others_can_reach_is_refused(settings: Settings) -> None:
    with pytest.raises(ListenError, match="no authentication"):
        await serve_and_stop(listening_on(settings, "0.0.0.0:0"))


async def test_port_that_is_taken_is_refused(settings: Settings, grpc_addr: str) -> None:
    with pytest.raises(ListenError, match="another server"):
        await serve_and_stop(listening_on(settings, grpc_addr))


async def test_all_that_asks_redis_for_a_caller_shares_one_patience(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Patience] = []

    class Listed(Patience):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(wiring, "Patience", Listed)
    await serve_and_stop(settings)
    assert len(made) == 1


async def test_unix_socket_is_served(settings: Settings, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/api.sock"
    async with open_server(listening_on(settings, address), progress=lambda _: None) as running:
        assert running.address == address
        async with grpc.aio.insecure_channel(address) as channel:
            await HealthStub(channel).Check(HealthCheckRequest(service="liveness"))


async def next_events(stream: Any) -> Any:
    """The next response that is no heartbeat."""
    while True:
        response = await stream.read()
        if response.events:
            return response.events


async def told_to_resume(call: Any, last: int) -> int:
    """Reads a stream to its end, which must be the word to resume behind what was read; returns that sequence."""
    refused = None
    while refused is None:
        try:
            last = max([last, *(event.sequence for event in (await call.read()).events)])
        except grpc.aio.AioRpcError as error:
            refused = refusal(error)
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
    assert refused.metadata["last_sequence"] == str(last)
    return last


async def test_stop_tells_open_streams_where_to_resume(settings: Settings) -> None:
    async with AsyncExitStack() as clients:
        async with open_server(settings, progress=lambda _: None) as running:
            channel = await clients.enter_async_context(grpc.aio.insecure_channel(running.address))
            runs: Any = RunServiceStub(channel)
            assistants: Any = AssistantServiceStub(channel)
            made = await assistants.CreateAssistant(CreateAssistantRequest(assistant=Assistant(model="scripted")))
            create = CreateRunRequest(
                new_thread=Thread(), assistant_id=made.assistant.id, additional_messages=[said("hang")]
            )
            stream = runs.StreamRun(StreamRunRequest(create=create, cancel_on_disconnect=True))
            events = list(await next_events(stream))
            run = events[0].run_state_changed.run
            while not events[-1].HasField("text_delta"):
                events += await next_events(stream)
            watching = runs.WatchRun(WatchRunRequest(run_id=run.id, after_sequence=events[-1].sequence))
            waiting = asyncio.ensure_future(runs.WaitRun(WaitRunRequest(run_id=run.id)))
            health = HealthStub(channel).Watch(HealthCheckRequest(service="readiness"))
            await health.read()
            started = time.monotonic()
        assert time.monotonic() - started < 10
        last = max(await asyncio.gather(*(told_to_resume(call, events[-1].sequence) for call in (stream, watching))))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await waiting
        assert refusal(caught.value).reason == "SERVER_DRAINING"
    async with (
        open_server(settings, progress=lambda _: None) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        resumed: Any = RunServiceStub(channel).WatchRun(WatchRunRequest(run_id=run.id, after_sequence=last))
        # It was neither lost nor cancelled: the stop of a server is no disconnect of the caller.
        assert (await next_events(resumed))[0].sequence > last
        resumed.cancel()
