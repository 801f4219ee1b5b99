"""A second run on a busy thread: refused, in line, or in the place of the first (contract 6)."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from famulus.v1.message_pb2 import MessageIncompleteReason, MessageState
from famulus.v1.run_pb2 import RatingVerdict, Run, RunRating, RunState
from famulus.v1.run_service_pb2 import (
    BusyPolicy,
    ListRunsRequest,
    RateRunRequest,
    UpdateRunRequest,
)
from famulus.v1.run_step_pb2 import RunStepState
from famulus.v1.thread_service_pb2 import DeleteThreadRequest, ForkThreadRequest
from famulus_server.embedded.upstream import Fault, Match, Scene, ScriptedUpstream, ToolCall
from run_stage import TOOLS, Stage, Story, open_stage, refused, stage_settings, text_of
from validator import validate_stream

pytestmark = pytest.mark.asyncio(loop_scope="module")

REJECT = BusyPolicy.BUSY_POLICY_REJECT
ENQUEUE = BusyPolicy.BUSY_POLICY_ENQUEUE
INTERRUPT = BusyPolicy.BUSY_POLICY_INTERRUPT
ROLLBACK = BusyPolicy.BUSY_POLICY_ROLLBACK
QUEUED, IN_PROGRESS = RunState.RUN_STATE_QUEUED, RunState.RUN_STATE_IN_PROGRESS
REQUIRES_ACTION = RunState.RUN_STATE_REQUIRES_ACTION
CANCELLED, COMPLETED = RunState.RUN_STATE_CANCELLED, RunState.RUN_STATE_COMPLETED

HELD = Scene(times=1, deltas=6, hold_after=3)
WHOLE = "w1 w2 w3 w4 w5 w6"
PARTIAL = "w1 w2 w3"
ECHO = Scene(text="to ", echo=True)
TIME_CALLED = Scene(times=1, text="Let me see.", tool_calls=(ToolCall(name="get_time"),))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def narrow(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Executes one run at a time."""
    folder = tmp_path_factory.mktemp("narrow")
    async with ScriptedUpstream() as upstream:
        settings = stage_settings(folder, upstream.base_url, worker={"slots": 1})
        async with open_stage(settings, upstream) as opened:
            yield opened


async def hold(stage: Stage, *following: Scene) -> Run:
    """A run in the middle of its first message; the model's part after it is an echo, unless given."""
    stage.play(HELD, *(following or (ECHO,)))
    run = await stage.start("first")
    await stage.until(run.id, "text_delta")
    return run


async def wait_for_outputs(stage: Stage, *following: Scene) -> Run:
    """A run that has written a message and waits for an output."""
    stage.play(TIME_CALLED, *(following or (ECHO,)))
    return await stage.wait((await stage.start("first", assistant_id=(await stage.assistant(tools=TOOLS)).id)).id)


async def release(stage: Stage, number: int = 1) -> None:
    (await stage.request(number)).released.set()


async def tell_cancelled(stage: Stage, run_id: str) -> Story:
    story = await stage.tell(run_id)
    assert story.run.state == CANCELLED
    return story


def heard(stage: Stage, number: int) -> list[str]:
    """The texts in the model's request of this number."""
    return [item["content"][0]["text"] for item in stage.asked[number - 1]["input"] if "content" in item]


@pytest.mark.parametrize("policy", BusyPolicy.values())
async def test_idle_thread_knows_no_policy(stage: Stage, policy: "BusyPolicy.ValueType") -> None:
    stage.play(ECHO)
    first = await stage.play_out("one", busy_policy=policy)
    second = await stage.play_out("two", thread_id=first.run.thread_id, busy_policy=policy)
    assert (first.states[0], second.states[0]) == (IN_PROGRESS, IN_PROGRESS)
    assert await stage.texts(first.run.thread_id) == ["one", "to one", "two", "to two"]


async def test_policy_that_does_not_exist_is_a_wrong_field(stage: Stage) -> None:
    refusal = await refused(stage.start(busy_policy=99))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["busy_policy"])


async def test_enqueued_run_waits_and_its_messages_join_when_it_starts(stage: Stage) -> None:
    first = await hold(stage)
    second = await stage.start("second", thread_id=first.thread_id, busy_policy=ENQUEUE)
    assert (second.state, second.last_sequence) == (QUEUED, 1)
    assert await stage.active_run(first.thread_id) == first.id
    assert await stage.texts(first.thread_id) == ["first"]
    listed = await stage.runs.ListRuns(ListRunsRequest(thread_id=first.thread_id, states=[QUEUED]))
    assert [run.id for run in listed.runs] == [second.id]
    await release(stage)
    story = await stage.tell(second.id)
    assert story.states == [QUEUED, IN_PROGRESS, COMPLETED]
    assert heard(stage, 2) == ["first", WHOLE, "second"]
    assert await stage.texts(first.thread_id) == ["first", WHOLE, "second", "to second"]
    assert await stage.active_run(first.thread_id) == ""


async def test_runs_in_line_go_one_after_the_other_in_their_order(stage: Stage) -> None:
    first = await hold(stage)
    line = [await stage.start(f"number {n}", thread_id=first.thread_id, busy_policy=ENQUEUE) for n in range(8)]
    await release(stage)
    stories = await asyncio.gather(*(stage.tell(run.id) for run in line))
    for before, after in pairwise(stories):
        assert before.run.end_time.ToMicroseconds() <= after.run.start_time.ToMicroseconds()
    told = [text for n in range(8) for text in (f"number {n}", f"to number {n}")]
    assert await stage.texts(first.thread_id) == ["first", WHOLE, *told]


async def test_message_said_meanwhile_comes_before_those_that_wait(stage: Stage) -> None:
    first = await hold(stage)
    second = await stage.start("second", thread_id=first.thread_id, busy_policy=ENQUEUE)
    await stage.say(first.thread_id, "meanwhile")
    await release(stage)
    await stage.tell(second.id)
    assert await stage.texts(first.thread_id) == ["first", "meanwhile", WHOLE, "second", "to second"]


async def test_stream_of_a_run_in_line_shows_it_from_its_first_event_and_resumes(stage: Stage) -> None:
    first = await hold(stage)
    create = await stage.wanted("second", thread_id=first.thread_id, busy_policy=ENQUEUE, request_id="in line")
    streaming = asyncio.create_task(stage.stream(create))
    second = (await stage.runs.CreateRun(create)).run
    await release(stage)
    events = await streaming
    validate_stream(events)
    assert events[0].run_state_changed.run.id == second.id
    assert await stage.stream(create, after=1) == events[1:]


async def test_interrupt_keeps_what_was_written_and_the_next_run_sees_it(stage: Stage) -> None:
    first = await hold(stage)
    second = await stage.start("second", thread_id=first.thread_id, busy_policy=INTERRUPT)
    assert second.state == QUEUED
    assert (await stage.request_ended()).outcome == "disconnected"
    interrupted = await tell_cancelled(stage, first.id)
    [kept] = interrupted.messages
    assert kept.state == MessageState.MESSAGE_STATE_INCOMPLETE
    assert kept.incomplete_reason == MessageIncompleteReason.MESSAGE_INCOMPLETE_REASON_RUN_CANCELLED
    assert not interrupted.run.rolled_back
    await stage.tell(second.id)
    texts = [text.strip() for text in await stage.texts(first.thread_id)]
    assert texts == ["first", PARTIAL, "second", "to second"]
    assert [text.strip() for text in heard(stage, 2)] == texts[:3]


async def test_rollback_removes_what_the_active_run_wrote_and_nothing_else(stage: Stage) -> None:
    stage.play(Scene(times=1, text="earlier"), HELD, ECHO)
    earlier = await stage.play_out("before")
    first = await stage.start("first", thread_id=earlier.run.thread_id)
    await stage.until(first.id, "text_delta")
    await stage.say(first.thread_id, "meanwhile")
    second = await stage.start("second", thread_id=first.thread_id, busy_policy=ROLLBACK)
    told = await stage.tell(second.id)
    assert await stage.texts(first.thread_id) == ["before", "earlier", "first", "meanwhile", "second", told.text]
    assert heard(stage, 3) == ["before", "earlier", "first", "meanwhile", "second"]
    rolled_back = await tell_cancelled(stage, first.id)
    assert (rolled_back.messages, rolled_back.run.rolled_back) == ([], True)
    assert [step.state for step in await stage.steps(first.id)] == [RunStepState.RUN_STEP_STATE_CANCELLED]


@pytest.mark.parametrize("answered", [False, True])
async def test_rollback_removes_the_messages_of_all_turns(stage: Stage, answered: bool) -> None:
    waiting = await wait_for_outputs(stage, *([HELD, ECHO] if answered else [ECHO]))
    forked = await stage.threads.ForkThread(ForkThreadRequest(thread_id=waiting.thread_id))
    if answered:
        await stage.submit(waiting.id, (waiting.required_action.tool_calls[0].id, "noon"))
        await stage.until_text(waiting.id, " w3")
    second = await stage.start("second", thread_id=waiting.thread_id, busy_policy=ROLLBACK)
    await stage.tell(second.id)
    assert await stage.texts(waiting.thread_id) == ["first", "second", "to second"]
    assert await stage.messages(waiting.thread_id, waiting.id) == []
    # A fork keeps what it saw when it was made.
    assert await stage.texts(forked.thread.id) == ["first", "Let me see."]
    events = await stage.watch(waiting.id)
    validate_stream(events)
    assert events[-1].run_state_changed.run.state == CANCELLED
    assert events[-1].run_state_changed.run.rolled_back


async def test_run_that_waits_for_outputs_is_interrupted_at_once(stage: Stage) -> None:
    waiting = await wait_for_outputs(stage)
    second = await stage.start("second", thread_id=waiting.thread_id, busy_policy=INTERRUPT)
    interrupted = await tell_cancelled(stage, waiting.id)
    assert [step.state for step in await stage.steps(waiting.id)][-1] == RunStepState.RUN_STEP_STATE_CANCELLED
    assert interrupted.messages[0].state == MessageState.MESSAGE_STATE_COMPLETED
    late = await refused(stage.submit(waiting.id, (waiting.required_action.tool_calls[0].id, "noon")))
    assert (late.reason, late.metadata["state"]) == ("RUN_NOT_WAITING", "RUN_STATE_CANCELLED")
    await stage.tell(second.id)
    assert await stage.texts(waiting.thread_id) == ["first", "Let me see.", "second", "to second"]


async def test_run_that_waits_for_outputs_holds_the_line_until_it_ends(stage: Stage) -> None:
    waiting = await wait_for_outputs(stage, Scene(times=1, match=Match(tool_outputs=True), text="It is noon."), ECHO)
    refusal = await refused(stage.start("no", thread_id=waiting.thread_id, busy_policy=REJECT))
    assert (refusal.reason, refusal.metadata["run_id"]) == ("THREAD_HAS_ACTIVE_RUN", waiting.id)
    second = await stage.start("second", thread_id=waiting.thread_id, busy_policy=ENQUEUE)
    assert (await stage.get(second.id)).state == QUEUED
    assert await stage.active_run(waiting.thread_id) == waiting.id
    await stage.submit(waiting.id, (waiting.required_action.tool_calls[0].id, "noon"))
    await asyncio.gather(stage.tell(waiting.id), stage.tell(second.id))
    assert await stage.texts(waiting.thread_id) == ["first", "Let me see.", "It is noon.", "second", "to second"]


@pytest.mark.parametrize("policy", [ENQUEUE, INTERRUPT, ROLLBACK])
async def test_run_that_waits_for_a_slot_can_be_followed_and_interrupted(
    narrow: Stage, policy: "BusyPolicy.ValueType"
) -> None:
    elsewhere = await hold(narrow)
    first = await narrow.start("one")
    second = await narrow.start("two", thread_id=first.thread_id, busy_policy=policy)
    assert (first.state, second.state) == (QUEUED, QUEUED)
    ended = policy != ENQUEUE
    assert (await narrow.get(first.id)).state == (CANCELLED if ended else QUEUED)
    assert await narrow.active_run(first.thread_id) == (second.id if ended else first.id)
    # The messages of the first one had joined the thread: they are the user's, and stay.
    assert await narrow.texts(first.thread_id) == (["one", "two"] if ended else ["one"])
    await release(narrow)
    await asyncio.gather(*(narrow.tell(run.id) for run in (elsewhere, first, second)))
    expected = ["one", "two", "to two"] if ended else ["one", "to one", "two", "to two"]
    assert await narrow.texts(first.thread_id) == expected


async def test_run_that_interrupts_goes_before_those_in_line(stage: Stage) -> None:
    first = await hold(stage)
    patient = await stage.start("patient", thread_id=first.thread_id, busy_policy=ENQUEUE)
    urgent = await stage.start("urgent", thread_id=first.thread_id, busy_policy=INTERRUPT)
    await asyncio.gather(*(stage.tell(run.id) for run in (first, patient, urgent)))
    texts = [text.strip() for text in await stage.texts(first.thread_id)]
    assert texts == ["first", PARTIAL, "urgent", "to urgent", "patient", "to patient"]


async def test_many_interrupts_at_once_leave_one_run_and_every_message(stage: Stage) -> None:
    first = await hold(stage)
    starts = [stage.start(f"number {n}", thread_id=first.thread_id, busy_policy=INTERRUPT) for n in range(12)]
    runs = await asyncio.gather(*starts)
    stories = await asyncio.gather(*(stage.tell(run.id) for run in (first, *runs)))
    states = [story.run.state for story in stories]
    assert states.count(COMPLETED) == 1
    assert states.count(CANCELLED) == len(runs)
    said = [text_of(message) for message in await stage.messages(first.thread_id) if not message.run_id]
    assert said[0] == "first"
    assert sorted(said[1:]) == sorted(f"number {n}" for n in range(12))
    assert await stage.active_run(first.thread_id) == ""


@pytest.mark.parametrize("policy", [INTERRUPT, ROLLBACK])
async def test_repeated_request_interrupts_once(stage: Stage, policy: "BusyPolicy.ValueType") -> None:
    first = await hold(stage, Scene(times=1, deltas=6, hold_after=3), ECHO)
    create = await stage.wanted("second", thread_id=first.thread_id, busy_policy=policy, request_id=f"once {policy}")
    runs = [answer.run.id for answer in await asyncio.gather(*(stage.runs.CreateRun(create) for _ in range(8)))]
    assert len(set(runs)) == 1
    await stage.until(runs[0], "text_delta")
    assert (await stage.runs.CreateRun(create)).run.id == runs[0]
    await release(stage, 2)
    assert (await stage.tell(runs[0])).run.state == COMPLETED
    assert (await stage.texts(first.thread_id)).count("second") == 1


@pytest.mark.parametrize(
    ("state", "ending"),
    [
        (RunState.RUN_STATE_FAILED, {"fault": Fault(kind="response_failed", after=3, code="invalid_prompt")}),
        (RunState.RUN_STATE_INCOMPLETE, {"finish": "length"}),
        (RunState.RUN_STATE_EXPIRED, {}),
        (CANCELLED, {}),
    ],
)
async def test_whatever_ends_the_active_run_lets_the_next_one_begin(
    stage: Stage, state: "RunState.ValueType", ending: dict[str, Any]
) -> None:
    stage.play(Scene(times=1, deltas=6, hold_after=2, **ending), ECHO)
    first = await stage.start("first", ttl=Duration(seconds=1 if state == RunState.RUN_STATE_EXPIRED else 60))
    second = await stage.start("second", thread_id=first.thread_id, busy_policy=ENQUEUE)
    assert second.state == QUEUED
    if state == CANCELLED:
        await stage.cancel(first.id)
    elif ending:
        await release(stage)
    told = await asyncio.gather(stage.tell(first.id), stage.tell(second.id))
    assert [story.run.state for story in told] == [state, COMPLETED]
    assert (await stage.texts(first.thread_id))[-2:] == ["second", "to second"]


async def test_run_that_waits_for_outputs_too_long_lets_the_next_one_begin(stage: Stage) -> None:
    stage.play(TIME_CALLED, ECHO)
    assistant = await stage.assistant(tools=TOOLS)
    first = await stage.start("first", assistant_id=assistant.id, ttl=Duration(seconds=1))
    second = await stage.start("second", thread_id=first.thread_id, busy_policy=ENQUEUE)
    told = await asyncio.gather(stage.tell(first.id), stage.tell(second.id))
    assert [story.run.state for story in told] == [RunState.RUN_STATE_EXPIRED, COMPLETED]


async def test_run_in_line_that_is_cancelled_never_says_its_messages(stage: Stage) -> None:
    first = await hold(stage)
    line = [await stage.start(f"number {n}", thread_id=first.thread_id, busy_policy=ENQUEUE) for n in range(3)]
    assert (await stage.cancel(line[1].id)).state == CANCELLED
    assert (await stage.cancel(line[1].id)).state == CANCELLED
    assert await stage.active_run(first.thread_id) == first.id
    await release(stage)
    stories = await asyncio.gather(*(stage.tell(run.id) for run in line))
    assert stories[1].states == [QUEUED, CANCELLED]
    told = [text for n in (0, 2) for text in (f"number {n}", f"to number {n}")]
    assert await stage.texts(first.thread_id) == ["first", WHOLE, *told]


async def test_run_in_line_expires_at_its_time(stage: Stage) -> None:
    first = await hold(stage)
    ttl = Duration(seconds=1)
    second = await stage.start("second", thread_id=first.thread_id, busy_policy=ENQUEUE, ttl=ttl)
    third = await stage.start("third", thread_id=first.thread_id, busy_policy=ENQUEUE)
    assert (await stage.tell(second.id)).states == [QUEUED, RunState.RUN_STATE_EXPIRED]
    assert await stage.active_run(first.thread_id) == first.id
    await release(stage)
    await stage.tell(third.id)
    assert await stage.texts(first.thread_id) == ["first", WHOLE, "third", "to third"]


async def test_run_in_line_keeps_its_place_when_it_is_changed(stage: Stage) -> None:
    first = await hold(stage)
    second = await stage.start("second", thread_id=first.thread_id, busy_policy=ENQUEUE)
    third = await stage.start("third", thread_id=first.thread_id, busy_policy=ENQUEUE)
    changed = UpdateRunRequest(run=Run(id=second.id, metadata={"k": "v"}, etag=second.etag))
    assert (await stage.runs.UpdateRun(changed)).run.state == QUEUED
    assert await stage.active_run(first.thread_id) == first.id
    rating = RunRating(verdict=RatingVerdict.RATING_VERDICT_GOOD)
    rated = stage.runs.RateRun(RateRunRequest(run_id=second.id, rating=rating))
    assert (await refused(rated)).reason == "RUN_NOT_FINISHED"
    assert (await refused(stage.submit(second.id, ("call_1", "?")))).reason == "RUN_NOT_WAITING"
    await release(stage)
    await asyncio.gather(stage.tell(second.id), stage.tell(third.id))
    assert dict((await stage.get(second.id)).metadata) == {"k": "v"}
    assert (await stage.texts(first.thread_id))[2:] == ["second", "to second", "third", "to third"]


async def test_deletion_of_the_thread_ends_the_whole_line(stage: Stage) -> None:
    first = await hold(stage)
    line = [await stage.start("more", thread_id=first.thread_id, busy_policy=ENQUEUE) for _ in range(2)]
    watching = [asyncio.create_task(refused(stage.watch(run.id))) for run in (first, *line)]
    await asyncio.gather(*(stage.until(run.id, "run_state_changed") for run in (first, *line)))
    await stage.threads.DeleteThread(DeleteThreadRequest(thread_id=first.thread_id))
    assert {refusal.reason for refusal in await asyncio.gather(*watching)} == {"THREAD_DELETED"}
    for run in line:
        assert (await refused(stage.get(run.id))).code is grpc.StatusCode.NOT_FOUND
    assert (await stage.request_ended()).outcome == "disconnected"
    assert len(stage.asked) == 1


async def test_fork_has_nothing_of_those_in_line(stage: Stage) -> None:
    first = await hold(stage)
    second = await stage.start("second", thread_id=first.thread_id, busy_policy=ENQUEUE)
    forked = (await stage.threads.ForkThread(ForkThreadRequest(thread_id=first.thread_id))).thread
    assert (await stage.texts(forked.id), forked.active_run_id) == (["first"], "")
    await release(stage)
    await stage.tell(second.id)
    assert await stage.texts(forked.id) == ["first"]


async def test_refused_run_that_would_interrupt_changes_nothing(stage: Stage) -> None:
    first = await hold(stage)
    for policy in (ENQUEUE, INTERRUPT, ROLLBACK):
        wanted = stage.start("no", thread_id=first.thread_id, busy_policy=policy, model="nonesuch")
        assert (await refused(wanted)).reason == "UNKNOWN_MODEL"
    assert (await stage.get(first.id)).state == IN_PROGRESS
    await release(stage)
    assert (await stage.tell(first.id)).text == WHOLE
