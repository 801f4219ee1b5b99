"""What a provider says of its limits, and of the size of a turn, over real sockets."""

import asyncio
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from contract.model_stage import TOOLS, Open, ask, open_stage, text_of
from famulus.v1.assistant_pb2 import ReasoningEffort
from famulus.v1.tool_pb2 import ToolChoice, ToolChoiceMode
from famulus_server.embedded.upstream.script import Fault, Match, Scene, Usage
from famulus_server.errors import Allowance, ModelRateLimited, ModelUnavailable
from famulus_server.models.settings import BreakerSettings, RetrySettings
from famulus_server.ports import Retrying

HEADERS = {
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-reset-requests": "20ms",
    "x-ratelimit-remaining-tokens": "1499",
    "x-ratelimit-reset-tokens": "6m0s",
}
ALLOWANCE = Allowance(requests_left=59, requests_reset=0.02, tokens_left=1_499, tokens_reset=360.0)
COUNTING = Match(api="input_tokens")
NO_COUNTS = (b'"7"', b"null", b"-1", b"1.5", b"9007199254740992")


@pytest.fixture(name="stage_on", params=["responses", "chat"])
def choose_backend(request: pytest.FixtureRequest) -> Open:
    return partial(open_stage, request.param)


async def test_allowance_stands_once_in_front_of_what_the_model_says_first(stage_on: Open) -> None:
    async with stage_on(Scene(deltas=3, pace_ms=5, headers=HEADERS)) as stage:
        reads = await stage.reads()
    assert len(reads) > 1
    assert reads[0][0] == ALLOWANCE
    assert text_of(reads[0])
    assert [event for events in reads for event in events].count(ALLOWANCE) == 1


@pytest.mark.parametrize("headers", [{}, dict.fromkeys(HEADERS, "nonsense")])
async def test_provider_that_tells_nothing_makes_no_allowance(stage_on: Open, headers: dict[str, str]) -> None:
    async with stage_on(Scene(deltas=3, headers=headers)) as stage:
        assert not [event for event in await stage.play() if isinstance(event, Allowance)]


async def test_allowance_of_an_answer_that_says_nothing_yet_does_not_end_the_retries(stage_on: Open) -> None:
    silent = Scene(times=1, deltas=3, headers=HEADERS, fault=Fault(kind="eof", after=0))
    async with stage_on(silent, Scene(text="fine"), retry=RetrySettings(base_delay=0.001)) as stage:
        events = await stage.play()
    assert isinstance(events[0], Retrying)
    assert text_of(events) == "fine"


@pytest.mark.parametrize(("status", "error"), [(429, ModelRateLimited), (503, ModelUnavailable)])
async def test_refusal_brings_the_allowance_with_it(stage_on: Open, status: int, error: Any) -> None:
    async with stage_on(Scene(fault=Fault(kind="status", status=status, headers=HEADERS))) as stage:
        with pytest.raises(error) as caught:
            await stage.play()
    assert caught.value.allowance == ALLOWANCE


async def test_provider_counts_the_tokens_that_the_turn_will_have() -> None:
    async with open_stage("responses", Scene(text="hi"), count_tokens=True, api_key="sk-1") as stage:
        turn: dict[str, Any] = {"instructions": "Be brief and kind.", "tools": TOOLS}
        assert await stage.model.count(ask(**turn)) == 5
        end = await stage.end(**turn)
        assert end.usage is not None
        assert end.usage.prompt_tokens == 5
        assert stage.upstream.requests[0].path == "/v1/responses/input_tokens"
        assert stage.upstream.requests[0].headers["authorization"] == "Bearer sk-1"


async def test_count_says_the_same_as_the_turn_less_what_has_no_part_in_the_input() -> None:
    everything = ask(
        instructions="Be brief.",
        tools=TOOLS,
        tool_choice=ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED),
        parallel_tool_calls=True,
        temperature=0.5,
        top_p=0.5,
        max_output_tokens=10,
        reasoning_effort=ReasoningEffort.REASONING_EFFORT_LOW,
        want_reasoning=True,
        cache_key="key",
    )
    async with open_stage("responses", Scene(text="hi"), count_tokens=True, reasoning=True) as stage:
        assert await stage.model.count(everything) == 3
        async for _ in stage.model.stream(everything):
            pass
        count, turn = (request.body for request in stage.upstream.requests)
    left_out = {"stream", "store", "temperature", "top_p", "max_output_tokens", "prompt_cache_key", "include"}
    assert count == {key: value for key, value in turn.items() if key not in left_out}
    assert turn.keys() - count.keys() == left_out


async def test_large_counts_are_believed() -> None:
    told = Scene(match=COUNTING, usage=Usage(input=2_000_000))
    async with open_stage("responses", told, count_tokens=True) as stage:
        assert await stage.model.count(ask()) == 2_000_000


@pytest.mark.parametrize(("backend", "count_tokens"), [("responses", False), ("chat", False), ("chat", True)])
async def test_nobody_is_asked_where_it_is_not_configured_or_cannot_be(backend: Any, count_tokens: bool) -> None:
    async with open_stage(backend, count_tokens=count_tokens) as stage:
        assert await stage.model.count(ask()) is None
        assert stage.upstream.requests == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="status", status=404),
        Fault(kind="status", status=429, headers={"retry-after": "0"}),
        Fault(kind="status", status=500),
        Fault(kind="reset_before_response"),
        Fault(kind="hang_before_response"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
async def test_endpoint_that_fails_counts_nothing_and_is_told_of_once(fault: Fault) -> None:
    scenes = Scene(match=COUNTING, fault=fault), Scene(text="hi")
    settings: dict[str, Any] = {"count_tokens": True, "connect_timeout": 0.3, "retry": RetrySettings()}
    async with open_stage("responses", *scenes, **settings) as stage:
        with capture_logs() as told:
            assert [await stage.model.count(ask()) for _ in range(2)] == [None, None]
        assert [entry["event"] for entry in told] == ["model does not count tokens"]
        # Not tried again, and no reason not to ask the model.
        assert len(stage.upstream.requests) == 2
        assert text_of(await stage.play()) == "hi"
        assert stage.registry.breakers()["m"].failures == 0


async def test_hanging_count_is_closed_and_stops_nobody() -> None:
    hanging = Scene(match=COUNTING, fault=Fault(kind="hang_before_response"))
    async with open_stage("responses", hanging, Scene(text="hi"), count_tokens=True) as stage:
        counting = asyncio.create_task(stage.model.count(ask()))
        received = await stage.upstream.wait_for_request(1)
        assert text_of(await stage.play()) == "hi"
        counting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await counting
        assert (await stage.upstream.wait_for_end(received.number, timeout=1)).outcome == "disconnected"


@pytest.mark.parametrize("body", [b"7", b"{}", b"[", b"\xff", *(b'{"input_tokens":%s}' % n for n in NO_COUNTS)])
async def test_answer_that_is_no_count_counts_nothing(body: bytes) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/responses/input_tokens", answer)
    async with (
        TestServer(app) as server,
        open_stage("responses", count_tokens=True, base_url=str(server.make_url("/v1"))) as stage,
    ):
        assert await stage.model.count(ask()) is None


async def test_suspended_model_is_not_asked_to_count() -> None:
    down = Scene(fault=Fault(kind="status", status=500))
    async with open_stage("responses", down, count_tokens=True, breaker=BreakerSettings(min_calls=1)) as stage:
        with pytest.raises(ModelUnavailable):
            await stage.play()
        assert await stage.model.count(ask()) is None
        assert len(stage.upstream.requests) == 1
