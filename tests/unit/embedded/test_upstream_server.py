"""The server around the script: pace, observation, control over HTTP, starting and stopping."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from famulus_server.embedded.upstream import Fault, Scene, Script, ScriptedUpstream

STREAM: dict[str, Any] = {"model": "m", "stream": True, "input": "hi"}


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as client:
        yield client


def control(upstream: ScriptedUpstream, path: str) -> str:
    return upstream.base_url.removesuffix("/v1") + path


async def test_request_is_recorded_with_headers_body_scene_and_outcome(
    upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    headers = {"Authorization": "Bearer key", "X-Trace": "t1"}
    async with session.post(f"{upstream.base_url}/responses", json=STREAM, headers=headers) as response:
        await response.read()
    received = await upstream.wait_for_end(1)
    assert (received.method, received.path) == ("POST", "/v1/responses")
    assert received.headers["authorization"] == "Bearer key"
    assert received.headers["x-trace"] == "t1"
    assert received.body == STREAM
    assert (received.scene, received.outcome) == ("echo", "completed")


async def test_wait_for_request_returns_as_soon_as_it_arrives(
    upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    upstream.replace(Script(scenes=(Scene(fault=Fault(kind="hang_before_response")),)))
    call = asyncio.create_task(session.post(f"{upstream.base_url}/responses", json=STREAM).__aenter__())
    received = await upstream.wait_for_request(1)
    assert not received.closed.is_set()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await received.closed.wait()
    assert received.outcome == "disconnected"


async def test_wait_for_request_gives_up(upstream: ScriptedUpstream) -> None:
    with pytest.raises(TimeoutError):
        await upstream.wait_for_request(1, timeout=0.01)


async def test_client_that_leaves_a_paced_stream_is_noticed(
    upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    upstream.replace(Script(scenes=(Scene(deltas=1000, pace_ms=5),)))
    async with session.post(f"{upstream.base_url}/responses", json=STREAM) as response:
        await response.content.readuntil(b"output_text.delta")
        response.close()
    assert (await upstream.wait_for_end(1, timeout=2)).outcome == "disconnected"


async def test_client_that_does_not_read_holds_back_the_stream_and_is_noticed_when_it_leaves(
    upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    upstream.replace(Script(scenes=(Scene(fault=Fault(kind="long_line")),)))
    async with session.post(f"{upstream.base_url}/responses", json=STREAM) as response:
        await response.content.readany()
        assert upstream.requests[0].outcome == "open"
        response.close()
    assert (await upstream.wait_for_end(1, timeout=2)).outcome == "disconnected"


async def test_deltas_keep_the_pace_and_the_first_delay(
    upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    upstream.replace(Script(scenes=(Scene(deltas=5, first_ms=60, pace_ms=20),)))
    loop = asyncio.get_running_loop()
    times = []
    async with session.post(f"{upstream.base_url}/responses", json=STREAM) as response:
        started = loop.time()
        while line := await response.content.readline():
            if b'"type":"response.output_text.delta"' in line:
                times.append(loop.time() - started)
    assert len(times) == 5
    assert times[0] >= 0.05
    assert times[-1] >= 0.13


async def test_held_stream_goes_on_when_released(upstream: ScriptedUpstream, session: aiohttp.ClientSession) -> None:
    upstream.replace(Script(scenes=(Scene(deltas=3, hold_after=1),)))
    async with session.post(f"{upstream.base_url}/responses", json=STREAM) as response:
        held = await response.content.readuntil(b'"delta":"w1","logprobs":[],"sequence_number":4}\n\n')
        assert b'" w2"' not in held
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await response.content.readline()
        async with session.post(control(upstream, "/_script/requests/1/release")) as released:
            assert released.status == 204
        assert b"response.completed" in await response.read()


async def test_script_and_requests_are_reachable_over_http(
    upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    async with session.put(
        control(upstream, "/_script"), data="[[scene]]\nname = 'hello'\ntext = 'from HTTP'"
    ) as response:
        assert response.status == 204
    async with session.post(f"{upstream.base_url}/responses", json=STREAM) as response:
        assert b"from HTTP" in await response.read()
    async with session.get(control(upstream, "/_script/requests")) as response:
        (seen,) = await response.json()
    assert seen["body"] == STREAM
    assert (seen["number"], seen["scene"], seen["outcome"]) == (1, "hello", "completed")
    async with session.get(control(upstream, "/_script/requests?after=1")) as response:
        assert await response.json() == []
    async with session.delete(control(upstream, "/_script/requests")) as response:
        assert response.status == 204
    assert upstream.requests == []


async def test_bad_script_over_http_is_refused_and_the_old_one_kept(
    upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    async with session.put(control(upstream, "/_script"), json={"scene": [{"txt": 1}]}) as response:
        assert response.status == 400
        assert "`txt` - at `$.scene[0]`" in (await response.json())["error"]["message"]
    async with session.post(f"{upstream.base_url}/responses", json=STREAM) as response:
        assert b"You" in await response.read()


async def test_body_that_is_not_json_is_refused_and_kept_as_text(
    upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    async with session.post(f"{upstream.base_url}/responses", data=b"\xff{") as response:
        assert response.status == 400
        assert "could not parse" in (await response.json())["error"]["message"]
    assert upstream.requests[0].body == "\ufffd{"


async def test_unknown_route_is_a_json_error(upstream: ScriptedUpstream, session: aiohttp.ClientSession) -> None:
    async with session.post(f"{upstream.base_url}/embeddings", json={}) as response:
        assert response.status == 404
        assert "/v1/embeddings" in (await response.json())["error"]["message"]


async def test_only_the_latest_requests_are_kept(session: aiohttp.ClientSession) -> None:
    async with ScriptedUpstream(history=2) as upstream:
        for _ in range(3):
            async with session.get(f"{upstream.base_url}/models") as response:
                await response.read()
        assert [received.number for received in upstream.requests] == [2, 3]
        with pytest.raises(LookupError):
            await upstream.wait_for_request(1)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
async def test_address_that_is_not_loopback_is_refused(host: str) -> None:
    upstream = ScriptedUpstream()
    with pytest.raises(ValueError, match="not a loopback address"):
        await upstream.start(host=host)


async def test_remote_address_is_served_when_asked_for() -> None:
    upstream = ScriptedUpstream()
    try:
        assert (await upstream.start(host="0.0.0.0", allow_remote=True)).startswith("http://0.0.0.0:")
    finally:
        await upstream.close()


async def test_close_cuts_hanging_answers_at_once_and_can_be_repeated(session: aiohttp.ClientSession) -> None:
    upstream = ScriptedUpstream(script=Script(scenes=(Scene(fault=Fault(kind="hang")),)))
    await upstream.start()
    async with session.post(f"{upstream.base_url}/responses", json=STREAM) as response:
        async with asyncio.timeout(0.9):
            await upstream.close()
        assert upstream.requests[0].outcome == "broken"
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    await upstream.close()


async def test_taken_port_is_an_os_error(upstream: ScriptedUpstream) -> None:
    port = int(upstream.base_url.removesuffix("/v1").rpartition(":")[2])
    with pytest.raises(OSError, match="in use"):
        await ScriptedUpstream().start(port=port)


async def test_equal_answers_are_equal_byte_by_byte(session: aiohttp.ClientSession) -> None:
    seen = []
    for _ in range(2):
        async with (
            ScriptedUpstream() as upstream,
            session.post(f"{upstream.base_url}/responses", json=STREAM) as response,
        ):
            seen.append(await response.read())
    assert seen[0] == seen[1]


async def test_client_that_leaves_at_the_last_event_has_not_left_early(
    upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    upstream.replace(Script(scenes=(Scene(deltas=500, times=10), Scene(deltas=2, pace_ms=1))))
    for number in range(1, 21):
        async with session.post(f"{upstream.base_url}/responses", json=STREAM) as response:
            await response.content.readuntil(b"event: response.completed")
            response.close()
        assert (await upstream.wait_for_end(number)).outcome == "completed"
