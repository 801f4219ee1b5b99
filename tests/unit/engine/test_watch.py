"""Watching a run while others change it at the worst moment."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from batches import delta
from contract.samples import OTHER, TENANT, MovableClock, add_run, add_thread, run
from famulus.v1.run_pb2 import RunState
from famulus_server.engine.feed import Feed
from famulus_server.engine.follower import Follower
from famulus_server.engine.packing import events_of, pack
from famulus_server.engine.watch import Watch
from famulus_server.errors import NotFound
from famulus_server.ports import EventBatch, Store
from unit.engine.alone import NoEventLog, NoHints


class InterruptedStore:
    """A store of which the first read is followed by something before its reader goes on."""

    def __init__(self, store: Store, then: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._then: Callable[[], Awaitable[None]] | None = then

    async def read(self, unit: Any) -> Any:
        result = await self._store.read(unit)
        then, self._then = self._then, None
        if then is not None:
            await then()
        return result

    async def write(self, unit: Any) -> Any:
        return await self._store.write(unit)


async def test_watcher_of_a_thread_that_is_deleted_right_after_it_looked_is_told(
    store: Store, clock: MovableClock
) -> None:
    feed = Feed(event_log=NoEventLog())

    async def delete() -> None:
        await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", clock.now()))
        feed.drop("run_1")

    await add_thread(store, "thread_1")
    await add_run(store, run(state=RunState.RUN_STATE_REQUIRES_ACTION))
    interrupted = InterruptedStore(store, delete)
    follower = Follower(store=interrupted, feed=feed, event_log=NoEventLog(), hints=NoHints())
    watch = Watch(
        store=interrupted,
        feed=feed,
        follower=follower,
        event_log=NoEventLog(),
        clock=clock,
        heartbeat_seconds=0.01,
    )
    with pytest.raises(NotFound):
        async with asyncio.timeout(5.0):
            await anext(watch.watch(TENANT, "run_1", 0))
    assert feed.find("run_1") is None


class SpiedEventLog(NoEventLog):
    """Knows who was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def read(self, run_id: str, *, after_sequence: int, limit: int) -> list[EventBatch]:
        self.asked.append(run_id)
        return []


@pytest.mark.parametrize("state", [RunState.RUN_STATE_REQUIRES_ACTION, RunState.RUN_STATE_COMPLETED])
async def test_run_of_another_tenant_is_not_looked_for_where_events_are(
    store: Store, clock: MovableClock, state: "RunState.ValueType"
) -> None:
    """Logs in memory and in Redis go by the run's id alone: only the store knows whose it is."""
    event_log = SpiedEventLog()
    feed = Feed(event_log=event_log)
    follower = Follower(store=store, feed=feed, event_log=event_log, hints=NoHints())
    watch = Watch(store=store, feed=feed, follower=follower, event_log=event_log, clock=clock, heartbeat_seconds=0.01)
    await add_thread(store, "thread_1")
    made = run(state=state)
    made.last_sequence = 3
    await add_run(store, made)
    with pytest.raises(NotFound):
        await anext(watch.watch(OTHER, "run_1", 0))
    assert (feed.find("run_1"), event_log.asked) == (None, [])
    await anext(watch.watch(TENANT, "run_1", 0))
    assert event_log.asked == ["run_1"]


class LateEventLog(NoEventLog):
    """Has what was published only when it is asked for the third time."""

    def __init__(self, batches: list[EventBatch]) -> None:
        self._batches = batches
        self.asked = 0

    async def read(self, run_id: str, *, after_sequence: int, limit: int) -> list[EventBatch]:
        self.asked += 1
        return self._batches if self.asked > 2 else []


@pytest.mark.parametrize(("seconds", "asked", "told"), [(0, 3, "text_delta"), (10, 1, "snapshot")])
async def test_last_events_of_a_run_are_waited_for_right_behind_its_end(
    store: Store, clock: MovableClock, seconds: float, asked: int, told: str
) -> None:
    event_log = LateEventLog(pack([delta(1)]))
    feed = Feed(event_log=event_log)
    follower = Follower(store=store, feed=feed, event_log=event_log, hints=NoHints())
    watch = Watch(store=store, feed=feed, follower=follower, event_log=event_log, clock=clock)
    await add_thread(store, "thread_1")
    made = run(state=RunState.RUN_STATE_COMPLETED)
    made.last_sequence = 1
    made.end_time.FromDatetime(clock.now() - timedelta(seconds=seconds))
    await add_run(store, made)
    batches = await anext(watch.watch(TENANT, "run_1", 0))
    assert ([event.WhichOneof("event") for event in events_of(batches)], event_log.asked) == ([told], asked)
