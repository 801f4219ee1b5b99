"""What each fault of the scripted upstream looks like to a client."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import openai
import pytest

from famulus_server.embedded.upstream import Fault, Scene, Script, ScriptedUpstream

BODIES: dict[str, Any] = {
    "responses": {"model": "m", "stream": True, "input": "hi"},
    "chat/completions": {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]},
}
FINISH = {"responses": b"response.completed", "chat/completions": b'"finish_reason":"stop"'}
both_apis = pytest.mark.parametrize("path", list(BODIES))


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as client:
        yield client


def play(upstream: ScriptedUpstream, **fault: Any) -> None:
    upstream.replace(Script(scenes=(Scene(deltas=4, fault=Fault(**fault)),)))


async def read_all(upstream: ScriptedUpstream, session: aiohttp.ClientSession, path: str, **extra: Any) -> bytes:
    async with session.post(f"{upstream.base_url}/{path}", json=BODIES[path] | extra) as response:
        assert response.status == 200
        return await response.read()


def deltas(data: bytes) -> int:
    return (
        data.count(b'"delta":"w')
        + data.count(b'"delta":" w')
        + data.count(b'"content":"w')
        + data.count(b'"content":" w')
    )


@both_apis
async def test_status_comes_with_its_headers_and_only_as_often_as_told(
    path: str, upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    headers = {"retry-after-ms": "20", "x-should-retry": "false"}
    fault = Fault(kind="status", status=429, headers=headers, code="slow_down", message="Not so fast.")
    upstream.replace(Script(scenes=(Scene(times=2, fault=fault), Scene(text="good"))))
    for _ in range(2):
        async with session.post(f"{upstream.base_url}/{path}", json=BODIES[path]) as response:
            assert response.status == 429
            assert headers.items() <= dict(response.headers).items()
            error = (await response.json())["error"]
            assert (error["code"], error["message"], error["type"]) == ("slow_down", "Not so fast.", "rate_limit_error")
    assert b"good" in await read_all(upstream, session, path)


async def test_sdk_maps_the_refusals_to_its_own_errors(upstream: ScriptedUpstream) -> None:
    async with openai.AsyncOpenAI(base_url=upstream.base_url, api_key="k", max_retries=0) as client:
        for status, error in [
            (400, openai.BadRequestError),
            (401, openai.AuthenticationError),
            (429, openai.RateLimitError),
            (503, openai.InternalServerError),
        ]:
            play(upstream, kind="status", status=status)
            with pytest.raises(error):
                await client.responses.create(model="m", input="hi")


@both_apis
@pytest.mark.parametrize("after", [0, 2, 4, 99])
async def test_eof_ends_the_stream_cleanly_after_so_many_deltas(
    path: str, after: int, upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    play(upstream, kind="eof", after=after)
    data = await read_all(upstream, session, path)
    assert deltas(data) == min(after, 4)
    assert (b"output_text.done" in data) == (after > 4 and path == "responses")
    assert FINISH[path] not in data
    assert b"[DONE]" not in data


@both_apis
async def test_mid_json_ends_within_an_event(
    path: str, upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    play(upstream, kind="mid_json", after=2)
    last = (await read_all(upstream, session, path)).rpartition(b"data: ")[2]
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(last)


@both_apis
async def test_no_completed_leaves_out_the_finish_only(
    path: str, upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    play(upstream, kind="no_completed")
    data = await read_all(upstream, session, path)
    assert deltas(data) == 4
    assert FINISH[path] not in data
    assert (b"[DONE]" in data) == (path == "chat/completions")


async def test_no_done_leaves_out_the_last_line_of_a_chat_stream(
    upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    play(upstream, kind="no_done")
    data = await read_all(upstream, session, "chat/completions")
    assert FINISH["chat/completions"] in data
    assert b"[DONE]" not in data


async def test_error_event_and_failure_are_ordinary_events_of_the_sdk(upstream: ScriptedUpstream) -> None:
    async with openai.AsyncOpenAI(base_url=upstream.base_url, api_key="k", max_retries=0) as client:
        play(upstream, kind="response_failed", message="Out of order.", code="rate_limit_exceeded")
        events = [event async for event in await client.responses.create(model="m", input="hi", stream=True)]
        assert events[-1].type == "response.failed"
        assert events[-1].response.error is not None
        assert events[-1].response.error.message == "Out of order."
        assert events[-1].response.error.code == "rate_limit_exceeded"
        play(upstream, kind="error_event", after=2)
        data = [event async for event in await client.responses.create(model="m", input="hi", stream=True)]
        assert data[-1].type == "error"
        assert data[-1].sequence_number == len(data) - 1
        with pytest.raises(openai.APIError):
            _ = [c async for c in await client.chat.completions.create(**BODIES["chat/completions"])]


@both_apis
@pytest.mark.parametrize("kind", ["reset", "disconnect"])
async def test_cut_connection_is_an_error_after_the_deltas(
    path: str, kind: str, upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    play(upstream, kind=kind, after=2)
    async with session.post(f"{upstream.base_url}/{path}", json=BODIES[path]) as response:
        seen = await response.content.readuntil(b"w2")
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    assert deltas(seen) == 2
    assert (await upstream.wait_for_end(1)).outcome == "broken"


async def test_reset_is_a_reset_on_the_socket(upstream: ScriptedUpstream) -> None:
    for kind in ("reset", "reset_before_response"):
        play(upstream, kind=kind)
        host, port = upstream.base_url.removeprefix("http://").removesuffix("/v1").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = msgspec.json.encode(BODIES["responses"])
        writer.write(b"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        with pytest.raises(ConnectionResetError):
            await reader.read(-1)
        writer.close()


@both_apis
async def test_reset_before_the_response_sends_no_byte(
    path: str, upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    play(upstream, kind="reset_before_response")
    with pytest.raises(aiohttp.ClientOSError):
        await read_all(upstream, session, path)
    assert (await upstream.wait_for_end(1)).outcome == "broken"


@both_apis
@pytest.mark.parametrize("kind", ["hang_before_response", "hang", "pings"])
async def test_hanging_upstream_notices_at_once_that_the_client_left(
    path: str, kind: str, upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    play(upstream, kind=kind)
    call = asyncio.create_task(read_all(upstream, session, path))
    await upstream.wait_for_request(1)
    call.cancel()
    await asyncio.wait([call])
    assert (await upstream.wait_for_end(1, timeout=2)).outcome == "disconnected"


async def test_hang_stops_after_its_deltas(upstream: ScriptedUpstream, session: aiohttp.ClientSession) -> None:
    play(upstream, kind="hang", after=3)
    async with session.post(f"{upstream.base_url}/responses", json=BODIES["responses"]) as response:
        data = await response.content.readuntil(b'"delta":" w3"')
        assert deltas(data) == 3
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(response.content.readuntil(b"delta"), 0.05)


async def test_pings_come_for_ever(upstream: ScriptedUpstream, session: aiohttp.ClientSession) -> None:
    play(upstream, kind="pings", after=0, interval_ms=1)
    async with session.post(f"{upstream.base_url}/responses", json=BODIES["responses"]) as response:
        for _ in range(5):
            assert deltas(await response.content.readuntil(b": ping\n\n")) == 0


@both_apis
async def test_bad_line_is_one_line_of_an_otherwise_whole_stream(
    path: str, upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    for kind, error in [("bad_json", msgspec.DecodeError), ("bad_utf8", UnicodeDecodeError)]:
        play(upstream, kind=kind, after=2)
        data = await read_all(upstream, session, path)
        assert deltas(data) == 4
        assert FINISH[path] in data
        lines = [line.partition(b"data: ")[2] for line in data.split(b"\n") if line.startswith(b"data: {")]
        bad = [line for line in lines if not _is_json(line)]
        assert len(bad) == 1
        with pytest.raises(error):
            msgspec.json.decode(bad[0].decode())


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line.decode())
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


@both_apis
async def test_lone_surrogate_is_sent_escaped(
    path: str, upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    play(upstream, kind="lone_surrogate")
    assert rb'"\ud800"' in await read_all(upstream, session, path)


@both_apis
async def test_long_line_has_the_size_asked_for(
    path: str, upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    play(upstream, kind="long_line", size=3_000_000)
    data = await read_all(upstream, session, path)
    assert 3_000_000 < max(map(len, data.split(b"\n"))) < 3_001_000
    assert FINISH[path] in data


@both_apis
async def test_answer_without_stream_breaks_too(
    path: str, upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    play(upstream, kind="eof")
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(await read_all(upstream, session, path, stream=False))
    play(upstream, kind="reset")
    with pytest.raises(aiohttp.ClientError):
        await read_all(upstream, session, path, stream=False)
    play(upstream, kind="hang")
    async with session.post(f"{upstream.base_url}/{path}", json=BODIES[path] | {"stream": False}) as response:
        assert (await response.content.readany()).startswith(b"{")
        response.close()
    assert (await upstream.wait_for_end(3)).outcome == "disconnected"
