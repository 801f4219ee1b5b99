"""Events that are gone: Valkey killed, flushed or full, memory trimmed. Runs do not notice, watchers get a Snapshot."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from famulus.v1.message_pb2 import MessageState
from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2 import WatchRunRequest
from famulus.v1.thread_service_pb2 import DeleteThreadRequest
from famulus_server.config import Settings
from famulus_server.embedded.upstream import Scene, ScriptedUpstream, ToolCall
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.engine import feed
from run_stage import TOOLS, open_stage, stage_settings, text_of
from validator import text_of as text_shown
from validator import validate_stream

HELD = Scene(deltas=6, hold_after=3)
TIME_CALLED = Scene(times=1, tool_calls=(ToolCall(name="get_time"),))


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as opened:
        yield opened


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[EmbeddedValkey]:
    embedded = EmbeddedValkey(data_dir=tmp_path / "v")
    yield embedded
    await embedded.close()


@pytest.fixture
async def redis_url(valkey: EmbeddedValkey) -> str:
    return await valkey.start()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def settings(tmp_path: Path, upstream: ScriptedUpstream, redis_url: str) -> Settings:
    return stage_settings(tmp_path, upstream.base_url, redis_url=redis_url)


async def kill(redis: Redis, valkey: EmbeddedValkey) -> None:
    os.kill((await redis.info("server"))["process_id"], signal.SIGKILL)
    # It may still be writing its file, and answering.
    await valkey.exited()


@pytest.mark.usefixtures("unhurried")
async def test_events_outlive_the_server(settings: Settings, upstream: ScriptedUpstream) -> None:
    async with open_stage(settings, upstream, [Scene(deltas=5)]) as stage:
        story = await stage.play_out()
    async with open_stage(settings, upstream) as stage:
        for after in range(len(story.events)):
            assert await stage.watch(story.run.id, after) == story.events[after:]


async def test_ended_run_whose_events_are_gone_is_told_by_a_snapshot_alone(
    settings: Settings, upstream: ScriptedUpstream, redis: Redis
) -> None:
    async with open_stage(settings, upstream, [Scene(deltas=5)]) as stage:
        run = (await stage.play_out()).run
    await redis.flushall()
    async with open_stage(settings, upstream) as stage:
        for after in (0, 3):
            [event] = await stage.watch(run.id, after)
            validate_stream([event], after)
            assert event.sequence == run.last_sequence
            assert event.snapshot.run == run
            assert list(event.snapshot.messages) == await stage.messages(run.thread_id, run.id)
            assert list(event.snapshot.steps) == await stage.steps(run.id)
        assert await stage.watch(run.id, run.last_sequence) == []
        assert await stage.wait(run.id) == run


@pytest.mark.usefixtures("unhurried")
async def test_ended_run_whose_oldest_events_are_gone_is_told_without_a_gap(
    settings: Settings, upstream: ScriptedUpstream, redis: Redis
) -> None:
    async with open_stage(settings, upstream, [Scene(deltas=5)]) as stage:
        story = await stage.play_out()
    [key] = await redis.keys("*events*")
    await redis.xtrim(key, minid="6-0", approximate=False)
    async with open_stage(settings, upstream) as stage:
        whole = await stage.watch(story.run.id)
        validate_stream(whole)
        assert whole[0].HasField("snapshot")
        assert await stage.watch(story.run.id, 5) == story.events[5:]


@pytest.mark.usefixtures("unhurried")
async def test_waiting_run_whose_events_are_gone_is_told_from_a_snapshot_on(
    settings: Settings, upstream: ScriptedUpstream, redis: Redis
) -> None:
    async with open_stage(settings, upstream, [TIME_CALLED, Scene(text="fine")]) as stage:
        assistant = await stage.assistant(tools=TOOLS)
        waiting = await stage.wait((await stage.start(assistant_id=assistant.id)).id)
    await redis.flushall()
    async with open_stage(settings, upstream) as stage:
        watching = asyncio.create_task(stage.watch(waiting.id))
        await stage.until(waiting.id, "snapshot")
        await stage.submit(waiting.id, (waiting.required_action.tool_calls[0].id, "noon"))
        events = await watching
        validate_stream(events)
        assert events[0].snapshot.run == waiting
        assert events[0].sequence == waiting.last_sequence
        assert len(events[0].snapshot.steps) == 1
        assert [event.HasField("snapshot") for event in events].count(True) == 1
        assert text_shown(events) == "fine"


@pytest.mark.usefixtures("unhurried")
async def test_takeover_hides_no_facts_that_are_gone(
    settings: Settings, upstream: ScriptedUpstream, redis: Redis
) -> None:
    held = Scene(times=1, deltas=6, hold_after=3)
    async with open_stage(settings, upstream, [TIME_CALLED, held, Scene(text="fine")]) as stage:
        assistant = await stage.assistant(tools=TOOLS)
        waiting = await stage.wait((await stage.start(assistant_id=assistant.id)).id)
        await stage.submit(waiting.id, (waiting.required_action.tool_calls[0].id, "noon"))
        await stage.until(waiting.id, "text_delta")
    await redis.flushall()
    async with open_stage(settings, upstream) as stage:
        await stage.wait(waiting.id)
    async with open_stage(settings, upstream) as stage:
        # Valkey has the AttemptStarted of the takeover and all that follows, but nothing before.
        for after in (0, 2, waiting.last_sequence):
            events = await stage.watch(waiting.id, after)
            validate_stream(events, after)
            assert events[0].HasField("snapshot"), "a silent gap"
        stored = waiting.last_sequence + 3
        rest = await stage.watch(waiting.id, stored)
        assert rest[0].HasField("attempt_started")
        validate_stream(rest, stored)


async def test_snapshot_in_the_middle_of_a_turn_shows_the_unfinished_message(
    settings: Settings,
    upstream: ScriptedUpstream,
    redis: Redis,
    valkey: EmbeddedValkey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "_MAX_BYTES", 20_000)
    async with open_stage(settings, upstream, [Scene(deltas=500, hold_after=450)]) as stage:
        await kill(redis, valkey)
        run = await stage.start()
        await stage.until_text(run.id, " w450")
        responses = aiter(stage.runs.WatchRun(WatchRunRequest(run_id=run.id)))
        events = list((await anext(responses)).events)
        (await stage.request()).released.set()
        events += [event async for response in responses for event in response.events]
        validate_stream(events)
        # Behind a slow reader memory may be trimmed again: then there is another one.
        snapshot = next(event.snapshot for event in events if event.HasField("snapshot"))
        [unfinished] = snapshot.messages
        assert unfinished.state == MessageState.MESSAGE_STATE_IN_PROGRESS
        assert len(snapshot.steps) == 1
        [message] = await stage.messages(run.thread_id, run.id)
        assert text_of(message) == text_shown(events)
        assert text_of(unfinished).split() == text_of(message).split()[:450]


@pytest.mark.usefixtures("unhurried")
async def test_what_memory_has_trimmed_is_read_from_valkey_without_a_gap(
    settings: Settings, upstream: ScriptedUpstream, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_MAX_BYTES", 2_000)
    async with open_stage(settings, upstream, [Scene(deltas=200)]) as stage:
        run = await stage.wait((await stage.start()).id)
        # The writer runs behind the run: this waits for the last event.
        assert await redis.xread({f"famulus:{{{run.id}}}:events": f"{run.last_sequence - 1}-0"}, block=5_000)
        story = await stage.tell(run.id)
        assert "snapshot" not in story.kinds
        assert len(story.all("text_delta")) == 200


async def test_no_run_fails_when_valkey_is_killed(
    settings: Settings, upstream: ScriptedUpstream, redis: Redis, valkey: EmbeddedValkey
) -> None:
    async with open_stage(settings, upstream, [Scene(deltas=20, hold_after=10)]) as stage:
        runs = [await stage.start() for _ in range(20)]
        watching = [asyncio.create_task(stage.tell(run.id)) for run in runs]
        for run in runs:
            await stage.until(run.id, "text_delta")
        await kill(redis, valkey)
        for number in range(1, 21):
            (await stage.request(number)).released.set()
        stories = await asyncio.gather(*watching)
        assert [story.run.state for story in stories] == [RunState.RUN_STATE_COMPLETED] * 20
        assert all(len(story.text.split()) == 20 for story in stories)
        assert all("snapshot" not in story.kinds for story in stories)
        stage.play(Scene(text="fine"))
        assert (await stage.play_out()).text == "fine"


@pytest.mark.usefixtures("unhurried")
async def test_valkey_that_comes_back_is_given_what_it_missed(
    settings: Settings, upstream: ScriptedUpstream, redis: Redis, valkey: EmbeddedValkey
) -> None:
    async with open_stage(settings, upstream, [Scene(text="fine")]) as stage:
        await kill(redis, valkey)
        missed = await stage.play_out()
        await valkey.start()
        kept = await stage.play_out()
    async with open_stage(settings, upstream) as stage:
        assert await stage.watch(kept.run.id) == kept.events
        assert await stage.watch(missed.run.id) == missed.events


async def test_frozen_valkey_delays_neither_runs_nor_watchers(
    settings: Settings, upstream: ScriptedUpstream, redis: Redis
) -> None:
    async with open_stage(settings, upstream, [Scene(deltas=20)]) as stage:
        process = (await redis.info("server"))["process_id"]
        os.kill(process, signal.SIGSTOP)
        try:
            stories = await asyncio.gather(*(stage.play_out() for _ in range(10)))
        finally:
            os.kill(process, signal.SIGCONT)
        assert all(story.run.state == RunState.RUN_STATE_COMPLETED for story in stories)


async def test_deleting_a_thread_removes_its_events(
    settings: Settings, upstream: ScriptedUpstream, redis: Redis
) -> None:
    async with open_stage(settings, upstream, [Scene(deltas=5)]) as stage:
        run = (await stage.play_out()).run
        stage.play(HELD)
        active = await stage.start("more", thread_id=run.thread_id)
        await stage.until(active.id, "text_delta")
        await stage.threads.DeleteThread(DeleteThreadRequest(thread_id=run.thread_id))
        await stage.request_ended()
    # What stays for a while has no content; it keeps out what a late worker would still write.
    for key in await redis.keys("*events*"):
        assert await redis.xlen(key) == 0
        assert await redis.ttl(key) > 0
