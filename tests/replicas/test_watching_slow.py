"""Clients that stop reading, or stand still altogether (contract 14)."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import msgspec
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2 import WatchRunRequest
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus_server.api import server
from famulus_server.coordination.channels import channel_of
from famulus_server.embedded.upstream import Scene
from famulus_server.ports import events_topic
from replicas.conftest import OpenReplica
from serving import refusal
from validator import validate_stream

# More than gRPC keeps for a reader that keeps little.
DELTAS = 120
LARGE = Scene(text=tuple(f"{'x' * 5_000} w{number}" for number in range(DELTAS)), hold_after=1)
TIGHT = (("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1_024))
# Long enough for readers that merely share a busy machine.
SLOW_SECONDS = 2.0
WATCH = """
import sys
import grpc
from famulus.v1.run_service_pb2 import WatchRunRequest
from famulus.v1.run_service_pb2_grpc import RunServiceStub
with grpc.insecure_channel(sys.argv[1]) as channel:
    for response in RunServiceStub(channel).WatchRun(WatchRunRequest(run_id=sys.argv[2])):
        print(response.events[-1].text_delta.text, flush=True)
"""

Watched = Callable[[str], Awaitable[bool]]


@pytest_asyncio.fixture
async def is_watched(shared: dict[str, Any]) -> AsyncIterator[Watched]:
    """Tells whether a replica follows a run: then somebody watches it there."""
    async with Redis.from_url(shared["redis_url"]) as client:

        async def ask(run_id: str) -> bool:
            [(_, subscribers)] = await client.pubsub_numsub(channel_of(events_topic(run_id)))
            return bool(subscribers)

        yield ask


async def until_watched(is_watched: Watched, run_id: str) -> None:
    while not await is_watched(run_id):  # noqa: ASYNC110 - Redis does not tell by itself
        await asyncio.sleep(0.01)


async def until_unwatched(is_watched: Watched, run_id: str) -> None:
    while await is_watched(run_id):  # noqa: ASYNC110 - Redis does not tell by itself
        await asyncio.sleep(0.01)


@asynccontextmanager
async def client_process(address: str, run_id: str) -> AsyncIterator[Process]:
    """A process that watches a run; it is killed in the end."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WATCH, address, run_id, stdout=PIPE)
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def read_all(responses: AsyncIterator[Any], seen: list[RunEvent]) -> None:
    async for response in responses:
        seen += response.events


@pytest.mark.usefixtures("unhurried")
async def test_reader_that_stops_is_let_go_and_goes_on_later_without_a_gap(
    open_replica: OpenReplica, is_watched: Watched
) -> None:
    async with (
        open_replica() as here,
        open_replica(server={"slow_consumer_seconds": SLOW_SECONDS}) as there,
        grpc.aio.insecure_channel(there.address, options=TIGHT) as channel,
    ):
        here.play(LARGE)
        run = await here.start()
        responses = aiter(RunServiceStub(channel).WatchRun(WatchRunRequest(run_id=run.id)))
        seen = list((await anext(responses)).events)
        neighbour = asyncio.create_task(there.watch(run.id))
        (await here.request()).released.set()
        assert (await here.wait(run.id)).state == RunState.RUN_STATE_COMPLETED
        told = await neighbour
        # Nobody reads, and yet it ends: what it held is free.
        await until_unwatched(is_watched, run.id)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await read_all(responses, seen)
        refused = refusal(error.value)
        assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "SLOW_CONSUMER")
        assert refused.metadata["last_sequence"] == str(seen[-1].sequence)
        assert seen[-1].sequence < told[-1].sequence
        for stage in (here, there):
            assert seen + await stage.watch(run.id, seen[-1].sequence) == told
        validate_stream(told)


@pytest.mark.usefixtures("unhurried")
async def test_reader_that_is_let_go_has_not_gone_away_by_itself(
    open_replica: OpenReplica, is_watched: Watched
) -> None:
    async with (
        open_replica() as here,
        open_replica(server={"slow_consumer_seconds": SLOW_SECONDS}) as there,
        grpc.aio.insecure_channel(there.address, options=TIGHT) as channel,
    ):
        here.play(msgspec.structs.replace(LARGE, hold_after=DELTAS - 1))
        run = await here.start()
        watching = RunServiceStub(channel).WatchRun(WatchRunRequest(run_id=run.id, cancel_on_disconnect=True))
        await anext(aiter(watching))
        await until_watched(is_watched, run.id)
        await until_unwatched(is_watched, run.id)
        assert (await here.get(run.id)).state == RunState.RUN_STATE_IN_PROGRESS
        (await here.request()).released.set()
        assert (await here.tell(run.id)).run.state == RunState.RUN_STATE_COMPLETED


@pytest.mark.usefixtures("unhurried")
async def test_reader_that_takes_its_time_for_little_is_not_slow(open_replica: OpenReplica) -> None:
    async with open_replica() as here, open_replica(server={"slow_consumer_seconds": 0.05}) as there:
        here.play(Scene(deltas=20, hold_after=10))
        run = await here.start()
        responses = aiter(there.runs.WatchRun(WatchRunRequest(run_id=run.id)))
        seen = list((await anext(responses)).events)
        (await here.request()).released.set()
        await here.wait(run.id)
        # Longer than allowed, but gRPC has room for what has come meanwhile.
        await asyncio.sleep(0.2)
        await read_all(responses, seen)
        validate_stream(seen)
        assert seen == await here.watch(run.id)


@pytest.mark.usefixtures("unhurried")
async def test_frozen_client_is_noticed_and_nobody_else_is_hurt(
    open_replica: OpenReplica, is_watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {"grpc.keepalive_time_ms": 1_000, "grpc.keepalive_timeout_ms": 1_000, "grpc.http2.ping_timeout_ms": 1_000}
    monkeypatch.setattr(server, "_OPTIONS", [(name, quick.get(name, value)) for name, value in server._OPTIONS])
    async with open_replica() as here, open_replica() as there:
        here.play(Scene(deltas=20, hold_after=10))
        run = await here.start()
        async with client_process(there.address, run.id) as client:
            assert client.stdout is not None
            assert await client.stdout.readline()
            assert await is_watched(run.id)
            client.send_signal(signal.SIGSTOP)
            await until_unwatched(is_watched, run.id)
            watching = asyncio.create_task(there.watch(run.id))
            # Who comes right behind the end may be shown a Snapshot, as the last events may be yet to be written.
            await until_watched(is_watched, run.id)
            (await here.request()).released.set()
            events = await watching
            validate_stream(events)
            assert events == await here.watch(run.id)
