"""Function tools answered by the clients."""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from clients.python.conftest import CREATE, QUICK, Follow, follow_async
from clients.python.scripted_runs import PATIENCE, ScriptedRuns, cut_after, refuse, repeats_all, serving, tells
from clients.python.story import (
    COMPLETED,
    IN_PROGRESS,
    REQUIRES_ACTION,
    RUN_ID,
    Story,
    call,
    snapshot,
    with_tools,
)
from famulus import FamulusClient, FamulusSyncClient, ToolError
from famulus.v1 import error_reason_pb2 as reasons
from famulus.v1.run_pb2 import Run
from famulus.v1.tool_pb2 import FunctionCallProblem, ToolOutput


def weather(city: str) -> dict[str, object]:
    return {"city": city, "degrees": 21}


def outputs(runs: ScriptedRuns) -> dict[str, ToolOutput]:
    assert len(runs.submitted) == 1
    return {output.call_id: output for output in runs.submitted[0].tool_outputs}


async def test_calls_are_answered_and_the_run_goes_on(follow: Follow) -> None:
    log = with_tools(call("call_1", "weather", '{"city": "Bern"}'), call("call_2", "greet", ""))
    with serving(runs := ScriptedRuns(log)) as target:
        seen = await follow(target, tools={"weather": weather, "greet": lambda: "Grüezi"})
    assert seen.events == log
    assert runs.submitted[0].run_id == RUN_ID
    answers = outputs(runs)
    assert json.loads(answers["call_1"].output) == {"city": "Bern", "degrees": 21}
    assert answers["call_2"].output == "Grüezi"
    assert not any(answer.is_error for answer in answers.values())


async def test_calls_run_at_the_same_time(follow: Follow) -> None:
    meeting = threading.Barrier(3, timeout=PATIENCE)
    log = with_tools(*(call(f"call_{number}", "meet") for number in range(3)))
    with serving(runs := ScriptedRuns(log)) as target:
        await follow(target, tools={"meet": lambda: str(meeting.wait() >= 0)})
    assert {answer.output for answer in outputs(runs).values()} == {"True"}


def fails() -> str:
    raise ValueError("a password")


def exits() -> str:
    sys.exit("a password")


async def exits_in_the_loop() -> str:
    return exits()


def explains() -> str:
    raise ToolError("the shop is closed")


def stops() -> Any:
    return next(iter(()))


async def test_the_model_is_told_what_went_wrong_and_nothing_else(follow: Follow) -> None:
    release = threading.Event()
    told = [
        (call("call_1", "fails"), "the tool failed: ValueError"),
        (call("call_2", "explains"), "the shop is closed"),
        (call("call_3", "unheard_of"), "there is no tool of this name"),
        (call("call_4", "weather", "{"), "the arguments are not JSON"),
        (call("call_5", "weather", "[1]"), "the arguments are not a JSON object"),
        (call("call_6", "weather", '{"town": 1}'), "the arguments do not fit: missing a required argument: 'city'"),
        (call("call_7", "hangs"), "the tool took longer than 0.3 seconds"),
        (call("call_8", "odd"), "the tool's result cannot be written as JSON"),
        (call("call_9", "huge"), "the tool's result is larger than 1 MiB"),
        (call("call_10", "weather", "[" * 100_000), "the arguments are not JSON"),
        (call("call_11", "stops"), "the tool failed: RuntimeError"),
        (call("call_12", "exits"), "the tool failed: SystemExit"),
    ]
    tools: dict[str, Callable[..., Any]] = {
        "fails": fails,
        "explains": explains,
        "weather": weather,
        "hangs": lambda: str(release.wait(PATIENCE)),
        "odd": object,
        "huge": lambda: "x" * (1 << 20) + "x",
        "stops": stops,
        "exits": exits,
    }
    with serving(runs := ScriptedRuns(with_tools(*(asked for asked, _ in told)))) as target:
        seen = await follow(target, tools=tools, tool_timeout=0.3)
    release.set()
    assert seen.view.text == "Done"
    answers = outputs(runs)
    assert {call_id: answer.output for call_id, answer in answers.items()} == {asked.id: text for asked, text in told}
    assert all(answer.is_error for answer in answers.values())


async def test_a_coroutine_that_exits_ends_neither_the_loop_nor_the_run() -> None:
    with serving(runs := ScriptedRuns(with_tools(call("call_1", "exits")))) as target:
        seen = await follow_async(target, tools={"exits": exits_in_the_loop})
    assert (seen.error, outputs(runs)["call_1"].output) == (None, "the tool failed: SystemExit")


async def test_what_goes_wrong_in_a_tool_is_logged_unless_it_is_for_the_model(
    follow: Follow, caplog: pytest.LogCaptureFixture
) -> None:
    log = with_tools(call("call_1", "fails"), call("call_2", "explains"))
    with serving(ScriptedRuns(log)) as target:
        await follow(target, tools={"fails": fails, "explains": explains})
    (record,) = [record for record in caplog.records if record.name == "famulus"]
    assert (record.getMessage(), record.levelname) == ("the tool fails failed", "ERROR")
    assert record.exc_info is not None
    assert repr(record.exc_info[1]) == "ValueError('a password')"


async def test_text_that_the_service_would_refuse_is_mended(follow: Follow) -> None:
    with serving(runs := ScriptedRuns(with_tools(call("call_1", "odd")))) as target:
        await follow(target, tools={"odd": lambda: "a\ud800b\0c"})
    assert outputs(runs)["call_1"].output == "a?b\N{REPLACEMENT CHARACTER}c"


@pytest.mark.parametrize("again", [repeats_all, cut_after(1)], ids=["repeated", "cut"])
async def test_a_call_that_is_asked_for_again_runs_once(again: Any, follow: Follow) -> None:
    ran: list[str] = []
    log = with_tools(call("call_1", "note"))
    with serving(runs := ScriptedRuns(log, [cut_after(2), again])) as target:
        seen = await follow(target, tools={"note": lambda: ran.append("now")})
    assert seen.events == log
    assert ran == ["now"]
    assert len(runs.submitted) == 1


async def test_a_call_of_the_past_does_not_run_again(follow: Follow) -> None:
    ran: list[str] = []
    runs = ScriptedRuns(log := with_tools(call("call_1", "note")))
    runs.publish()
    with serving(runs) as target:
        seen = await follow(target, run_id=RUN_ID, tools={"note": lambda: ran.append("now")})
    assert seen.events == log
    assert ran == []
    assert runs.submitted == []


async def test_a_reader_who_joins_after_the_question_answers_it(follow: Follow) -> None:
    log = with_tools(call("call_1", "weather", '{"city": "Bern"}'))
    with serving(runs := ScriptedRuns(log)) as target:
        seen = await follow(target, after_sequence=3, tools={"weather": weather})
    assert seen.events == log[3:]
    assert not outputs(runs)["call_1"].is_error


async def test_a_snapshot_asks_for_outputs_too(follow: Follow) -> None:
    log = with_tools(asked := call("call_1", "weather", '{"city": "Bern"}'))
    run = Run(id=RUN_ID, state=REQUIRES_ACTION)
    run.required_action.tool_calls.append(asked)
    with serving(runs := ScriptedRuns(log, [tells(snapshot(3, run))])) as target:
        seen = await follow(target, tools={"weather": weather})
    assert seen.events[1:] == log[3:]
    assert set(outputs(runs)) == {"call_1"}


async def test_calls_that_the_service_answered_itself_are_left_alone(follow: Follow) -> None:
    bad, answered = call("call_1", "weather", "{"), call("call_2", "weather")
    bad.function.problem = FunctionCallProblem.FUNCTION_CALL_PROBLEM_ARGUMENTS_NOT_JSON
    answered.function.output = ""
    with serving(runs := ScriptedRuns(with_tools(bad, answered, call("call_3", "greet")))) as target:
        await follow(target, tools={"greet": lambda: "Hi"})
    assert set(outputs(runs)) == {"call_3"}


async def test_a_run_may_ask_several_times(follow: Follow) -> None:
    story = Story().state(IN_PROGRESS).ask(call("call_1", "greet")).state(IN_PROGRESS).ask(call("call_2", "greet"))
    log = story.state(IN_PROGRESS).state(COMPLETED).log
    with serving(runs := ScriptedRuns(log, [cut_after(3)])) as target:
        seen = await follow(target, tools={"greet": lambda: "Hi"})
    assert seen.events == log
    assert [submitted.tool_outputs[0].call_id for submitted in runs.submitted] == ["call_1", "call_2"]


async def test_outputs_are_submitted_again_while_the_service_is_away(follow: Follow) -> None:
    runs = ScriptedRuns(log := with_tools(call("call_1", "greet")))
    runs.refusals.extend([lambda context: refuse(context, grpc.StatusCode.UNAVAILABLE)] * 3)
    with serving(runs) as target:
        seen = await follow(target, tools={"greet": lambda: "Hi"})
    assert seen.events == log
    assert len(runs.submitted) == 1


async def test_that_somebody_else_answered_first_is_no_error(follow: Follow) -> None:
    runs = ScriptedRuns(log := with_tools(call("call_1", "greet")))

    def too_late(context: grpc.ServicerContext) -> None:
        runs.publish()
        refuse(context, grpc.StatusCode.FAILED_PRECONDITION, reason="RUN_NOT_WAITING")

    runs.refusals.append(too_late)
    with serving(runs) as target:
        seen = await follow(target, tools={"greet": lambda: "Hi"})
    assert seen.error is None
    assert seen.events == log


async def test_a_refusal_of_outputs_ends_the_stream(follow: Follow) -> None:
    runs = ScriptedRuns(with_tools(call("call_1", "greet")))
    runs.refusals.append(
        lambda context: refuse(context, grpc.StatusCode.INVALID_ARGUMENT, reason="TOOL_OUTPUTS_INCOMPLETE")
    )
    with serving(runs) as target:
        start = time.monotonic()
        seen = await follow(target, tools={"greet": lambda: "Hi"})
        assert runs.streams[0].closed.wait(PATIENCE)
    assert seen.error is not None
    assert seen.error.reason == reasons.ERROR_REASON_TOOL_OUTPUTS_INCOMPLETE
    assert time.monotonic() - start < QUICK.silence


async def test_a_run_that_ends_does_not_wait_for_its_tools(follow: Follow) -> None:
    release = threading.Event()
    runs = ScriptedRuns(log := with_tools(call("call_1", "hangs")))

    def hangs() -> str:
        runs.publish()  # as a cancel or an expiry would
        return str(release.wait(PATIENCE))

    with serving(runs) as target:
        start = time.monotonic()
        seen = await follow(target, tools={"hangs": hangs})
    assert time.monotonic() - start < PATIENCE / 2
    release.set()
    assert seen.events == log
    assert runs.submitted == []


async def test_coroutine_functions_run_in_the_loop_and_are_cancelled_with_the_stream() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def hangs() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with serving(ScriptedRuns(with_tools(call("call_1", "hangs")))) as target:
        async with (
            FamulusClient(target) as client,
            client.stream_run(CREATE, tools={"hangs": hangs}) as stream,
        ):
            async for _ in stream:
                if stream.last_sequence == 3:
                    await started.wait()
                    break
        assert ended.is_set()


async def test_coroutines_are_answers_like_any_other() -> None:
    async def slow() -> None:
        await asyncio.Event().wait()

    async def gives_up() -> None:
        raise asyncio.CancelledError

    async def greet(name: str) -> str:
        return f"Hi {name}"

    calls = [
        call("call_1", "greet", '{"name": "Eva"}'),
        call("call_2", "slow"),
        call("call_3", "gives_up"),
        call("call_4", "wrapped"),
    ]
    tools: dict[str, Callable[..., Any]] = {
        "greet": greet,
        "slow": slow,
        "gives_up": gives_up,
        "wrapped": lambda: greet("Max"),
    }
    with serving(runs := ScriptedRuns(with_tools(*calls))) as target:
        async with FamulusClient(target) as client:
            result = await client.run_to_end(CREATE, tools=tools, tool_timeout=0.2)
    assert result.text == "Done"
    assert {answer.call_id: answer.output for answer in runs.submitted[0].tool_outputs} == {
        "call_1": "Hi Eva",
        "call_2": "the tool took longer than 0.2 seconds",
        "call_3": "the tool failed: CancelledError",
        "call_4": "Hi Max",
    }


@pytest.fixture
def sync_client() -> Iterator[FamulusSyncClient]:
    with serving(ScriptedRuns(with_tools())) as target, FamulusSyncClient(target) as client:
        yield client


def test_the_sync_client_refuses_coroutine_functions_at_once(sync_client: FamulusSyncClient) -> None:
    async def greet() -> str:
        return "Hi"

    with pytest.raises(TypeError, match="'greet' is a coroutine function"):
        sync_client.stream_run(CREATE, tools={"greet": greet})
