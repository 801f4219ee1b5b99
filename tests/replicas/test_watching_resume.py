"""Streams that are resumed, joined late, or outlive replicas and the log of their events (contract 11-13)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import RunState
from famulus_server.coordination import streams
from famulus_server.embedded.upstream import Scene, ScriptedUpstream, ToolCall
from killable_server import open_killable
from replicas.conftest import OpenReplica
from run_stage import TOOLS, text_of
from validator import text_of as text_shown
from validator import validate_final, validate_stream

pytestmark = pytest.mark.usefixtures("unhurried")

TIME_CALLED = Scene(times=1, tool_calls=(ToolCall(name="get_time"),))
HELD = Scene(times=1, deltas=8, hold_after=4)


@pytest_asyncio.fixture
async def redis(shared: dict[str, Any]) -> AsyncIterator[Redis]:
    async with Redis.from_url(shared["redis_url"]) as client:
        yield client


def stream_of(run_id: str) -> str:
    return f"famulus:{{{run_id}}}:events"


async def until_written(redis: Redis, run_id: str, sequence: int) -> None:
    """Returns once Redis has a run's events up to a sequence: the writer runs behind the run."""
    while not await redis.xread({stream_of(run_id): f"{sequence - 1}-0"}, block=1_000):
        pass


def kinds(events: list[RunEvent]) -> list[str]:
    return [str(event.WhichOneof("event")) for event in events]


async def test_stream_is_cut_at_every_event_and_resumed_on_another_replica(open_replica: OpenReplica) -> None:
    async with open_replica() as here, open_replica() as there, open_replica(server={"role": "api"}) as third:
        here.play(TIME_CALLED, HELD)
        run = await here.start(assistant_id=(await here.assistant(tools=TOOLS)).id)
        waiting = await here.wait(run.id)
        await here.submit(run.id, (waiting.required_action.tool_calls[0].id, "12:00"))
        before = await there.until_text(run.id, " w4")
        watching = [
            (after, asyncio.create_task(stage.watch(run.id, after)))
            for after in range(len(before))
            for stage in (there, third)
        ]
        (await here.request(2)).released.set()
        whole = await here.watch(run.id)
        validate_stream(whole)
        for after, task in watching:
            assert await task == whole[after:], f"resumed behind {after} while it went on"
        for after in range(len(whole) + 1):
            for stage in (there, third):
                assert await stage.watch(run.id, after) == whole[after:], f"resumed behind {after} after its end"


async def test_run_that_ended_while_nobody_watched_is_told_in_full_by_a_replica_that_came_later(
    open_replica: OpenReplica, redis: Redis
) -> None:
    async with open_replica() as here:
        here.play(Scene(deltas=8))
        run = await here.wait((await here.start()).id)
        await until_written(redis, run.id, run.last_sequence)
        async with open_replica() as late:
            events = await late.watch(run.id)
            validate_final(events, run, await late.messages(run.thread_id, run.id))
            assert events == await here.watch(run.id)
            assert "snapshot" not in kinds(events)


async def test_watcher_of_a_run_whose_first_events_are_trimmed_gets_a_snapshot(
    open_replica: OpenReplica, redis: Redis
) -> None:
    async with open_replica() as here, open_replica() as there:
        here.play(TIME_CALLED, HELD)
        run = await here.start(assistant_id=(await here.assistant(tools=TOOLS)).id)
        waiting = await here.wait(run.id)
        await here.submit(run.id, (waiting.required_action.tool_calls[0].id, "12:00"))
        seen = await here.until_text(run.id, " w4")
        stored = next(event for event in reversed(seen) if event.HasField("run_state_changed")).sequence
        await until_written(redis, run.id, seen[-1].sequence)
        await redis.xtrim(stream_of(run.id), minid=f"{stored + 1}-0", approximate=False)
        early = asyncio.create_task(there.watch(run.id))
        behind = asyncio.create_task(there.watch(run.id, stored))
        [first] = [event for event in await there.until(run.id, "snapshot") if event.HasField("snapshot")]
        assert first.sequence == stored
        (await here.request(2)).released.set()
        events = await early
        validate_stream(events)
        whole = await here.watch(run.id)
        assert kinds(events).count("snapshot") == 1
        assert events[1:] == whole[stored:]
        assert await behind == whole[stored:]
        assert text_shown(events) == "w1 w2 w3 w4 w5 w6 w7 w8"


async def test_late_joiner_of_a_turn_that_is_longer_than_its_stream_misses_nothing_that_stays(
    open_replica: OpenReplica, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_MAX_BATCHES", 100)
    async with open_replica() as here, open_replica() as there:
        # One by one: each is an entry of its own.
        here.play(Scene(deltas=600, pace_ms=1, hold_after=550))
        run = await here.start()
        seen = await here.until_text(run.id, " w550")
        await until_written(redis, run.id, seen[-1].sequence)
        assert await redis.xlen(stream_of(run.id)) < len(seen)
        late = asyncio.create_task(there.watch(run.id))
        close = asyncio.create_task(there.watch(run.id, seen[-2].sequence))
        await there.until(run.id, "snapshot")
        (await here.request()).released.set()
        ended = await here.wait(run.id)
        whole = await here.watch(run.id)
        for events, after in ((await late, 0), (await close, seen[-2].sequence)):
            validate_stream(events, after)
            assert events[-1].sequence == whole[-1].sequence
        [message] = await here.messages(run.thread_id, run.id)
        assert text_shown(await late) == text_of(message)
        assert ended.state == RunState.RUN_STATE_COMPLETED


async def test_run_that_waited_until_its_events_were_gone_goes_on_elsewhere(
    open_replica: OpenReplica, redis: Redis
) -> None:
    async with open_replica() as here, open_replica() as there, open_replica(server={"role": "api"}) as third:
        here.play(TIME_CALLED, Scene(text="noon"))
        run = await here.start(assistant_id=(await here.assistant(tools=TOOLS)).id)
        stayed = [asyncio.create_task(stage.watch(run.id)) for stage in (here, there, third)]
        waiting = await there.wait(run.id)
        for stage in (there, third):
            await stage.until(run.id, "tool_calls_requested")
        await redis.flushall()
        late = [asyncio.create_task(stage.watch(run.id)) for stage in (here, there, third)]
        await there.submit(run.id, (waiting.required_action.tool_calls[0].id, "12:00"))
        ended = await third.wait(run.id)
        assert ended.state == RunState.RUN_STATE_COMPLETED
        messages = await third.messages(run.thread_id, run.id)
        for watching in (*stayed, *late):
            events = await watching
            validate_final(events, ended, messages)
            assert text_shown(events) == "noon"
        for watching in stayed:
            assert "snapshot" not in kinds(await watching)
        for stage in (here, there, third):
            validate_final(await stage.watch(run.id), ended, messages)


async def test_takeover_is_told_by_a_third_replica_with_what_to_discard(
    tmp_path: Path, upstream: ScriptedUpstream, shared: dict[str, Any], open_replica: OpenReplica
) -> None:
    async with (
        open_replica(server={"role": "api"}) as third,
        open_killable(tmp_path / "doomed", upstream, **shared) as (doomed, process),
    ):
        doomed.play(TIME_CALLED, HELD, Scene(deltas=3))
        assistant = await doomed.assistant(tools=TOOLS)
        run = await doomed.start(assistant_id=assistant.id)
        waiting = await third.wait(run.id)
        await doomed.submit(run.id, (waiting.required_action.tool_calls[0].id, "12:00"))
        watching = asyncio.create_task(third.watch(run.id))
        before = await third.until_text(run.id, " w4")
        stored = (await third.get(run.id)).last_sequence
        process.kill()
        async with open_replica() as successor:
            events = await watching
            ended = await third.get(run.id)
            validate_final(events, ended, await third.messages(run.thread_id, run.id))
            assert events[: len(before)] == before
            [started] = [event for event in events if event.HasField("attempt_started")]
            assert started.attempt_started.discards_after_sequence == stored
            assert started.attempt_started.attempt == ended.attempt
            assert "snapshot" not in kinds(events)
            assert text_shown(events) == "w1 w2 w3"
            # The committed turn was not run again.
            assert len(upstream.requests) == 3
            takeover = events.index(started)
            for count in (takeover - 1, takeover, takeover + 1, takeover + 2):
                after = events[count - 1].sequence
                assert await third.watch(run.id, after) == events[count:], f"resumed behind {after}"
                # It never had what was taken back.
                assert await successor.watch(run.id, after) == events[max(count, takeover) :], f"behind {after}"
