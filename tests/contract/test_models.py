"""The contract of the port `Model`, over both adapters: the real SDK, real sockets, the scripted upstream."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import psutil
import pytest
from famulus.v1.tool_pb2 import FunctionTool, Tool
from famulus_server.embedded.upstream.script import Fault, Scene, Script, ToolCall
from famulus_server.embedded.upstream.server import ScriptedUpstream
from famulus_server.errors import (
    ModelAuthenticationError,
    ModelError,
    ModelProtocolError,
    ModelRateLimited,
    ModelRejectedRequest,
    ModelTimeout,
    ModelUnavailable,
)
from famulus_server.models.registry import ModelRegistry
from famulus_server.models.settings import ModelSettings, RetrySettings
from famulus_server.ports import (
    CallChunk,
    Model,
    ModelEvent,
    ModelRequest,
    ReasoningChunk,
    RefusalChunk,
    Retrying,
    TextChunk,
    TurnEnded,
    TurnOutcome,
)

BACKENDS = ["responses", "chat"]
ONCE = RetrySettings(attempts=1)
HELLO = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
TOOLS = [Tool(function=FunctionTool(name="weather", parameters_json='{"type":"object","properties":{}}'))]


class Stage:
    """A scripted upstream and a model on it."""

    def __init__(self, upstream: ScriptedUpstream, model: Model, registry: ModelRegistry) -> None:
        self.upstream = upstream
        self.model = model
        self.registry = registry

    async def play(self, **request: Any) -> list[ModelEvent]:
        return [event for events in await self.reads(**request) for event in events]

    async def reads(self, **request: Any) -> list[list[ModelEvent]]:
        return [events async for events in self.model.stream(ask(**request))]

    async def end(self, **request: Any) -> TurnEnded:
        last = (await self.play(**request))[-1]
        assert isinstance(last, TurnEnded)
        return last


Open = Callable[..., Any]


def ask(**request: Any) -> ModelRequest:
    return ModelRequest(**{"model": "m", "instructions": "", "items": HELLO} | request)


@pytest.fixture(params=BACKENDS)
def open_stage(request: pytest.FixtureRequest) -> Open:
    """Opens a stage: `open_stage(scene, ..., settings...)`. Models try once unless told otherwise."""

    @asynccontextmanager
    async def open_stage(*scenes: Scene, **settings: Any) -> AsyncIterator[Stage]:
        async with ScriptedUpstream(script=Script(scenes=scenes)) as upstream:
            given: dict[str, Any] = {"base_url": upstream.base_url, "retry": ONCE} | settings
            registry = ModelRegistry(settings=[ModelSettings(name="m", backend=request.param, **given)])
            try:
                yield Stage(upstream, registry.open("m"), registry)
            finally:
                await registry.close()

    return open_stage


def text_of(events: list[ModelEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextChunk))


async def test_text_comes_in_chunks_and_ends_with_items_and_usage(open_stage: Open) -> None:
    async with open_stage(Scene(text="one two three")) as stage:
        events = await stage.play()
    assert [event for event in events if isinstance(event, TextChunk)] == [
        TextChunk(0, 0, "one"),
        TextChunk(0, 0, " two"),
        TextChunk(0, 0, " three"),
    ]
    end = events[-1]
    assert isinstance(end, TurnEnded)
    assert end.outcome is TurnOutcome.COMPLETED
    assert [(item["type"], item["role"], item["content"][0]["text"]) for item in end.items] == [
        ("message", "assistant", "one two three")
    ]
    assert end.usage is not None
    assert (end.usage.prompt_tokens, end.usage.completion_tokens, end.usage.total_tokens) == (1, 3, 4)


async def test_no_list_is_empty_and_chunks_of_one_read_come_together(open_stage: Open) -> None:
    async with open_stage(Scene(deltas=500)) as stage:
        reads = await stage.reads()
    assert all(reads)
    assert len(reads) < 100
    assert isinstance(reads[-1][-1], TurnEnded)


async def test_chunks_come_while_the_upstream_is_still_writing(open_stage: Open) -> None:
    async with open_stage(Scene(deltas=3, hold_after=1)) as stage, aclosing(stage.model.stream(ask())) as stream:
        assert text_of(await anext(stream)) == "w1"
        (await stage.upstream.wait_for_request(1)).released.set()
        assert text_of([event async for events in stream for event in events]) == " w2 w3"


async def test_calls_are_named_before_their_arguments(open_stage: Open) -> None:
    calls = (
        ToolCall(name="weather", arguments={"city": "a very long name indeed"}, id="call_a"),
        ToolCall(name="time"),
    )
    async with open_stage(Scene(text="wait", tool_calls=calls)) as stage:
        events = await stage.play(tools=TOOLS)
    chunks = [event for event in events if isinstance(event, CallChunk)]
    assert [(chunk.item, chunk.name) for chunk in chunks if chunk.name] == [(1, "weather"), (2, "time")]
    assert chunks[0].call_id == "call_a"
    first = [chunk for chunk in chunks if chunk.item == 1]
    assert len(first) > 2
    assert "".join(chunk.arguments for chunk in first) == '{"city":"a very long name indeed"}'
    end = events[-1]
    assert isinstance(end, TurnEnded)
    assert [item["type"] for item in end.items] == ["message", "function_call", "function_call"]
    assert end.items[1]["arguments"] == '{"city":"a very long name indeed"}'
    assert end.items[1]["call_id"] == "call_a"


async def test_ended_items_can_be_sent_back_with_outputs(open_stage: Open) -> None:
    first = Scene(text="wait", tool_calls=(ToolCall(name="weather", repeat=2),), times=1)
    async with open_stage(first, Scene(quote_outputs=True)) as stage:
        items = (await stage.end(tools=TOOLS)).items
        outputs = [
            {"type": "function_call_output", "call_id": item["call_id"], "output": "sunny"}
            for item in items
            if item["type"] == "function_call"
        ]
        # The upstream refuses calls without outputs and outputs without calls, as the real ones do.
        assert text_of(await stage.play(items=[*HELLO, *items, *outputs], tools=TOOLS)) == "sunny\nsunny"


async def test_positions_in_chunks_are_places_in_the_ended_items(open_stage: Open) -> None:
    scene = Scene(reasoning="let me think", text="so it is", tool_calls=(ToolCall(name="f", arguments="{}"),))
    async with open_stage(scene, reasoning=True) as stage:
        events = await stage.play()
    end = events[-1]
    assert isinstance(end, TurnEnded)
    assert {end.items[event.item]["type"] for event in events if isinstance(event, TextChunk)} == {"message"}
    assert {end.items[event.item]["type"] for event in events if isinstance(event, CallChunk)} == {"function_call"}
    assert "".join(event.text for event in events if isinstance(event, ReasoningChunk)) == "let me think"


async def test_refusals_are_told_apart_from_text(open_stage: Open) -> None:
    async with open_stage(Scene(refusal="I will not")) as stage:
        events = await stage.play()
    assert "".join(event.text for event in events if isinstance(event, RefusalChunk)) == "I will not"
    assert text_of(events) == ""
    end = events[-1]
    assert isinstance(end, TurnEnded)
    assert end.items[0]["content"] == [{"type": "refusal", "refusal": "I will not"}]


@pytest.mark.parametrize(
    ("finish", "outcome"), [("length", TurnOutcome.MAX_TOKENS), ("content_filter", TurnOutcome.CONTENT_FILTER)]
)
async def test_answers_cut_by_the_model_say_so(open_stage: Open, finish: Any, outcome: TurnOutcome) -> None:
    async with open_stage(Scene(deltas=3, finish=finish)) as stage:
        end = await stage.end()
    assert end.outcome is outcome
    assert end.items[0]["status"] == "incomplete"


async def test_answer_cut_at_the_limit_but_called_completed_is_not_believed(open_stage: Open) -> None:
    async with open_stage(Scene(deltas=9, quirks=("says_completed",))) as stage:
        assert (await stage.end(max_output_tokens=3)).outcome is TurnOutcome.MAX_TOKENS
        assert (await stage.end(max_output_tokens=10)).outcome is TurnOutcome.COMPLETED


@pytest.mark.parametrize("quirks", [("delta_first",), ("no_indexes",), ("delta_first", "no_indexes")])
@pytest.mark.parametrize("kind", ["text", "call"])
async def test_compatible_servers_leave_out_and_reorder(open_stage: Open, quirks: Any, kind: str) -> None:
    calls = (ToolCall(name="f", arguments={"a": "long enough for pieces"}), ToolCall(name="g", arguments={"b": 1}))
    scene = Scene(text="one two", quirks=(*quirks, "no_sequence_numbers", "no_usage"))
    if kind == "call":
        scene = Scene(tool_calls=calls, quirks=(*quirks, "no_sequence_numbers", "no_usage"))
    async with open_stage(scene) as stage:
        events = await stage.play()
    end = events[-1]
    assert isinstance(end, TurnEnded)
    assert end.usage is None
    if kind == "text":
        assert text_of(events) == end.items[0]["content"][0]["text"] == "one two"
        return
    assert [(item["name"], item["arguments"]) for item in end.items] == [
        ("f", '{"a":"long enough for pieces"}'),
        ("g", '{"b":1}'),
    ]
    for position, item in enumerate(end.items):
        chunks = [event for event in events if isinstance(event, CallChunk) and event.item == position]
        assert (chunks[0].name, chunks[0].call_id) == (item["name"], item["call_id"])
        assert "".join(chunk.arguments for chunk in chunks) == item["arguments"]


async def test_events_of_unknown_kinds_are_ignored_and_counted(open_stage: Open) -> None:
    async with open_stage(Scene(text="fine", quirks=("unknown_event",))) as stage:
        assert text_of(await stage.play()) == "fine"
        assert stage.registry.ignored_events() == {"m": 1}


async def test_duplicate_call_ids_are_left_as_they_are(open_stage: Open) -> None:
    async with open_stage(Scene(tool_calls=(ToolCall(name="f", id="call_x", repeat=3),))) as stage:
        end = await stage.end()
    assert [item["call_id"] for item in end.items] == ["call_x"] * 3


async def test_a_thousand_calls_are_read(open_stage: Open) -> None:
    async with open_stage(Scene(tool_calls=(ToolCall(name="f", repeat=1_000),))) as stage:
        assert len((await stage.end()).items) == 1_000


async def test_lone_surrogates_never_come_out(open_stage: Open) -> None:
    async with open_stage(Scene(deltas=2, fault=Fault(kind="lone_surrogate"))) as stage:
        assert "\ufffd" in text_of(await stage.play()).encode().decode()


@pytest.mark.parametrize("kind", ["eof", "mid_json", "no_completed", "no_done", "reset", "disconnect"])
async def test_stream_that_merely_ends_is_a_failure(open_stage: Open, kind: Any) -> None:
    async with open_stage(Scene(deltas=5, fault=Fault(kind=kind))) as stage:
        with pytest.raises(ModelProtocolError):
            await stage.play()


@pytest.mark.parametrize("kind", ["error_event", "response_failed"])
async def test_error_in_the_stream_is_a_failure(open_stage: Open, kind: Any) -> None:
    async with open_stage(Scene(deltas=5, fault=Fault(kind=kind, message="secret words"))) as stage:
        with pytest.raises(ModelUnavailable) as caught:
            await stage.play()
    assert "secret" not in caught.value.public


@pytest.mark.parametrize("kind", ["bad_json", "bad_utf8"])
async def test_broken_bytes_are_a_typed_failure(open_stage: Open, kind: Any) -> None:
    async with open_stage(Scene(deltas=5, fault=Fault(kind=kind))) as stage:
        with pytest.raises(ModelProtocolError):
            await stage.play()


async def test_line_over_the_cap_ends_the_call(open_stage: Open) -> None:
    async with open_stage(Scene(deltas=5, fault=Fault(kind="long_line"))) as stage:
        with pytest.raises(ModelProtocolError, match="more than 1048576 bytes"):
            await stage.play()
        assert (await stage.upstream.wait_for_end(1, timeout=1)).outcome == "disconnected"


@pytest.mark.parametrize("kind", ["hang_before_response", "hang", "pings"])
@pytest.mark.parametrize("after", [None, 0])
async def test_silence_times_out_and_closes_the_call(open_stage: Open, kind: Any, after: Any) -> None:
    fault = Fault(kind=kind, **({} if kind == "hang_before_response" else {"after": after}))
    async with open_stage(Scene(deltas=5, fault=fault), first_event_timeout=0.3, idle_timeout=0.3) as stage:
        await stage.registry.warm_up()
        async with asyncio.timeout(1):
            with pytest.raises(ModelTimeout):
                await stage.play()
            assert (await stage.upstream.wait_for_end(1)).outcome == "disconnected"


async def test_slow_consumer_is_not_taken_for_a_silent_model(open_stage: Open) -> None:
    async with open_stage(Scene(deltas=2, hold_after=1), idle_timeout=0.2) as stage:
        seen = ""
        async for events in stage.model.stream(ask()):
            seen += text_of(events)
            await asyncio.sleep(0.3)
            stage.upstream.requests[0].released.set()
    assert seen == "w1 w2"


async def test_closing_the_iterator_closes_the_upstream_call(open_stage: Open) -> None:
    async with open_stage(Scene(deltas=5, hold_after=1)) as stage:
        async with aclosing(stage.model.stream(ask())) as stream:
            await anext(stream)
        assert (await stage.upstream.wait_for_end(1, timeout=1)).outcome == "disconnected"


@pytest.mark.parametrize("scene", [Scene(deltas=5, hold_after=1), Scene(fault=Fault(kind="hang_before_response"))])
async def test_cancelling_the_reader_closes_the_upstream_call(open_stage: Open, scene: Scene) -> None:
    async with open_stage(scene) as stage:
        task = asyncio.create_task(stage.play())
        await stage.upstream.wait_for_request(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await stage.upstream.wait_for_end(1, timeout=1)).outcome == "disconnected"


@pytest.mark.parametrize(
    ("status", "error", "retried"),
    [
        (401, ModelAuthenticationError, False),
        (403, ModelAuthenticationError, False),
        (429, ModelRateLimited, True),
        (400, ModelRejectedRequest, False),
        (404, ModelRejectedRequest, False),
        (413, ModelRejectedRequest, False),
        (422, ModelRejectedRequest, False),
        (408, ModelUnavailable, True),
        (409, ModelUnavailable, True),
        (500, ModelUnavailable, True),
        (503, ModelUnavailable, True),
    ],
)
async def test_refusals_are_typed(open_stage: Open, status: int, error: type[ModelError], retried: bool) -> None:
    async with open_stage(Scene(fault=Fault(kind="status", status=status)), api_key="sk-secret") as stage:
        with pytest.raises(error) as caught:
            await stage.play()
    assert type(caught.value) is error
    assert caught.value.may_retry is retried
    assert "sk-secret" not in str(caught.value) + caught.value.public


async def test_provider_is_obeyed_about_retries(open_stage: Open) -> None:
    headers = {"retry-after-ms": "1500", "retry-after": "9", "x-should-retry": "false"}
    async with open_stage(Scene(fault=Fault(kind="status", status=429, headers=headers))) as stage:
        with pytest.raises(ModelRateLimited) as caught:
            await stage.play()
    assert caught.value.retry_after == 1.5
    assert not caught.value.may_retry


async def test_connection_refused_is_unavailable(open_stage: Open) -> None:
    async with open_stage() as stage:
        await stage.upstream.close()
        with pytest.raises(ModelUnavailable):
            await stage.play()


async def test_connection_reset_before_the_answer_is_unavailable(open_stage: Open) -> None:
    async with open_stage(Scene(fault=Fault(kind="reset_before_response"))) as stage:
        with pytest.raises(ModelUnavailable):
            await stage.play()


async def test_connection_is_used_again_for_the_next_turn(open_stage: Open) -> None:
    async with open_stage(Scene(deltas=3)) as stage:
        seen = set()
        for _ in range(3):
            await stage.play()
            connections = psutil.Process().net_connections("tcp")
            seen |= {
                at.laddr for at in connections if at.raddr and stage.upstream.base_url.endswith(f":{at.raddr[1]}/v1")
            }
    assert len(seen) == 1


async def test_retry_is_silent_announced_and_waits_as_told(open_stage: Open) -> None:
    failing = Scene(times=2, fault=Fault(kind="status", status=503, headers={"retry-after-ms": "40"}))
    async with open_stage(failing, Scene(text="at last"), retry=RetrySettings(base_delay=0.001)) as stage:
        events = await stage.play()
        assert len(stage.upstream.requests) == 3
    announced = [event for event in events if isinstance(event, Retrying)]
    assert events[:2] == announced
    assert all(0.040 <= retry.delay <= 0.044 for retry in announced)
    assert all(retry.code == ModelUnavailable.code for retry in announced)
    assert text_of(events) == "at last"


async def test_retries_end_after_three_tries(open_stage: Open) -> None:
    failing = Scene(fault=Fault(kind="status", status=500))
    async with open_stage(failing, retry=RetrySettings(base_delay=0.001)) as stage:
        with pytest.raises(ModelUnavailable):
            await stage.play()
        assert len(stage.upstream.requests) == 3


async def test_turn_is_not_tried_again_after_its_first_chunk(open_stage: Open) -> None:
    failing = Scene(deltas=5, fault=Fault(kind="reset"))
    async with open_stage(failing, retry=RetrySettings(base_delay=0.001)) as stage:
        with pytest.raises(ModelProtocolError):
            await stage.play()
        assert len(stage.upstream.requests) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="status", status=400),
        Fault(kind="status", status=503, headers={"x-should-retry": "false"}),
        Fault(kind="status", status=429, headers={"retry-after": "3600"}),
        Fault(kind="status", status=429, code="insufficient_quota"),
    ],
)
async def test_what_will_not_help_is_not_tried_again(open_stage: Open, fault: Fault) -> None:
    async with open_stage(Scene(fault=fault), retry=RetrySettings(base_delay=0.001)) as stage:
        with pytest.raises(ModelError):
            await stage.play()
        assert len(stage.upstream.requests) == 1


async def test_retries_of_many_turns_stay_within_the_budget(open_stage: Open) -> None:
    retry = RetrySettings(base_delay=0.001, budget=0.1, reserve=2)
    async with open_stage(Scene(fault=Fault(kind="status", status=500)), retry=retry) as stage:
        for _ in range(10):
            with pytest.raises(ModelUnavailable):
                await stage.play()
        assert 10 < len(stage.upstream.requests) <= 13
