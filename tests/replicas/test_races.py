"""Callers who meet on two replicas: whoever is first, both replicas and every caller agree on what happened.

RACES=1000 runs more of them than the quick form.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import chain, pairwise
from typing import Any, TypeVar

import asyncpg
import grpc
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from famulus.v1.run_pb2 import RatingVerdict, Run, RunRating, RunState
from famulus.v1.run_service_pb2 import BusyPolicy, ListRunsRequest, RateRunRequest, SubmitToolOutputsRequest
from famulus.v1.thread_service_pb2 import DeleteThreadRequest
from famulus.v1.tool_pb2 import ToolOutput
from famulus_server.embedded.upstream import Match, Scene, ToolCall
from famulus_server.engine.lifecycle import FINAL
from postgres import EVERYBODY
from replicas.conftest import OpenReplica
from run_stage import TOOLS, Stage, Story, refused, text_of
from serving import Refusal, refusal

pytestmark = pytest.mark.usefixtures("unhurried")

T = TypeVar("T")

RACES = int(os.environ.get("RACES", "60"))
AT_ONCE = 20
EQUAL = 64
ENQUEUE = BusyPolicy.BUSY_POLICY_ENQUEUE
INTERRUPT = BusyPolicy.BUSY_POLICY_INTERRUPT
ROLLBACK = BusyPolicy.BUSY_POLICY_ROLLBACK
COMPLETED, CANCELLED = RunState.RUN_STATE_COMPLETED, RunState.RUN_STATE_CANCELLED
CANCELLING, REQUIRES_ACTION = RunState.RUN_STATE_CANCELLING, RunState.RUN_STATE_REQUIRES_ACTION

QUICK = Scene(deltas=3, pace_ms=1)
ECHO = Scene(text="to ", echo=True)
CALLS = Scene(match=Match(tool_outputs=False), tool_calls=(ToolCall(name="get_time"), ToolCall(name="get_weather")))
ANSWER = Scene(match=Match(tool_outputs=True), text="It is ", quote_outputs=True)

Pair = tuple[Stage, Stage]


@pytest_asyncio.fixture
async def pair(open_replica: OpenReplica) -> AsyncIterator[Pair]:
    async with open_replica() as here, open_replica() as there:
        yield here, there


async def race(count: int, one: Callable[[int], Awaitable[T]]) -> list[T]:
    """What comes of so many races, some of which run at once."""
    results: list[T] = []
    for start in range(0, count, AT_ONCE):
        results += await asyncio.gather(*map(one, range(start, min(start + AT_ONCE, count))))
    return results


async def outcome(call: Awaitable[T]) -> T | Refusal:
    """What a call returns, or how it is refused."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return refusal(error)


async def wait_for_outputs(stage: Stage) -> Run:
    stage.play(CALLS, ANSWER)
    return await stage.wait((await stage.start(assistant_id=(await stage.assistant(tools=TOOLS)).id)).id)


def outputs_of(waiting: Run, text: str) -> list[ToolOutput]:
    return [ToolOutput(call_id=call.id, output=text) for call in waiting.required_action.tool_calls]


async def test_64_equal_creates_make_one_run(pair: Pair) -> None:
    pair[0].play(ECHO)
    create = await pair[0].wanted(request_id="sixty-four")
    answers = await asyncio.gather(*(pair[number % 2].runs.CreateRun(create) for number in range(EQUAL)))
    assert len({answer.run.id for answer in answers}) == 1
    story = await pair[1].tell(answers[0].run.id)
    assert await pair[0].texts(story.run.thread_id) == ["hello", "to hello"]
    assert len((await pair[0].runs.ListRuns(ListRunsRequest())).runs) == 1
    assert len(pair[0].asked) == 1


async def test_64_runs_at_once_on_a_thread_leave_one_active(pair: Pair) -> None:
    pair[0].play(Scene(deltas=6, hold_after=3))
    thread = await pair[0].thread()
    await pair[1].wanted()
    starts = [outcome(pair[n % 2].start(f"number {n}", thread_id=thread.id)) for n in range(EQUAL)]
    results = await asyncio.gather(*starts)
    [accepted] = [result for result in results if isinstance(result, Run)]
    refusals = [result for result in results if isinstance(result, Refusal)]
    assert {(one.code, one.reason) for one in refusals} == {
        (grpc.StatusCode.FAILED_PRECONDITION, "THREAD_HAS_ACTIVE_RUN")
    }
    assert {one.metadata["run_id"] for one in refusals} == {accepted.id}
    assert len(await pair[1].messages(thread.id)) == 1
    (await pair[0].request()).released.set()
    await asyncio.gather(*(stage.tell(accepted.id) for stage in pair))
    assert len(pair[0].asked) == 1


async def test_64_runs_in_line_go_one_after_the_other(pair: Pair) -> None:
    pair[0].play(ECHO)
    thread = await pair[0].thread()
    await pair[1].wanted()
    starts = [pair[n % 2].start(f"number {n}", thread_id=thread.id, busy_policy=ENQUEUE) for n in range(EQUAL)]
    runs = await asyncio.gather(*starts)
    stories = await asyncio.gather(*(pair[n % 2].tell(run.id) for n, run in enumerate(runs)))
    assert {story.run.state for story in stories} == {COMPLETED}
    stories.sort(key=lambda story: story.run.start_time.ToNanoseconds())
    for before, after in pairwise(stories):
        assert before.run.end_time.ToNanoseconds() <= after.run.start_time.ToNanoseconds()
    assert sorted(story.text for story in stories) == sorted(f"to number {number}" for number in range(EQUAL))
    # As many as fit on a page.
    texts = await pair[0].texts(thread.id)
    assert texts[1::2] == [story.text for story in stories[: len(texts) // 2]]
    assert texts[1::2] == [f"to {text}" for text in texts[::2]]
    assert await pair[1].active_run(thread.id) == ""


async def test_run_is_cancelled_or_completes_and_ends_once(pair: Pair) -> None:
    pair[0].play(QUICK)

    async def one(number: int) -> Story:
        stage, other = pair[number % 2], pair[1 - number % 2]
        run = await stage.start()
        # Cancels are spread over the run's few milliseconds.
        for _ in range(number // 2 % 8):
            await other.get(run.id)
        answers = await asyncio.gather(other.cancel(run.id), stage.cancel(run.id))
        story = await other.tell(run.id)
        # Whoever comes late may be shown the end by a Snapshot.
        told = story.all("run_state_changed") + story.all("snapshot")
        ends = [one for one in told if one.run.state in FINAL]
        assert len(ends) == 1
        allowed = {COMPLETED: {COMPLETED}, CANCELLED: {CANCELLING, CANCELLED}}
        assert {answer.state for answer in answers} <= allowed[story.run.state]
        assert await stage.active_run(run.thread_id) == ""
        return story

    stories = await race(RACES, one)
    states = Counter(story.run.state for story in stories)
    assert set(states) == {COMPLETED, CANCELLED}, states


async def test_every_end_of_the_active_run_lets_the_next_one_begin(pair: Pair) -> None:
    pair[0].play(QUICK)

    async def one(number: int) -> None:
        stage, other = pair[number % 2], pair[1 - number % 2]
        first = await stage.start("first")
        for _ in range(number // 2 % 4):
            await other.get(first.id)
        policy = (ENQUEUE, INTERRUPT, ROLLBACK)[number % 3]
        wanted = [
            stage.start("second", thread_id=first.thread_id, busy_policy=policy),
            other.start("third", thread_id=first.thread_id, busy_policy=ENQUEUE),
            other.cancel(first.id),
        ]
        second, third, _ = await asyncio.gather(*wanted)
        stories = await asyncio.gather(*(other.tell(run.id) for run in (first, second, third)))
        # The third may have been the active one, and is then what the second interrupted.
        assert stories[1].run.state == COMPLETED
        assert stories[2].run.state in ((COMPLETED,) if policy == ENQUEUE else (COMPLETED, CANCELLED))
        messages = await stage.messages(first.thread_id)
        users = [text_of(message) for message in messages if not message.run_id]
        assert users[0] == "first"
        assert sorted(users[1:]) == ["second", "third"]
        written = {message.run_id for message in messages if message.run_id}
        assert not written & {story.run.id for story in stories if story.run.rolled_back}
        assert await stage.active_run(first.thread_id) == ""

    await race(RACES // 2, one)


async def test_outputs_from_two_replicas_at_once_are_taken_once(pair: Pair) -> None:
    waiting = await wait_for_outputs(pair[0])
    submit = SubmitToolOutputsRequest(run_id=waiting.id, tool_outputs=outputs_of(waiting, "noon"), request_id="both")
    await asyncio.gather(*(pair[n % 2].runs.SubmitToolOutputs(submit) for n in range(EQUAL)))
    plain = [pair[n % 2].submit(waiting.id, *outputs_of(waiting, "noon")) for n in range(EQUAL)]
    assert {run.id for run in await asyncio.gather(*plain)} == {waiting.id}
    stories = await asyncio.gather(*(stage.tell(waiting.id) for stage in pair))
    assert stories[0].events == stories[1].events
    assert stories[0].kinds.count("tool_output_received") == 1
    assert len(pair[0].asked) == 2


async def test_of_different_outputs_at_once_one_set_is_taken_whole(pair: Pair) -> None:
    waiting = await wait_for_outputs(pair[0])
    texts = [f"output {number}" for number in range(16)]
    calls = [outcome(pair[n % 2].submit(waiting.id, *outputs_of(waiting, text))) for n, text in enumerate(texts)]
    results = await asyncio.gather(*calls)
    [taken] = [text for text, result in zip(texts, results, strict=True) if isinstance(result, Run)]
    assert {one.reason for one in results if isinstance(one, Refusal)} == {"TOOL_OUTPUT_CONFLICT"}
    story = await pair[1].tell(waiting.id)
    assert story.text.count(taken) == 2
    [step] = [step for step in await pair[1].steps(waiting.id) if step.HasField("tool_calls")]
    assert [call.function.output for call in step.tool_calls.tool_calls] == [taken] * 2


async def test_partial_foreign_and_late_outputs_are_refused_by_every_replica(pair: Pair) -> None:
    waiting = await wait_for_outputs(pair[0])
    whole = outputs_of(waiting, "noon")
    foreign = ToolOutput(call_id="call_foreign", output="?")
    for stage in pair:
        assert (await refused(stage.submit(waiting.id, whole[0]))).reason == "TOOL_OUTPUTS_INCOMPLETE"
        assert (await refused(stage.submit(waiting.id, *whole, foreign))).reason == "UNKNOWN_TOOL_CALL"
    assert (await pair[1].get(waiting.id)) == waiting
    await pair[1].cancel(waiting.id)
    for stage in pair:
        late = await refused(stage.submit(waiting.id, *whole))
        assert (late.code, late.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RUN_NOT_WAITING")


async def test_outputs_and_a_cancel_at_once_end_the_run_once(pair: Pair) -> None:
    pair[0].play(CALLS, ANSWER)
    assistant = await pair[0].assistant(tools=TOOLS)

    async def one(number: int) -> None:
        stage, other = pair[number % 2], pair[1 - number % 2]
        waiting = await stage.wait((await stage.start(assistant_id=assistant.id)).id)
        submit = outcome(other.submit(waiting.id, *outputs_of(waiting, "noon")))
        submitted, _ = await asyncio.gather(submit, stage.cancel(waiting.id))
        if isinstance(submitted, Refusal):
            assert submitted.reason == "RUN_NOT_WAITING"
        story = await other.tell(waiting.id)
        assert story.run.state in (CANCELLED, COMPLETED)
        assert story.kinds.count("tool_output_received") == isinstance(submitted, Run)
        assert await stage.active_run(waiting.thread_id) == ""

    await race(RACES // 2, one)


async def test_equal_ratings_from_two_replicas_are_one(pair: Pair) -> None:
    pair[0].play(ECHO)
    story = await pair[0].play_out()
    request = RateRunRequest(
        run_id=story.run.id, rating=RunRating(verdict=RatingVerdict.RATING_VERDICT_GOOD), request_id="both"
    )
    answers = await asyncio.gather(*(pair[number % 2].runs.RateRun(request) for number in range(EQUAL)))
    assert {answer.run.etag for answer in answers} == {(await pair[1].get(story.run.id)).etag}


@pytest.mark.timeout(600)
async def test_thread_deleted_during_a_run_leaves_nothing(pair: Pair, shared: dict[str, Any]) -> None:
    pair[0].play(CALLS, QUICK)
    assistant = await pair[0].assistant(tools=TOOLS)
    plain = await pair[0].assistant()

    async def one(number: int) -> list[str]:
        stage, other = pair[number % 2], pair[1 - number % 2]
        run = await stage.start(assistant_id=(assistant if number % 5 == 0 else plain).id)
        for _ in range(number // 2 % 6):
            await other.get(run.id)
        policy = (ENQUEUE, INTERRUPT, ROLLBACK)[number % 3]
        watching = [asyncio.create_task(outcome(one.watch(run.id))) for one in pair]
        delete = other.threads.DeleteThread(DeleteThreadRequest(thread_id=run.thread_id))
        calls: list[Awaitable[Any]] = [delete]
        if number % 2:
            calls.append(outcome(stage.start("more", thread_id=run.thread_id, busy_policy=policy)))
        if number % 3 == 0:
            calls.append(outcome(stage.cancel(run.id)))
        results = await asyncio.gather(*calls)
        for result in results[1:]:
            assert not isinstance(result, Refusal) or result.code is grpc.StatusCode.NOT_FOUND, result
        others = [result.id for result in results[1:] if isinstance(result, Run) and result.id != run.id]
        for place in pair:
            for run_id in (run.id, *others):
                assert (await refused(place.watch(run_id))).code is grpc.StatusCode.NOT_FOUND
        for seen in await asyncio.gather(*watching):
            # It ended before, or is gone.
            assert not isinstance(seen, Refusal) or seen.reason in ("THREAD_DELETED", "RESOURCE_NOT_FOUND"), seen
        return [run.id, *others]

    run_ids = list(chain.from_iterable(await race(RACES, one)))
    connection = await asyncpg.connect(shared["database_url"], server_settings=EVERYBODY)
    try:
        for table in (
            *("runs", "run_steps", "run_turns", "queued_messages"),
            *("messages", "message_overrides", "thread_segments", "thread_metadata"),
        ):
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0, table
        buried = await connection.fetchval("SELECT count(*) FROM threads WHERE deleted_time IS NOT NULL")
        assert buried == await connection.fetchval("SELECT count(*) FROM threads") == RACES
    finally:
        await connection.close()
    async with Redis.from_url(shared["redis_url"]) as redis, asyncio.timeout(30):
        # Whoever was at work hears of the deletion a moment later.
        for run_id in run_ids:
            while await redis.xlen(f"famulus:{{{run_id}}}:events"):  # noqa: ASYNC110 - Redis tells nobody
                await asyncio.sleep(0.1)
