"""Thousands of watchers, and slow ones, on a replica that executes nothing of what they watch (contract 12, 14)."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.run_service_pb2 import WatchRunRequest
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus_server.embedded.upstream import Scene
from famulus_server.engine import feed
from replicas.conftest import OpenReplica
from run_stage import Stage
from validator import validate_stream

if TYPE_CHECKING:
    # The stubs have it as a type only.
    from famulus.v1.run_service_pb2_grpc import RunServiceAsyncStub

WATCHERS = 2_000
RUNS = 40
# Of a connection, by which the server bounds its calls.
STREAMS = 100
SLOW = 200
# A replica hears hints, sends hints and writes events by one connection each, and reads by at most four.
CONNECTIONS_OF_A_REPLICA = 7
# gRPC keeps little for a reader that does not come.
TIGHT = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1_024))


@pytest_asyncio.fixture
async def redis(shared: dict[str, Any]) -> AsyncIterator[Redis]:
    async with Redis.from_url(shared["redis_url"]) as client:
        yield client


@asynccontextmanager
async def stubs_on(
    address: str, watchers: int, *options: tuple[str, int]
) -> AsyncIterator[Sequence["RunServiceAsyncStub"]]:
    """A stub for each watcher, on as few connections as the server lets them share."""
    async with AsyncExitStack() as stack:
        given = [("grpc.use_local_subchannel_pool", 1), *options]
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=given))
            for _ in range(0, watchers, STREAMS)
        ]
        yield [RunServiceStub(channels[number // STREAMS]) for number in range(watchers)]


class Gathering:
    """Lets watchers read up to a text, and tells when all of them have come so far; then they wait for `go_on`."""

    def __init__(self, count: int, text: str) -> None:
        self._missing = count
        self._text = text
        self.complete = asyncio.Event()
        self.go_on = asyncio.Event()

    async def watch(self, stub: "RunServiceAsyncStub", run: Run) -> list[RunEvent]:
        """All events of a run."""
        seen: list[RunEvent] = []
        arrived = False
        async for response in stub.WatchRun(WatchRunRequest(run_id=run.id)):
            seen += response.events
            if not arrived and any(event.text_delta.text.endswith(self._text) for event in response.events):
                arrived = True
                self._missing -= 1
                if not self._missing:
                    self.complete.set()
                await self.go_on.wait()
        return seen


async def release(stage: Stage, requests: int) -> None:
    for number in range(1, requests + 1):
        (await stage.request(number)).released.set()


async def connections(redis: Redis) -> tuple[int, int]:
    """How many connections Redis has, but for our own, and how many of them are subscribers."""
    clients = [client for client in await redis.client_list() if client["cmd"] != "client|list"]
    return len(clients), sum(int(client["sub"]) > 0 for client in clients)


@pytest.mark.usefixtures("unhurried")
async def test_two_thousand_watchers_see_the_same_events_over_one_subscription(
    open_replica: OpenReplica, redis: Redis
) -> None:
    async with open_replica() as here, open_replica() as there, stubs_on(there.address, WATCHERS) as stubs:
        here.play(Scene(deltas=8, hold_after=4))
        runs = [await here.start() for _ in range(RUNS)]
        gathering = Gathering(WATCHERS, " w4")
        watching = [
            asyncio.create_task(gathering.watch(stub, runs[number % RUNS])) for number, stub in enumerate(stubs)
        ]
        await gathering.complete.wait()
        total, subscribers = await connections(redis)
        assert subscribers == 2
        assert total <= 2 * CONNECTIONS_OF_A_REPLICA
        await redis.config_resetstat()
        gathering.go_on.set()
        await release(here, RUNS)
        seen = await asyncio.gather(*watching)
        reads = (await redis.info("commandstats"))["cmdstat_xrange"]["calls"]
        told = [await here.watch(run.id) for run in runs]
        for events in told:
            validate_stream(events)
            assert "snapshot" not in [event.WhichOneof("event") for event in events]
        assert all(events == told[number % RUNS] for number, events in enumerate(seen))
        assert reads < WATCHERS, "each watcher reads for itself"
        assert await connections(redis) <= (2 * CONNECTIONS_OF_A_REPLICA, 2)


@pytest.mark.usefixtures("unhurried")
async def test_two_hundred_slow_streams_complete_and_slow_nobody_down(
    open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What they have not taken is soon gone from memory.
    monkeypatch.setattr(feed, "_MAX_BYTES", 100_000)
    async with open_replica() as here, open_replica() as there, stubs_on(there.address, SLOW, *TIGHT) as stubs:
        here.play(Scene(text=tuple(f"{'x' * 5_000} w{number}" for number in range(60)), hold_after=1))
        run = await here.start()
        gathering = Gathering(SLOW, " w0")
        slow = [asyncio.create_task(gathering.watch(stub, run)) for stub in stubs]
        await gathering.complete.wait()
        fast = asyncio.create_task(there.watch(run.id))
        await release(here, 1)
        assert (await here.wait(run.id)).state == RunState.RUN_STATE_COMPLETED
        events = await fast
        assert not any(task.done() for task in slow)
        gathering.go_on.set()
        for seen in await asyncio.gather(*slow):
            assert seen == events
        validate_stream(events)
        assert "snapshot" not in [event.WhichOneof("event") for event in events]
