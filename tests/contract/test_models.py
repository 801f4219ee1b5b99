"""The contract of the port `Model`, over both adapters: the real SDK, real sockets, the scripted upstream."""

import gzip
from contextlib import aclosing
from functools import partial
from typing import Any, get_args

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from contract.model_stage import HELLO, TOOLS, Open, ask, open_stage, text_of
from famulus_server.embedded.upstream.script import Fault, Scene, ToolCall
from famulus_server.ports import (
    CallChunk,
    ReasoningChunk,
    RefusalChunk,
    TextChunk,
    TurnEnded,
    TurnOutcome,
)
from hostile.streams import Api, good_streams


@pytest.fixture(name="stage_on", params=["responses", "chat"])
def choose_backend(request: pytest.FixtureRequest) -> Open:
    return partial(open_stage, request.param)


async def test_text_comes_in_chunks_and_ends_with_items_and_usage(stage_on: Open) -> None:
    async with stage_on(Scene(text="one two three")) as stage:
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


async def test_no_list_is_empty_and_chunks_of_one_read_come_together(stage_on: Open) -> None:
    async with stage_on(Scene(deltas=500)) as stage:
        reads = await stage.reads()
    assert all(reads)
    assert len(reads) < 100
    assert isinstance(reads[-1][-1], TurnEnded)


async def test_chunks_come_while_the_upstream_is_still_writing(stage_on: Open) -> None:
    async with stage_on(Scene(deltas=3, hold_after=1)) as stage, aclosing(stage.model.stream(ask())) as stream:
        assert text_of(await anext(stream)) == "w1"
        (await stage.upstream.wait_for_request(1)).released.set()
        assert text_of([event async for events in stream for event in events]) == " w2 w3"


async def test_what_has_come_meanwhile_is_read_at_once(stage_on: Open) -> None:
    async with stage_on(Scene(deltas=500, hold_after=1)) as stage, aclosing(stage.model.stream(ask())) as stream:
        await anext(stream)
        (await stage.upstream.wait_for_request(1)).released.set()
        await stage.upstream.wait_for_end(1)
        # A hundred kilobytes.
        assert len([events async for events in stream]) <= 3


async def test_calls_are_named_before_their_arguments(stage_on: Open) -> None:
    calls = (
        ToolCall(name="weather", arguments={"city": "a very long name indeed"}, id="call_a"),
        ToolCall(name="time"),
    )
    async with stage_on(Scene(text="wait", tool_calls=calls)) as stage:
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


async def test_ended_items_can_be_sent_back_with_outputs(stage_on: Open) -> None:
    first = Scene(text="wait", tool_calls=(ToolCall(name="weather", repeat=2),), times=1)
    async with stage_on(first, Scene(quote_outputs=True)) as stage:
        items = (await stage.end(tools=TOOLS)).items
        outputs = [
            {"type": "function_call_output", "call_id": item["call_id"], "output": "sunny"}
            for item in items
            if item["type"] == "function_call"
        ]
        # The upstream refuses calls without outputs and outputs without calls, as the real ones do.
        assert text_of(await stage.play(items=[*HELLO, *items, *outputs], tools=TOOLS)) == "sunny\nsunny"


async def test_positions_in_chunks_are_places_in_the_ended_items(stage_on: Open) -> None:
    scene = Scene(reasoning="let me think", text="so it is", tool_calls=(ToolCall(name="f", arguments="{}"),))
    async with stage_on(scene, reasoning=True) as stage:
        events = await stage.play()
    end = events[-1]
    assert isinstance(end, TurnEnded)
    assert {end.items[event.item]["type"] for event in events if isinstance(event, TextChunk)} == {"message"}
    assert {end.items[event.item]["type"] for event in events if isinstance(event, CallChunk)} == {"function_call"}
    assert "".join(event.text for event in events if isinstance(event, ReasoningChunk)) == "let me think"


async def test_refusals_are_told_apart_from_text(stage_on: Open) -> None:
    async with stage_on(Scene(refusal="I will not")) as stage:
        events = await stage.play()
    assert "".join(event.text for event in events if isinstance(event, RefusalChunk)) == "I will not"
    assert text_of(events) == ""
    end = events[-1]
    assert isinstance(end, TurnEnded)
    assert end.items[0]["content"] == [{"type": "refusal", "refusal": "I will not"}]


@pytest.mark.parametrize(
    ("finish", "outcome"), [("length", TurnOutcome.MAX_TOKENS), ("content_filter", TurnOutcome.CONTENT_FILTER)]
)
async def test_answers_cut_by_the_model_say_so(stage_on: Open, finish: Any, outcome: TurnOutcome) -> None:
    async with stage_on(Scene(deltas=3, finish=finish)) as stage:
        end = await stage.end()
    assert end.outcome is outcome
    assert end.items[0]["status"] == "incomplete"


async def test_answer_cut_at_the_limit_but_called_completed_is_not_believed(stage_on: Open) -> None:
    async with stage_on(Scene(deltas=9, quirks=("says_completed",))) as stage:
        assert (await stage.end(max_output_tokens=3)).outcome is TurnOutcome.MAX_TOKENS
        assert (await stage.end(max_output_tokens=10)).outcome is TurnOutcome.COMPLETED


@pytest.mark.parametrize("quirks", [("delta_first",), ("no_indexes",), ("delta_first", "no_indexes")])
@pytest.mark.parametrize("kind", ["text", "call"])
async def test_compatible_servers_leave_out_and_reorder(stage_on: Open, quirks: Any, kind: str) -> None:
    calls = (ToolCall(name="f", arguments={"a": "long enough for pieces"}), ToolCall(name="g", arguments={"b": 1}))
    scene = Scene(text="one two", quirks=(*quirks, "no_sequence_numbers", "no_usage"))
    if kind == "call":
        scene = Scene(tool_calls=calls, quirks=(*quirks, "no_sequence_numbers", "no_usage"))
    async with stage_on(scene) as stage:
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


async def test_events_of_unknown_kinds_are_ignored_and_told_once(stage_on: Open) -> None:
    async with stage_on(Scene(text="fine", quirks=("unknown_event",))) as stage:
        with capture_logs() as told:
            for _ in range(3):
                assert text_of(await stage.play()) == "fine"
    assert [entry["log_level"] for entry in told] == ["warning", "debug", "debug"]
    assert all(entry["model"] == "m" and "hologram.projected" in entry["kind"] for entry in told)


async def test_duplicate_call_ids_are_left_as_they_are(stage_on: Open) -> None:
    async with stage_on(Scene(tool_calls=(ToolCall(name="f", id="call_x", repeat=3),))) as stage:
        end = await stage.end()
    assert [item["call_id"] for item in end.items] == ["call_x"] * 3


async def test_a_thousand_calls_are_read(stage_on: Open) -> None:
    async with stage_on(Scene(tool_calls=(ToolCall(name="f", repeat=1_000),))) as stage:
        assert len((await stage.end()).items) == 1_000


async def test_lone_surrogates_never_come_out(stage_on: Open) -> None:
    async with stage_on(Scene(deltas=2, fault=Fault(kind="lone_surrogate"))) as stage:
        assert "\ufffd" in text_of(await stage.play()).encode().decode()


@pytest.mark.parametrize("api", get_args(Api))
async def test_answer_that_is_encoded_though_nobody_asked_is_read(api: Api) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(good_streams(api)[0]), headers={"Content-Encoding": "gzip"})

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    async with TestServer(app) as server, open_stage(api, base_url=str(server.make_url("/v1"))) as stage:
        assert text_of(await stage.play()) == "Plain words, \u00fcml\u00e4ut and \U0001f600."
