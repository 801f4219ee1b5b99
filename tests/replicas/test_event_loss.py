"""Redis dies, hangs or refuses while runs are executed on one replica and watched on another (contract 2, 12, 27)."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.run_service_pb2 import WatchRunRequest
from famulus_server.coordination import patience, streams
from famulus_server.coordination.hints import RedisHints
from famulus_server.embedded.upstream import Scene
from replicas.conftest import OpenReplica
from replicas.redis_faults import FAULTS, Valkey
from run_stage import Stage
from validator import validate_final

HELD = Scene(deltas=12, hold_after=6)


@pytest.fixture(autouse=True)
def _soon_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody wants to wait for five seconds."""
    monkeypatch.setattr(patience, "_LEFT_ALONE_SECONDS", 0.2)


def kinds(events: Sequence[RunEvent]) -> list[str]:
    return [str(event.WhichOneof("event")) for event in events]


async def start(stage: Stage, request: int) -> Run:
    """A run whose model is asked by the request of this number."""
    run = await stage.start()
    await stage.request(request)
    return run


async def release(stage: Stage, request: int) -> None:
    (await stage.request(request)).released.set()


async def until_deltas_travel(here: Stage, there: Stage) -> None:
    """Returns once a delta of a run that one replica executes is seen on the other: it is stored nowhere else."""
    run = await here.start()
    await there.until(run.id, "text_delta")
    await here.cancel(run.id)


class Follow:
    """Watches runs through a replica, and tells how many of these streams have come to a text."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._arrivals = asyncio.Semaphore(0)

    async def watch(self, run: Run, text: str) -> list[RunEvent]:
        """All events of a run."""
        seen: list[RunEvent] = []
        async for response in self._stage.runs.WatchRun(WatchRunRequest(run_id=run.id)):
            seen += response.events
            if any(event.text_delta.text == text for event in response.events):
                self._arrivals.release()
        return seen

    async def arrived(self, count: int) -> None:
        """Returns once so many have come there."""
        for _ in range(count):
            await self._arrivals.acquire()


async def check(stages: Sequence[Stage], run: Run, *streams_seen: Sequence[RunEvent]) -> None:
    """The run has succeeded, and whoever watched it, or watches it now, is told so."""
    for stage in stages:
        ended = await stage.get(run.id)
        assert ended.state == RunState.RUN_STATE_COMPLETED
        messages = await stage.messages(run.thread_id, run.id)
        for events in (*streams_seen, await stage.watch(run.id)):
            validate_final(events, ended, messages)


@pytest.mark.parametrize("fault", FAULTS)
async def test_watchers_elsewhere_get_facts_meanwhile_and_deltas_afterwards(
    open_replica: OpenReplica, redis: Valkey, fault: str
) -> None:
    break_it, mend_it = FAULTS[fault]
    async with open_replica() as here, open_replica() as there:
        here.play(HELD)
        first, second = await start(here, 1), await start(here, 2)
        before = await here.until_text(second.id, " w6")
        # Who watches elsewhere before that is shown a Snapshot of what is yet to be written.
        await redis.until_it_has(second.id, before)
        await redis.until_it_has(first.id, await here.until_text(first.id, " w6"))
        follow = Follow(there)
        watching = [asyncio.create_task(follow.watch(run, " w6")) for run in (first, second)]
        await follow.arrived(2)
        await break_it(redis)
        # It ends while Redis is away, and a run begins and ends.
        await release(here, 1)
        events = await watching[0]
        await check((here, there), first, events)
        third = await there.start()
        await release(here, 3)
        await check((here, there), third, *await asyncio.gather(here.watch(third.id), there.watch(third.id)))
        assert not watching[1].done()

        await mend_it(redis)
        # What this replica has in memory is written again, also of what ended meanwhile.
        await redis.until_it_has(second.id, before)
        await redis.until_it_has(first.id, await here.watch(first.id))
        await until_deltas_travel(here, there)
        await release(here, 2)
        events = await watching[1]
        assert "snapshot" not in kinds(events), "deltas were there again"
        await check((here, there), second, events)
        await redis.until_it_has(second.id, events)
        async with open_replica(server={"role": "api"}) as late:
            assert (await late.watch(second.id))[-1].sequence == events[-1].sequence
            await check((late,), first)


@pytest.mark.parametrize("fault", FAULTS)
async def test_reads_and_creates_do_not_notice(open_replica: OpenReplica, redis: Valkey, fault: str) -> None:
    break_it, mend_it = FAULTS[fault]
    async with open_replica() as here, open_replica() as there:
        here.play(Scene(text="fine"))
        await break_it(redis)
        runs = [await stage.start() for stage in (here, there) for _ in range(5)]
        for run in runs:
            assert (await here.wait(run.id)).state == RunState.RUN_STATE_COMPLETED
            assert (await there.wait(run.id)).state == RunState.RUN_STATE_COMPLETED
            assert await there.texts(run.thread_id) == await here.texts(run.thread_id) == ["hello", "fine"]
        await mend_it(redis)


async def test_redis_that_hangs_is_asked_five_times_and_left_alone(
    open_replica: OpenReplica, redis: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    ask = streams.RedisStreams._ask_reader

    async def count(self: streams.RedisStreams, *arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        return await ask(self, *arguments)

    async with open_replica() as here:
        here.play(Scene(deltas=5))
        runs = [await here.wait((await here.start()).id) for _ in range(12)]
    async with open_replica(server={"role": "api"}) as late:
        await redis.freeze()
        monkeypatch.setattr(streams.RedisStreams, "_ask_reader", count)
        monkeypatch.setattr(patience, "_LEFT_ALONE_SECONDS", 3_600.0)
        for run in runs:
            [event] = await late.watch(run.id)
            assert event.snapshot.run == run
        assert asked == 5
        for run in runs:
            assert await late.get(run.id) == run
            assert len(await late.messages(run.thread_id)) == 2
            assert (await late.wait(run.id)) == run
        assert asked == 5


async def test_hints_end_also_in_the_middle_of_sending(shared: dict[str, Any]) -> None:
    for steps in range(40):
        hints = RedisHints(url=shared["redis_url"])
        subscribed = asyncio.Event()
        hints.listen("topic", lambda _, subscribed=subscribed: subscribed.set())  # type: ignore[misc]
        hints.open()
        await subscribed.wait()
        hints.send("topic")
        for _ in range(steps % 10):
            await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await hints.close()


async def test_redis_that_was_not_there_from_the_start_is_used_once_it_is(
    open_replica: OpenReplica, redis: Valkey
) -> None:
    await redis.kill()
    async with open_replica() as here, open_replica() as there:
        here.play(HELD)
        first, second = await start(here, 1), await start(here, 2)
        watching = [asyncio.create_task(there.watch(run.id)) for run in (first, second)]
        before = await here.until_text(second.id, " w6")
        await release(here, 1)
        events = await watching[0]
        assert events[-1].HasField("snapshot")
        await check((here, there), first, events)
        assert not watching[1].done()
        await redis.come_back_empty()
        await redis.until_it_has(second.id, before)
        await until_deltas_travel(here, there)
        await release(here, 2)
        events = await watching[1]
        await check((here, there), second, events)
        assert "text_delta" in kinds(events)
