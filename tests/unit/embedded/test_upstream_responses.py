"""The Responses API of the scripted upstream, read with the real SDK."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from famulus_server.embedded.upstream import Fault, Match, Scene, Script, ScriptedUpstream, ToolCall, Usage
from famulus_server.embedded.upstream.script import Quirk

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}, "days": {"type": "integer"}},
    },
}


@asynccontextmanager
async def playing(*scenes: Scene) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of an upstream that plays these scenes, or the built-in script."""
    async with (
        ScriptedUpstream(script=Script(scenes=scenes) if scenes else None) as upstream,
        openai.AsyncOpenAI(base_url=upstream.base_url, api_key="secret", max_retries=0) as client,
    ):
        yield client


async def stream(client: openai.AsyncOpenAI, **request: Any) -> list[Any]:
    request = {"model": "m", "input": "hi", **request}
    return [event async for event in await client.responses.create(stream=True, **request)]


async def raw_stream(client: openai.AsyncOpenAI, **request: Any) -> list[dict[str, Any]]:
    request = {"model": "m", "input": "hi", **request}
    async with client.responses.with_streaming_response.create(stream=True, **request) as response:
        lines = [line async for line in response.iter_lines()]
    return [msgspec.json.decode(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


async def test_text_is_streamed_as_the_real_sequence_of_events() -> None:
    async with playing(Scene(text="Hello big world")) as client:
        events = await stream(client)
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(11))
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == [
        "Hello",
        " big",
        " world",
    ]
    assert events[-1].response.output_text == "Hello big world"
    assert events[-1].response.usage.output_tokens == 3


async def test_every_event_satisfies_the_types_of_the_sdk() -> None:
    everything = Scene(
        reasoning="Let me think",
        text="An answer",
        refusal="and a refusal",
        annotations=({"type": "url_citation", "start_index": 0, "end_index": 2, "title": "t", "url": "http://u"},),
        items=({"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "q"}},),
        tool_calls=(ToolCall(name="f", arguments={"a": 1}), ToolCall(name="g")),
        phase="commentary",
    )
    async with playing(everything) as client:
        events = await raw_stream(client, include=["reasoning.encrypted_content"])
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for event in events:
        adapter.validate_python(event)
    kinds = {event["type"] for event in events}
    assert "response.reasoning_summary_text.delta" in kinds
    assert "response.refusal.delta" in kinds
    assert "response.output_text.annotation.added" in kinds
    assert "response.function_call_arguments.done" in kinds
    final = Response.model_validate(events[-1]["response"])
    assert [item.type for item in final.output] == [
        "reasoning",
        "web_search_call",
        "message",
        "function_call",
        "function_call",
    ]
    assert events[-1]["response"]["output"][0]["encrypted_content"]
    assert events[-1]["response"]["output"][2]["phase"] == "commentary"
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]


async def test_streaming_helper_of_the_sdk_accepts_the_stream() -> None:
    async with (
        playing(Scene(text="one two", tool_calls=(ToolCall(name="f"),))) as client,
        client.responses.stream(model="m", input="hi") as helper,
    ):
        final = await helper.get_final_response()
    assert final.output_text == "one two"


async def test_answer_without_stream_is_the_final_response() -> None:
    async with playing(Scene(text="one two", usage=Usage(input=10, cached=4, output=7, reasoning=3))) as client:
        response = await client.responses.create(model="m", input="hi")
        streamed = await stream(client)
    assert response.output_text == "one two"
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == 4
    assert response.usage.output_tokens_details.reasoning_tokens == 3
    assert response.usage.total_tokens == 17
    assert streamed[-1].response.usage == response.usage


async def test_default_script_echoes_then_calls_the_tool_named_then_quotes_its_output() -> None:
    async with playing() as client:
        hello = await client.responses.create(model="m", input="good morning", tools=[WEATHER])
        assert hello.output_text == "You said: good morning"
        question: Any = {"role": "user", "content": [{"type": "input_text", "text": "How is the Weather?"}]}
        asked = await client.responses.create(model="m", input=[question], tools=[WEATHER])
        (call,) = asked.output
        assert call.type == "function_call"
        assert call.name == "get_weather"
        assert msgspec.json.decode(call.arguments) == {"city": "city", "unit": "C", "days": 1}
        output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 21 C"}
        item: Any = call.model_dump(exclude_none=True)
        told = await client.responses.create(model="m", input=[question, item, output], tools=[WEATHER])
        assert told.output_text == "The tools say: sunny, 21 C"
        turns: Any = [
            question,
            item,
            output,
            {"role": "assistant", "content": "It is sunny."},
            {"role": "user", "content": "Thanks"},
        ]
        thanks = await client.responses.create(model="m", input=turns)
    assert thanks.output_text == "You said: Thanks"


async def test_tool_choice_decides_over_the_words_of_the_user() -> None:
    async with playing() as client:
        required = await client.responses.create(model="m", input="hello", tools=[WEATHER], tool_choice="required")
        none = await client.responses.create(model="m", input="weather", tools=[WEATHER], tool_choice="none")
    assert required.output[0].type == "function_call"
    assert none.output_text == "You said: weather"


async def test_max_output_tokens_cuts_the_answer_and_says_so() -> None:
    async with playing(Scene(deltas=10)) as client:
        events = await stream(client, max_output_tokens=3)
    final = events[-1]
    assert final.type == "response.incomplete"
    assert final.response.incomplete_details.reason == "max_output_tokens"
    assert final.response.output_text == "w1 w2 w3"
    assert final.response.output[0].status == "incomplete"
    assert final.response.usage.output_tokens == 3


async def test_content_filter_makes_the_response_incomplete() -> None:
    async with playing(Scene(text="so far", finish="content_filter")) as client:
        response = await client.responses.create(model="m", input="hi")
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "content_filter"


async def test_ids_differ_between_requests_and_repeat_between_servers() -> None:
    ids = []
    for _ in range(2):
        async with playing(Scene(text="x", tool_calls=(ToolCall(name="f", repeat=2),))) as client:
            for _ in range(2):
                response = await client.responses.create(model="m", input="hi")
                ids.append((response.id, *[item.id for item in response.output]))
    assert ids[:2] == ids[2:]
    assert len({identity for answer in ids[:2] for identity in answer}) == 8


async def test_arguments_and_call_ids_are_sent_as_written() -> None:
    calls = (ToolCall(name="f", arguments='{"a": ', id="same"), ToolCall(name="f", arguments='"\\ud800"', id="same"))
    async with playing(Scene(tool_calls=calls)) as client:
        response = await client.responses.create(model="m", input="hi")
    assert [(item.call_id, item.arguments) for item in response.output if item.type == "function_call"] == [
        ("same", '{"a": '),
        ("same", '"\\ud800"'),
    ]


async def test_thousand_calls_fit_in_one_answer() -> None:
    async with playing(Scene(tool_calls=(ToolCall(name="f", repeat=1000),))) as client:
        final = (await raw_stream(client))[-1]
    assert len({item["call_id"] for item in final["response"]["output"]}) == 1000


async def test_scenes_are_chosen_by_their_conditions() -> None:
    scenes = (
        Scene(match=Match(model="other"), text="by model"),
        Scene(match=Match(system_contains="pirate"), text="by system"),
        Scene(match=Match(tool="get_weather"), text="by tool"),
        Scene(match=Match(user_contains="magic", stream=False), text="by user"),
        Scene(match=Match(api="chat"), text="by api"),
        Scene(times=1, text="once"),
        Scene(text="then"),
    )
    async with playing(*scenes) as client:

        async def ask(**request: Any) -> str:
            response = await client.responses.create(**{"model": "m", "input": "hi", **request})
            return str(response.output_text)

        assert await ask(model="other") == "by model"
        assert await ask(instructions="Talk like a pirate.") == "by system"
        assert await ask(tools=[WEATHER]) == "by tool"
        assert await ask(input="a magic word") == "by user"
        assert [await ask(), await ask(), await ask()] == ["once", "then", "then"]


async def test_request_that_no_scene_matches_is_refused() -> None:
    async with playing(Scene(match=Match(model="other"))) as client:
        with pytest.raises(openai.NotFoundError, match="No scene of the script matches"):
            await client.responses.create(model="m", input="hi")


@pytest.mark.parametrize(
    ("items", "complaint"),
    [
        ([{"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}], "No tool output found"),
        ([{"type": "function_call_output", "call_id": "c1", "output": "x"}], "No tool call found"),
    ],
)
async def test_calls_and_outputs_must_come_in_pairs(items: Any, complaint: str) -> None:
    async with playing() as client:
        with pytest.raises(openai.BadRequestError, match=complaint):
            await client.responses.create(model="m", input=items)


async def test_request_without_model_is_refused_with_the_key() -> None:
    async with playing() as client:
        with pytest.raises(openai.BadRequestError, match="missing required field `model`"):
            await client.post("/responses", body={"input": "hi"}, cast_to=object)


async def test_input_tokens_are_counted_as_in_the_usage_of_an_answer() -> None:
    request: Any = {"model": "m", "instructions": "Be brief.", "input": "one two three"}
    async with playing() as client:
        count = await client.responses.input_tokens.count(**request)
        response = await client.responses.create(**request)
    assert response.usage is not None
    assert count.input_tokens == response.usage.input_tokens == 5


async def test_count_of_input_tokens_has_scenes_of_its_own_and_refuses_what_is_no_input() -> None:
    answering = Scene(name="answer", times=1, text="hi", headers={"x-ratelimit-remaining-requests": "7"})
    counting = Match(api="input_tokens")
    failing = Scene(match=counting, times=1, fault=Fault(kind="status", status=503))
    told = Scene(match=counting, usage=Usage(input=1234))
    async with playing(answering, failing, told) as client:
        with pytest.raises(openai.InternalServerError):
            await client.responses.input_tokens.count(model="m", input="hi")
        assert (await client.responses.input_tokens.count(model="m", input="hi")).input_tokens == 1234
        with pytest.raises(openai.BadRequestError, match="unknown field `store`"):
            await client.responses.input_tokens.count(model="m", input="hi", extra_body={"store": False})
        answer = await client.responses.with_raw_response.create(model="m", input="hi")
    assert answer.headers["x-ratelimit-remaining-requests"] == "7"


async def test_models_of_the_script_are_listed() -> None:
    async with (
        ScriptedUpstream(script=Script(models=("a", "b"))) as upstream,
        openai.AsyncOpenAI(base_url=upstream.base_url, api_key="secret", max_retries=0) as client,
    ):
        assert [model.id async for model in client.models.list()] == ["a", "b"]


async def test_quirks_break_the_sequence_and_nothing_else() -> None:
    quirks: tuple[Quirk, ...] = ("delta_first", "no_indexes", "no_sequence_numbers", "no_usage", "unknown_event")
    async with playing(Scene(text="one two", quirks=quirks)) as client:
        events = await raw_stream(client)
    kinds = [event["type"] for event in events]
    assert kinds.index("response.output_text.delta") < kinds.index("response.output_item.added")
    assert "response.hologram.projected" in kinds
    assert not any("sequence_number" in event or "output_index" in event for event in events)
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["usage"] is None
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == "one two"


async def test_quirk_says_completed_hides_that_the_answer_was_cut() -> None:
    async with playing(Scene(deltas=10, quirks=("says_completed",))) as client:
        response = await client.responses.create(model="m", input="hi", max_output_tokens=2)
    assert response.status == "completed"
    assert response.output_text == "w1 w2"


async def test_unknown_output_items_are_sent_as_written() -> None:
    async with playing(Scene(text="x", items=({"type": "hologram_call", "depth": 3},))) as client:
        final = (await raw_stream(client))[-1]
    assert final["response"]["output"][0] == {"id": "item_1_1", "type": "hologram_call", "depth": 3}
