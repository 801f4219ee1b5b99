"""What ends a run early, and what the model gets to see of a long thread."""

import pytest
from google.protobuf.duration_pb2 import Duration

from famulus.v1.message_pb2 import MessageIncompleteReason, MessageState
from famulus.v1.run_pb2 import AutoTruncation, RunIncompleteReason, RunState, TruncationStrategy
from famulus.v1.run_step_pb2 import RunStepState
from famulus_server.embedded.upstream import Fault, Scene, ToolCall, Usage
from run_stage import TOOLS, Stage, Story

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIME = ToolCall(name="get_time")


def seen_by_the_model(stage: Stage, number: int = -1) -> list[str]:
    return [item["content"][0]["text"] for item in stage.asked[number]["input"] if item.get("type") == "message"]


def assert_cut_short(
    story: Story,
    run: "RunIncompleteReason.ValueType",
    message: "MessageIncompleteReason.ValueType",
) -> None:
    assert (story.run.state, story.run.incomplete_reason) == (RunState.RUN_STATE_INCOMPLETE, run)
    [kept] = story.messages
    assert (kept.state, kept.incomplete_reason) == (MessageState.MESSAGE_STATE_INCOMPLETE, message)


async def test_turns_are_limited_and_open_calls_are_closed(stage: Stage) -> None:
    stage.play(Scene(tool_calls=(TIME,)))
    assistant = await stage.assistant(tools=TOOLS)
    run = await stage.start(assistant_id=assistant.id, max_turns=2)
    waiting = await stage.wait(run.id)
    await stage.submit(run.id, (waiting.required_action.tool_calls[0].id, "noon"))
    story = await stage.tell(run.id)
    assert (story.run.state, story.run.turns) == (RunState.RUN_STATE_INCOMPLETE, 2)
    assert story.run.incomplete_reason == RunIncompleteReason.RUN_INCOMPLETE_REASON_MAX_TURNS
    assert len(story.all("tool_calls_requested")) == 1
    first, second = await stage.steps(run.id)
    assert first.state == RunStepState.RUN_STEP_STATE_COMPLETED
    assert second.state == RunStepState.RUN_STEP_STATE_INCOMPLETE
    assert len(stage.asked) == 2


async def test_model_that_calls_badly_for_ever_is_stopped_by_the_default_of_ten_turns(stage: Stage) -> None:
    stage.play(Scene(tool_calls=(ToolCall(name="no_such"),)))
    assistant = await stage.assistant(tools=TOOLS)
    story = await stage.play_out(assistant_id=assistant.id)
    assert story.run.incomplete_reason == RunIncompleteReason.RUN_INCOMPLETE_REASON_MAX_TURNS
    assert len(stage.asked) == 10


async def test_completion_tokens_end_the_run_and_mark_its_message(stage: Stage) -> None:
    stage.play(Scene(deltas=10))
    story = await stage.play_out(max_completion_tokens=4)
    assert_cut_short(
        story,
        RunIncompleteReason.RUN_INCOMPLETE_REASON_MAX_COMPLETION_TOKENS,
        MessageIncompleteReason.MESSAGE_INCOMPLETE_REASON_MAX_TOKENS,
    )
    assert stage.asked[0]["max_output_tokens"] == 4
    assert story.run.usage.completion_tokens == 4
    [step] = await stage.steps(story.run.id)
    assert step.state == RunStepState.RUN_STEP_STATE_INCOMPLETE


async def test_completion_tokens_are_counted_over_all_turns(stage: Stage) -> None:
    stage.play(Scene(times=1, tool_calls=(TIME,), usage=Usage(output=3)), Scene(deltas=10))
    assistant = await stage.assistant(tools=TOOLS)
    run = await stage.start(assistant_id=assistant.id, max_completion_tokens=5)
    waiting = await stage.wait(run.id)
    await stage.submit(run.id, (waiting.required_action.tool_calls[0].id, "noon"))
    story = await stage.tell(run.id)
    assert [body["max_output_tokens"] for body in stage.asked] == [5, 2]
    assert story.run.state == RunState.RUN_STATE_INCOMPLETE
    assert story.run.usage.completion_tokens == 5


async def test_calls_of_a_turn_that_used_the_tokens_up_are_not_asked_for(stage: Stage) -> None:
    stage.play(Scene(tool_calls=(TIME,), usage=Usage(output=50)))
    assistant = await stage.assistant(tools=TOOLS)
    story = await stage.play_out(assistant_id=assistant.id, max_completion_tokens=50)
    assert story.run.state == RunState.RUN_STATE_INCOMPLETE
    assert story.run.incomplete_reason == RunIncompleteReason.RUN_INCOMPLETE_REASON_MAX_COMPLETION_TOKENS
    assert story.all("tool_calls_requested") == []
    [step] = await stage.steps(story.run.id)
    assert step.state == RunStepState.RUN_STEP_STATE_INCOMPLETE


async def test_prompt_tokens_end_the_run_before_the_next_turn(stage: Stage) -> None:
    stage.play(Scene(times=1, tool_calls=(TIME,), usage=Usage(input=100)), Scene(text="fine"))
    assistant = await stage.assistant(tools=TOOLS)
    run = await stage.start(assistant_id=assistant.id, max_prompt_tokens=100)
    waiting = await stage.wait(run.id)
    await stage.submit(run.id, (waiting.required_action.tool_calls[0].id, "noon"))
    story = await stage.tell(run.id)
    assert story.run.state == RunState.RUN_STATE_INCOMPLETE
    assert story.run.incomplete_reason == RunIncompleteReason.RUN_INCOMPLETE_REASON_MAX_PROMPT_TOKENS
    assert len(stage.asked) == 1


async def test_prompt_tokens_also_narrow_what_the_model_sees(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    thread = await stage.thread(*(f"number {number} {'x' * 60}" for number in range(10)))
    await stage.play_out("now", thread_id=thread.id, max_prompt_tokens=120)
    seen = seen_by_the_model(stage)
    assert 3 <= len(seen) < 11
    assert seen[0].startswith("number 0 ")
    assert seen[-1] == "now"


async def test_model_sees_the_last_messages_only_when_told_so(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    thread = await stage.thread(*(f"number {number}" for number in range(10)))
    await stage.play_out("now", thread_id=thread.id, truncation_strategy=TruncationStrategy(last_messages=3))
    assert seen_by_the_model(stage) == ["number 8", "number 9", "now"]


async def test_more_last_messages_than_there_are_means_all(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    thread = await stage.thread("one", "two")
    await stage.play_out("now", thread_id=thread.id, truncation_strategy=TruncationStrategy(last_messages=500))
    assert seen_by_the_model(stage) == ["one", "two", "now"]


async def test_window_of_last_messages_stays_through_the_turns_of_a_run(stage: Stage) -> None:
    stage.play(Scene(times=1, tool_calls=(TIME,)), Scene(text="fine"))
    assistant = await stage.assistant(tools=TOOLS)
    thread = await stage.thread("one", "two")
    strategy = TruncationStrategy(last_messages=2)
    run = await stage.start("three", thread_id=thread.id, assistant_id=assistant.id, truncation_strategy=strategy)
    waiting = await stage.wait(run.id)
    await stage.say(thread.id, "four")
    await stage.submit(run.id, (waiting.required_action.tool_calls[0].id, "noon"))
    await stage.tell(run.id)
    assert seen_by_the_model(stage, 0) == ["two", "three"]
    assert seen_by_the_model(stage, 1) == ["two", "three", "four"]


@pytest.mark.parametrize("strategy", [TruncationStrategy(), TruncationStrategy(auto=AutoTruncation())])
async def test_auto_keeps_the_first_and_the_newest_messages_that_fit(
    stage: Stage, strategy: TruncationStrategy
) -> None:
    stage.play(Scene(text="fine"))
    # More than the context window of 8,192 tokens holds, at three characters each.
    thread = await stage.thread(*(f"number {number} {'x' * 3_000}" for number in range(20)))
    await stage.play_out("now", thread_id=thread.id, truncation_strategy=strategy)
    numbers = [int(text.split()[1]) for text in seen_by_the_model(stage)[:-1]]
    assert numbers[0] == 0
    assert numbers[1:] == list(range(numbers[1], 20))
    assert 3 <= len(numbers) < 10
    assert seen_by_the_model(stage)[-1] == "now"


async def test_newest_message_is_sent_however_long_it_is(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    await stage.play_out("y" * 60_000)
    assert seen_by_the_model(stage) == ["y" * 60_000]


async def test_content_filter_ends_the_run_and_marks_its_message(stage: Stage) -> None:
    stage.play(Scene(deltas=3, finish="content_filter"))
    story = await stage.play_out()
    assert_cut_short(
        story,
        RunIncompleteReason.RUN_INCOMPLETE_REASON_CONTENT_FILTER,
        MessageIncompleteReason.MESSAGE_INCOMPLETE_REASON_CONTENT_FILTER,
    )
    assert story.text == "w1 w2 w3"


async def test_output_limit_of_the_model_ends_the_run(stage: Stage) -> None:
    stage.play(Scene(deltas=3, finish="length"))
    assert_cut_short(
        await stage.play_out(),
        RunIncompleteReason.RUN_INCOMPLETE_REASON_MAX_COMPLETION_TOKENS,
        MessageIncompleteReason.MESSAGE_INCOMPLETE_REASON_MAX_TOKENS,
    )


async def test_incomplete_message_is_part_of_the_next_runs_history(stage: Stage) -> None:
    stage.play(Scene(deltas=3, finish="length"))
    first = await stage.play_out()
    await stage.play_out("go on", thread_id=first.run.thread_id)
    assert seen_by_the_model(stage) == ["hello", "w1 w2 w3", "go on"]


async def test_run_that_expires_while_the_model_writes_keeps_what_it_wrote(stage: Stage) -> None:
    stage.play(Scene(deltas=6, fault=Fault(kind="hang", after=3)))
    run = await stage.start(ttl=Duration(seconds=1))
    story = await stage.tell(run.id)
    assert story.run.state == RunState.RUN_STATE_EXPIRED
    [kept] = story.messages
    assert kept.content[0].text.text.split() == ["w1", "w2", "w3"]
    assert kept.incomplete_reason == MessageIncompleteReason.MESSAGE_INCOMPLETE_REASON_RUN_EXPIRED
    assert (await stage.request_ended()).outcome == "disconnected"
    assert story.run.end_time.ToMicroseconds() >= story.run.expire_time.ToMicroseconds()
    assert await stage.active_run(run.thread_id) == ""
