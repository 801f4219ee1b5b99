"""Chat Completions of the scripted upstream, read with the real SDK."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from famulus_server.embedded.upstream import Scene, Script, ScriptedUpstream, ToolCall, Usage
from famulus_server.embedded.upstream.script import Quirk

USER: Any = {"role": "user", "content": "hi"}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@asynccontextmanager
async def playing(*scenes: Scene) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of an upstream that plays these scenes, or the built-in script."""
    async with (
        ScriptedUpstream(script=Script(scenes=scenes) if scenes else None) as upstream,
        openai.AsyncOpenAI(base_url=upstream.base_url, api_key="secret", max_retries=0) as client,
    ):
        yield client


async def stream(client: openai.AsyncOpenAI, **request: Any) -> list[ChatCompletionChunk]:
    request = {"model": "m", "messages": [USER], **request}
    return [chunk async for chunk in await client.chat.completions.create(stream=True, **request)]


async def raw_stream(client: openai.AsyncOpenAI, **request: Any) -> list[str]:
    request = {"model": "m", "messages": [USER], **request}
    async with client.chat.completions.with_streaming_response.create(stream=True, **request) as response:
        return [line async for line in response.iter_lines() if line]


async def test_chunks_satisfy_the_types_of_the_sdk_and_end_with_done() -> None:
    scene = Scene(reasoning="Hm", text="one two", refusal="no", tool_calls=(ToolCall(name="f", repeat=2),))
    async with playing(scene) as client:
        lines = await raw_stream(client, stream_options={"include_usage": True})
    assert lines[-1] == "data: [DONE]"
    chunks = [ChatCompletionChunk.model_validate_json(line.removeprefix("data: ")) for line in lines[:-1]]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "one two"
    assert chunks[-2].choices[0].finish_reason == "tool_calls"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None


async def test_usage_is_streamed_only_when_asked_for() -> None:
    async with playing(Scene(text="one two", usage=Usage(input=5, cached=2, reasoning=1))) as client:
        without = await stream(client)
        with_usage = await stream(client, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in without)
    usage = with_usage[-1].usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.completion_tokens_details is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 2, 7)
    assert usage.prompt_tokens_details.cached_tokens == 2
    assert usage.completion_tokens_details.reasoning_tokens == 1


async def test_streamed_calls_join_to_the_calls_of_the_whole_answer() -> None:
    scene = Scene(tool_calls=(ToolCall(name="f", arguments={"city": "a long enough name"}), ToolCall(name="g")))
    async with playing(scene, scene) as client:
        whole = await client.chat.completions.create(model="m", messages=[USER])
        chunks = await stream(client)
    pieces: dict[int, str] = {}
    names: dict[int, str | None] = {}
    for chunk in chunks:
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.function is not None
            names.setdefault(call.index, call.function.name)
            pieces[call.index] = pieces.get(call.index, "") + (call.function.arguments or "")
    calls: Any = whole.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == list(names.values()) == ["f", "g"]
    assert [call.function.arguments for call in calls] == list(pieces.values())
    assert whole.choices[0].finish_reason == "tool_calls"


async def test_whole_answer_satisfies_the_types_of_the_sdk() -> None:
    async with playing(Scene(text="one two")) as client:
        raw = await client.chat.completions.with_raw_response.create(model="m", messages=[USER])
    answer = ChatCompletion.model_validate_json(raw.content)
    assert answer.choices[0].message.content == "one two"
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
async def test_limit_of_the_request_cuts_the_answer(key: str) -> None:
    async with playing(Scene(deltas=10)) as client:
        chunks = await stream(client, **{key: 2})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "w1 w2"
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_content_filter_is_the_finish_reason() -> None:
    async with playing(Scene(text="so far", finish="content_filter")) as client:
        chunks = await stream(client)
    assert chunks[-1].choices[0].finish_reason == "content_filter"


async def test_default_script_calls_the_tool_and_quotes_its_output() -> None:
    question: Any = {"role": "user", "content": "What is the weather?"}
    async with playing() as client:
        asked = await client.chat.completions.create(model="m", messages=[question], tools=[WEATHER])
        calls: Any = asked.choices[0].message.tool_calls
        assert msgspec.json.decode(calls[0].function.arguments) == {"city": "city"}
        said: Any = asked.choices[0].message.model_dump(exclude_none=True)
        output: Any = {"role": "tool", "tool_call_id": calls[0].id, "content": "sunny"}
        told = await client.chat.completions.create(model="m", messages=[question, said, output], tools=[WEATHER])
        assert told.choices[0].message.content == "The tools say: sunny"
        with pytest.raises(openai.BadRequestError, match="No tool output found"):
            await client.chat.completions.create(model="m", messages=[question, said])


async def test_quirks_of_compatible_servers() -> None:
    quirks: tuple[Quirk, ...] = ("delta_first", "no_indexes", "no_usage", "says_completed", "unknown_event")
    async with playing(Scene(deltas=5, quirks=quirks)) as client:
        lines = await raw_stream(client, max_tokens=2, stream_options={"include_usage": True})
    chunks = [msgspec.json.decode(line.removeprefix("data: ")) for line in lines[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"content": "w1"}
    assert "index" not in chunks[0]["choices"][0]
    assert any(chunk["object"] == "hologram.projected" for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert not any(chunk.get("usage") for chunk in chunks)
