"""What a run makes of a model's provider that fails."""

import asyncio

import pytest

from famulus.v1.message_pb2 import MessageState
from famulus.v1.run_pb2 import RunErrorCode, RunState
from famulus.v1.run_step_pb2 import RunStepState
from famulus_server.embedded.upstream import Fault, Scene, ToolCall
from run_stage import TOOLS, Stage, Story

pytestmark = pytest.mark.asyncio(loop_scope="module")

BUSY = Fault(kind="status", status=429, headers={"retry-after-ms": "20"}, message="secret words of the provider")


def assert_failed(story: Story, code: "RunErrorCode.ValueType") -> None:
    assert (story.run.state, story.run.error.code) == (RunState.RUN_STATE_FAILED, code)
    assert story.messages == []
    # The provider's and Python's own words stay in the log.
    for leaked in ("secret", "Error", "Traceback", "http", "127.0.0.1"):
        assert leaked not in story.run.error.message


async def test_rate_limited_turn_is_tried_again_and_answered_once(stage: Stage) -> None:
    stage.play(Scene(times=2, fault=BUSY), Scene(text="fine"))
    story = await stage.play_out()
    assert story.text == "fine"
    retries = story.all("retry_scheduled")
    assert [retry.reason for retry in retries] == [RunErrorCode.RUN_ERROR_CODE_RATE_LIMIT_EXCEEDED] * 2
    assert all(retry.delay.ToTimedelta().total_seconds() >= 0.02 for retry in retries)
    assert story.all("attempt_started") == []
    assert (story.run.attempt, len(stage.asked)) == (1, 3)


async def test_rate_limit_that_lasts_fails_the_run(stage: Stage) -> None:
    stage.play(Scene(fault=BUSY))
    story = await stage.play_out()
    assert_failed(story, RunErrorCode.RUN_ERROR_CODE_RATE_LIMIT_EXCEEDED)
    assert len(stage.asked) == 3


async def test_request_that_the_provider_rejects_fails_the_run_at_once(stage: Stage) -> None:
    stage.play(Scene(fault=Fault(kind="status", status=400, message="secret")))
    assert_failed(await stage.play_out(), RunErrorCode.RUN_ERROR_CODE_INVALID_PROMPT)
    assert len(stage.asked) == 1


async def test_key_that_the_provider_refuses_fails_the_run_at_once(stage: Stage) -> None:
    stage.play(Scene(fault=Fault(kind="status", status=401, message="secret")))
    assert_failed(await stage.play_out(), RunErrorCode.RUN_ERROR_CODE_MODEL_AUTHENTICATION)
    assert len(stage.asked) == 1


@pytest.mark.parametrize("fault", [Fault(kind="status", status=500), Fault(kind="reset_before_response")])
async def test_provider_that_is_away_fails_the_run_after_three_tries(stage: Stage, fault: Fault) -> None:
    stage.play(Scene(fault=fault))
    story = await stage.play_out()
    assert_failed(story, RunErrorCode.RUN_ERROR_CODE_MODEL_UNAVAILABLE)
    assert len(stage.asked) == 3
    assert len(story.all("retry_scheduled")) == 2


CUTS = [
    Fault(kind="reset", after=3),
    Fault(kind="disconnect", after=3),
    Fault(kind="eof", after=3),
    Fault(kind="mid_json", after=3),
    Fault(kind="no_completed"),
    Fault(kind="error_event", after=3, message="secret"),
    Fault(kind="bad_json", after=3),
    Fault(kind="bad_utf8", after=3),
    Fault(kind="long_line", after=3, size=2_000_000),
]


@pytest.mark.parametrize("fault", CUTS, ids=lambda fault: str(fault.kind))
async def test_turn_that_breaks_in_the_middle_starts_over_and_its_text_counts_once(stage: Stage, fault: Fault) -> None:
    stage.play(Scene(times=1, deltas=6, pace_ms=5, fault=fault), Scene(deltas=4))
    story = await stage.play_out()
    assert story.text == "w1 w2 w3 w4"
    [started] = story.all("attempt_started")
    assert (started.attempt, started.discards_after_sequence) == (2, 1)
    assert (story.run.state, story.run.attempt) == (RunState.RUN_STATE_COMPLETED, 2)
    assert len(await stage.steps(story.run.id)) == 1
    assert await stage.texts(story.run.thread_id) == ["hello", "w1 w2 w3 w4"]


@pytest.mark.parametrize("fault", CUTS, ids=lambda fault: str(fault.kind))
async def test_turn_that_breaks_three_times_fails_the_run_and_leaves_no_half_message(
    stage: Stage, fault: Fault
) -> None:
    stage.play(Scene(deltas=6, pace_ms=5, fault=fault))
    story = await stage.play_out()
    wanted = RunErrorCode.RUN_ERROR_CODE_MODEL_PROTOCOL
    if fault.kind == "error_event":
        wanted = story.run.error.code
        assert wanted in (RunErrorCode.RUN_ERROR_CODE_MODEL_PROTOCOL, RunErrorCode.RUN_ERROR_CODE_MODEL_UNAVAILABLE)
    assert_failed(story, wanted)
    assert len(story.all("attempt_started")) == 2
    assert await stage.texts(story.run.thread_id) == ["hello"]
    assert len(stage.asked) == 3
    assert await stage.steps(story.run.id) == []


async def test_broken_second_turn_takes_nothing_of_the_first_back(stage: Stage) -> None:
    stage.play(
        Scene(times=1, text="Let me see. ", tool_calls=(ToolCall(name="get_time"),)),
        Scene(times=1, deltas=6, pace_ms=5, fault=Fault(kind="reset", after=3)),
        Scene(text="Noon."),
    )
    assistant = await stage.assistant(tools=TOOLS)
    run = await stage.start(assistant_id=assistant.id)
    waiting = await stage.wait(run.id)
    await stage.submit(run.id, (waiting.required_action.tool_calls[0].id, "noon"))
    story = await stage.tell(run.id)
    assert [message.content[0].text.text for message in story.messages] == ["Let me see. ", "Noon."]
    [started] = story.all("attempt_started")
    assert started.attempt == 3
    assert [step.position for step in await stage.steps(run.id)] == [1, 2, 3]
    assert stage.asked[1]["input"] == stage.asked[2]["input"]


async def test_each_turn_may_break_twice(stage: Stage) -> None:
    broken = Scene(times=2, deltas=6, pace_ms=5, fault=Fault(kind="reset", after=3))
    stage.play(broken, Scene(times=1, tool_calls=(ToolCall(name="get_time"),)), broken, Scene(text="Noon."))
    assistant = await stage.assistant(tools=TOOLS)
    run = await stage.start(assistant_id=assistant.id)
    waiting = await stage.wait(run.id)
    await stage.submit(run.id, (waiting.required_action.tool_calls[0].id, "noon"))
    story = await stage.tell(run.id)
    assert story.text == "Noon."
    assert len(story.all("attempt_started")) == 4


async def test_model_that_hangs_before_its_first_byte_is_given_up(stage: Stage) -> None:
    stage.play(Scene(fault=Fault(kind="hang_before_response")))
    story = await stage.play_out(model="impatient")
    assert_failed(story, RunErrorCode.RUN_ERROR_CODE_MODEL_TIMEOUT)
    assert [(await stage.request_ended(number)).outcome for number in (1, 2, 3)] == ["disconnected"] * 3


@pytest.mark.parametrize("fault", [Fault(kind="hang", after=2), Fault(kind="pings", after=2, interval_ms=20)])
async def test_model_that_falls_silent_is_given_up_and_asked_again(stage: Stage, fault: Fault) -> None:
    stage.play(Scene(times=1, deltas=6, fault=fault), Scene(text="fine"))
    story = await stage.play_out(model="impatient")
    assert story.text == "fine"
    assert len(story.all("attempt_started")) == 1
    assert (await stage.request_ended()).outcome == "disconnected"


async def test_other_runs_go_on_while_one_model_hangs(stage: Stage) -> None:
    stage.play(Scene(times=1, deltas=6, hold_after=2), Scene(text="fine"))
    hanging = await stage.start()
    await stage.until(hanging.id, "text_delta")
    stories = await asyncio.gather(*(stage.play_out() for _ in range(10)))
    assert [story.text for story in stories] == ["fine"] * 10
    (await stage.request()).released.set()
    assert (await stage.tell(hanging.id)).run.state == RunState.RUN_STATE_COMPLETED


async def test_failed_run_frees_its_thread(stage: Stage) -> None:
    stage.play(Scene(times=1, fault=Fault(kind="status", status=400)), Scene(text="fine"))
    failed = await stage.play_out("one")
    assert failed.run.state == RunState.RUN_STATE_FAILED
    story = await stage.play_out("two", thread_id=failed.run.thread_id)
    assert story.messages[0].state == MessageState.MESSAGE_STATE_COMPLETED
    [step] = await stage.steps(story.run.id)
    assert step.state == RunStepState.RUN_STEP_STATE_COMPLETED


async def test_answer_of_a_kind_nobody_knows_is_sent_back_as_it_came(stage: Stage) -> None:
    item = {"type": "novelty", "id": "nov_1", "payload": {"deep": [1, 2, 3]}}
    stage.play(Scene(times=1, tool_calls=(ToolCall(name="get_time"),), items=(item,)), Scene(text="fine"))
    assistant = await stage.assistant(tools=TOOLS)
    run = await stage.start(assistant_id=assistant.id)
    waiting = await stage.wait(run.id)
    await stage.submit(run.id, (waiting.required_action.tool_calls[0].id, "noon"))
    await stage.tell(run.id)
    assert item in stage.asked[1]["input"]
