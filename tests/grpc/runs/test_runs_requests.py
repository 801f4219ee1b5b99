"""Request ids: a call that is repeated has one effect, whatever became of what it made (contract 5)."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from famulus.v1.run_pb2 import RatingVerdict, Run, RunRating, RunState
from famulus.v1.run_service_pb2 import (
    BusyPolicy,
    CreateRunRequest,
    ListRunsRequest,
    RateRunRequest,
    StreamRunRequest,
    SubmitToolOutputsRequest,
)
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import (
    CreateMessageRequest,
    CreateThreadRequest,
    DeleteThreadRequest,
    ForkThreadRequest,
    ListThreadsRequest,
)
from famulus.v1.tool_pb2 import ToolOutput
from famulus_server.embedded.upstream import Match, Scene, ToolCall
from run_stage import TOOLS, Stage, refused
from serving import said

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD, BAD = RatingVerdict.RATING_VERDICT_GOOD, RatingVerdict.RATING_VERDICT_BAD
COMPLETED = RunState.RUN_STATE_COMPLETED
TIME_CALLED = Scene(times=1, tool_calls=(ToolCall(name="get_time"),))
ANSWER = Scene(match=Match(tool_outputs=True), text="It is ", quote_outputs=True)


async def wait_for_outputs(stage: Stage, *scenes: Scene) -> Run:
    stage.play(*scenes or (TIME_CALLED, ANSWER))
    return await stage.wait((await stage.start(assistant_id=(await stage.assistant(tools=TOOLS)).id)).id)


def outputs_of(waiting: Run, text: str = "noon", **fields: Any) -> SubmitToolOutputsRequest:
    outputs = [ToolOutput(call_id=call.id, output=text) for call in waiting.required_action.tool_calls]
    return SubmitToolOutputsRequest(run_id=waiting.id, tool_outputs=outputs, **fields)


async def rate(stage: Stage, run_id: str, verdict: "RatingVerdict.ValueType", request_id: str = "") -> Run:
    request = RateRunRequest(run_id=run_id, rating=RunRating(verdict=verdict), request_id=request_id)
    return (await stage.runs.RateRun(request)).run


async def assert_reused(call: Awaitable[Any]) -> None:
    refusal = await refused(call)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


@dataclass(frozen=True)
class Effect:
    """A method that makes something: how to call it, a request on a thread, the id of what it made, and how many it
    made there."""

    call: Callable[[Stage], Any]
    request: Callable[[str], Any]
    made: Callable[[Any], str]
    count: Callable[[Stage, str], Awaitable[int]]


def _run_on(thread_id: str) -> CreateRunRequest:
    patient = BusyPolicy.BUSY_POLICY_ENQUEUE
    return CreateRunRequest(thread_id=thread_id, additional_messages=[said("once")], busy_policy=patient)


async def end_runs(stage: Stage, thread_id: str) -> None:
    """Waits for all runs on a thread, so that none is at work when the next test begins."""
    for run in (await stage.runs.ListRuns(ListRunsRequest(thread_id=thread_id))).runs:
        await stage.wait(run.id)


async def count_messages(stage: Stage, thread_id: str) -> int:
    return len([message for message in await stage.messages(thread_id) if not message.run_id])


async def count_runs(stage: Stage, thread_id: str) -> int:
    return len((await stage.runs.ListRuns(ListRunsRequest(thread_id=thread_id))).runs)


async def count_forks(stage: Stage, thread_id: str) -> int:
    return len((await stage.threads.ListThreads(ListThreadsRequest(user_id=thread_id))).threads)


EFFECTS = {
    "CreateMessage": Effect(
        lambda stage: stage.threads.CreateMessage,
        lambda thread_id: CreateMessageRequest(thread_id=thread_id, message=said("once")),
        lambda response: str(response.message.id),
        count_messages,
    ),
    "ForkThread": Effect(
        lambda stage: stage.threads.ForkThread,
        lambda thread_id: ForkThreadRequest(thread_id=thread_id, thread=Thread(user_id=thread_id)),
        lambda response: str(response.thread.id),
        count_forks,
    ),
    "CreateThread": Effect(
        lambda stage: stage.threads.CreateThread,
        lambda thread_id: CreateThreadRequest(thread=Thread(user_id=thread_id), messages=[said("once")]),
        lambda response: str(response.thread.id),
        count_forks,
    ),
    "CreateRun": Effect(
        lambda stage: stage.runs.CreateRun,
        _run_on,
        lambda response: str(response.run.id),
        count_runs,
    ),
    "StreamRun": Effect(
        lambda stage: lambda create: anext(aiter(stage.runs.StreamRun(StreamRunRequest(create=create)))),
        _run_on,
        lambda response: str(response.events[0].run_state_changed.run.id),
        count_runs,
    ),
}


@pytest.mark.parametrize("method", EFFECTS)
async def test_64_equal_requests_at_once_have_one_effect(stage: Stage, method: str) -> None:
    effect = EFFECTS[method]
    stage.play(Scene(text="fine"))
    thread = await stage.thread(default_assistant_id=(await stage.assistant()).id)
    request = effect.request(thread.id)
    request.request_id = f"64-times-{method}"
    made = await asyncio.gather(*(effect.call(stage)(request) for _ in range(64)))
    assert len(set(map(effect.made, made))) == 1
    assert await effect.count(stage, thread.id) == 1
    request.request_id += "-but-later"
    await effect.call(stage)(request)
    assert await effect.count(stage, thread.id) == 2
    await end_runs(stage, thread.id)


@pytest.mark.parametrize("method", EFFECTS)
async def test_request_id_is_free_after_a_refusal_and_then_stands_for_one_request(stage: Stage, method: str) -> None:
    effect = EFFECTS[method]
    stage.play(Scene(text="fine"))
    thread = await stage.thread(default_assistant_id=(await stage.assistant()).id)
    wrong, right = effect.request("thread_none"), effect.request(thread.id)
    wrong.request_id = right.request_id = f"refused-{method}"
    if method == "CreateThread":
        wrong.messages[0].content[0].text.text = "NUL \0"
    refusal = await refused(effect.call(stage)(wrong))
    assert refusal.reason in ("RESOURCE_NOT_FOUND", "INVALID_FIELD")
    made = effect.made(await effect.call(stage)(right))
    assert effect.made(await effect.call(stage)(right)) == made
    if method != "CreateThread":
        await assert_reused(effect.call(stage)(wrong))
    assert await effect.count(stage, thread.id) == 1
    await end_runs(stage, thread.id)


async def test_what_a_request_made_is_not_made_again_once_it_is_gone(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    create = await stage.wanted(request_id="gone-since")
    run = (await stage.runs.CreateRun(create)).run
    await stage.wait(run.id)
    await rate(stage, run.id, GOOD, "gone-since")
    await stage.threads.DeleteThread(DeleteThreadRequest(thread_id=run.thread_id))
    for call in (stage.runs.CreateRun(create), stage.stream(create), rate(stage, run.id, GOOD, "gone-since")):
        assert (await refused(call)).code is grpc.StatusCode.NOT_FOUND
    assert len(stage.asked) == 1


async def test_one_id_stands_for_one_request_of_each_method(stage: Stage) -> None:
    waiting = await wait_for_outputs(stage)
    thread_id = waiting.thread_id
    for call in (
        stage.runs.SubmitToolOutputs(outputs_of(waiting, request_id="same")),
        stage.threads.CreateMessage(CreateMessageRequest(thread_id=thread_id, message=said("hi"), request_id="same")),
        stage.threads.ForkThread(ForkThreadRequest(thread_id=thread_id, request_id="same")),
        stage.threads.CreateThread(CreateThreadRequest(request_id="same")),
    ):
        await call
    await stage.wait(waiting.id)
    await rate(stage, waiting.id, GOOD, "same")
    run = (await stage.runs.CreateRun(await stage.wanted(request_id="same"))).run
    assert run.id != waiting.id
    await stage.wait(run.id)


async def test_outputs_submitted_again_are_not_submitted_again(stage: Stage) -> None:
    waiting = await wait_for_outputs(stage, TIME_CALLED, TIME_CALLED, ANSWER)
    submit = outputs_of(waiting, request_id="first-round")
    answers = await asyncio.gather(*(stage.runs.SubmitToolOutputs(submit) for _ in range(64)))
    assert {answer.run.id for answer in answers} == {waiting.id}
    again = await stage.wait(waiting.id)
    assert again.state == RunState.RUN_STATE_REQUIRES_ACTION
    # It stands for what it did, and not for the calls that are open now.
    assert (await stage.runs.SubmitToolOutputs(submit)).run == again
    second = outputs_of(again, "one o'clock", request_id="second-round")
    await stage.runs.SubmitToolOutputs(second)
    story = await stage.tell(waiting.id)
    assert story.kinds.count("tool_output_received") == 2
    assert len(stage.asked) == 3
    for request in (submit, second):
        assert (await stage.runs.SubmitToolOutputs(request)).run == story.run


async def test_request_id_of_other_outputs_is_refused(stage: Stage) -> None:
    waiting = await wait_for_outputs(stage)
    await stage.runs.SubmitToolOutputs(outputs_of(waiting, request_id="other-outputs"))
    await assert_reused(stage.runs.SubmitToolOutputs(outputs_of(waiting, "midnight", request_id="other-outputs")))
    assert (await stage.tell(waiting.id)).text == "It is noon"
    # Another id does not make the outputs others, nor others these.
    again = await stage.runs.SubmitToolOutputs(outputs_of(waiting, request_id="another-id"))
    assert again.run.state == COMPLETED
    late = await refused(stage.runs.SubmitToolOutputs(outputs_of(waiting, "midnight", request_id="a-third-id")))
    assert late.reason == "TOOL_OUTPUT_CONFLICT"


async def test_refused_outputs_do_not_use_their_request_id_up(stage: Stage) -> None:
    waiting = await wait_for_outputs(stage)
    partial = outputs_of(waiting, request_id="at-second-try")
    partial.tool_outputs[0].call_id = "call_foreign"
    assert (await refused(stage.runs.SubmitToolOutputs(partial))).reason == "UNKNOWN_TOOL_CALL"
    assert (await refused(stage.runs.SubmitToolOutputs(partial))).reason == "UNKNOWN_TOOL_CALL"
    await stage.runs.SubmitToolOutputs(outputs_of(waiting, request_id="at-second-try"))
    assert (await stage.tell(waiting.id)).text == "It is noon"


async def test_rating_given_again_does_not_replace_a_later_one(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    story = await stage.play_out()
    first = await rate(stage, story.run.id, GOOD, "first-rating")
    assert (await rate(stage, story.run.id, GOOD, "first-rating")) == first
    later = await rate(stage, story.run.id, BAD)
    assert later.rating.verdict == BAD
    assert (await rate(stage, story.run.id, GOOD, "first-rating")) == later
    assert (await stage.get(story.run.id)) == later


async def test_64_equal_ratings_at_once_are_one(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    story = await stage.play_out()
    answers = await asyncio.gather(*(rate(stage, story.run.id, GOOD, "64-ratings") for _ in range(64)))
    assert {answer.etag for answer in answers} == {(await stage.get(story.run.id)).etag}


async def test_request_id_of_another_rating_is_refused(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    one, other = await stage.play_out(), await stage.play_out()
    await rate(stage, one.run.id, GOOD, "another-rating")
    await assert_reused(rate(stage, one.run.id, BAD, "another-rating"))
    await assert_reused(rate(stage, other.run.id, GOOD, "another-rating"))
    assert not (await stage.get(other.run.id)).HasField("rating")


async def test_refused_rating_does_not_use_its_request_id_up(stage: Stage) -> None:
    waiting = await wait_for_outputs(stage)
    assert (await refused(rate(stage, waiting.id, GOOD, "too-early"))).reason == "RUN_NOT_FINISHED"
    await stage.runs.SubmitToolOutputs(outputs_of(waiting))
    await stage.wait(waiting.id)
    assert (await rate(stage, waiting.id, BAD, "too-early")).rating.verdict == BAD


@pytest.mark.parametrize("request_id", ["x" * 129, "with\nnewline", "ü"])
async def test_request_id_that_is_none_is_a_wrong_field(stage: Stage, request_id: str) -> None:
    waiting = Run(id="run_1")
    waiting.required_action.tool_calls.add(id="call_1")
    rating = RateRunRequest(run_id="run_1", rating=RunRating(verdict=GOOD), request_id=request_id)
    for call in (
        stage.runs.SubmitToolOutputs(outputs_of(waiting, request_id=request_id)),
        stage.runs.RateRun(rating),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["request_id"])
