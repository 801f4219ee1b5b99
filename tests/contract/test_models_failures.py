"""The contract of the port `Model` when something is wrong, over both adapters. Rows of the list of faults."""

import asyncio
import socket
import threading
from contextlib import aclosing
from functools import partial
from typing import Any

import psutil
import pytest

from contract.model_stage import Open, ask, open_stage, text_of
from famulus_server.embedded.upstream.script import Fault, Scene
from famulus_server.errors import (
    ModelAuthenticationError,
    ModelError,
    ModelProtocolError,
    ModelRateLimited,
    ModelRejectedRequest,
    ModelTimeout,
    ModelUnavailable,
)
from famulus_server.models.settings import RetrySettings
from famulus_server.ports import (
    Retrying,
)


@pytest.fixture(name="stage_on", params=["responses", "chat"])
def choose_backend(request: pytest.FixtureRequest) -> Open:
    return partial(open_stage, request.param)


@pytest.mark.parametrize("kind", ["eof", "mid_json", "no_completed", "no_done", "reset", "disconnect"])
async def test_stream_that_merely_ends_is_a_failure(stage_on: Open, kind: Any) -> None:
    async with stage_on(Scene(deltas=5, fault=Fault(kind=kind))) as stage:
        with pytest.raises(ModelProtocolError):
            await stage.play()


async def test_of_hundreds_of_truncated_streams_none_counts_as_complete(stage_on: Open) -> None:
    kinds: list[Any] = ["eof", "mid_json", "error_event", "reset", "disconnect"]
    cuts = [Fault(kind=kind, after=after) for kind in kinds for after in range(8)]
    cuts += [Fault(kind="no_completed"), Fault(kind="no_done")]
    async with stage_on(*(Scene(times=6, deltas=8, fault=cut) for cut in cuts)) as stage:
        for _ in range(0, 6 * len(cuts), 28):
            turns = (stage.play() for _ in range(28))
            outcomes = await asyncio.gather(*turns, return_exceptions=True)
            assert all(isinstance(outcome, ModelProtocolError | ModelUnavailable) for outcome in outcomes), outcomes
        assert len(stage.upstream.requests) == 252


@pytest.mark.parametrize("kind", ["error_event", "response_failed"])
async def test_error_in_the_stream_is_a_failure(stage_on: Open, kind: Any) -> None:
    async with stage_on(Scene(deltas=5, fault=Fault(kind=kind, message="secret words"))) as stage:
        with pytest.raises(ModelUnavailable) as caught:
            await stage.play()
    assert "secret" not in caught.value.public + str(caught.value)


@pytest.mark.parametrize("kind", ["bad_json", "bad_utf8"])
async def test_broken_bytes_are_a_typed_failure(stage_on: Open, kind: Any) -> None:
    async with stage_on(Scene(deltas=5, fault=Fault(kind=kind))) as stage:
        with pytest.raises(ModelProtocolError):
            await stage.play()


async def test_line_over_the_cap_ends_the_call(stage_on: Open) -> None:
    async with stage_on(Scene(deltas=5, fault=Fault(kind="long_line"))) as stage:
        # Holding the error holds the frames that it passed: nothing but an explicit close lets go of the connection.
        with pytest.raises(ModelProtocolError) as held:
            await stage.play()
        assert (await stage.upstream.wait_for_end(1, timeout=1)).outcome == "disconnected"
        assert "more than 1048576 bytes" in str(held.value)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="hang_before_response"),
        *(Fault(kind=kind, after=after) for kind in ("hang", "pings") for after in (0, 2)),
    ],
)
async def test_silence_times_out_and_closes_the_call(stage_on: Open, fault: Fault) -> None:
    async with stage_on(Scene(deltas=5, fault=fault), first_event_timeout=0.3, idle_timeout=0.3) as stage:
        await stage.registry.warm_up()
        async with asyncio.timeout(1):
            with pytest.raises(ModelTimeout):
                await stage.play()
            assert (await stage.upstream.wait_for_end(1)).outcome == "disconnected"


async def test_slow_consumer_is_not_taken_for_a_silent_model(stage_on: Open) -> None:
    async with stage_on(Scene(deltas=2, hold_after=1), idle_timeout=0.2) as stage:
        seen = ""
        async for events in stage.model.stream(ask()):
            seen += text_of(events)
            await asyncio.sleep(0.3)
            stage.upstream.requests[0].released.set()
    assert seen == "w1 w2"


async def test_closing_the_iterator_closes_the_upstream_call(stage_on: Open) -> None:
    async with stage_on(Scene(deltas=5, hold_after=1)) as stage:
        async with aclosing(stage.model.stream(ask())) as stream:
            await anext(stream)
        assert (await stage.upstream.wait_for_end(1, timeout=1)).outcome == "disconnected"


@pytest.mark.parametrize("scene", [Scene(deltas=5, hold_after=1), Scene(fault=Fault(kind="hang_before_response"))])
async def test_cancelling_the_reader_closes_the_upstream_call(stage_on: Open, scene: Scene) -> None:
    async with stage_on(scene) as stage:
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
async def test_refusals_are_typed(stage_on: Open, status: int, error: type[ModelError], retried: bool) -> None:
    async with stage_on(Scene(fault=Fault(kind="status", status=status)), api_key="sk-secret") as stage:
        with pytest.raises(error) as caught:
            await stage.play()
    assert type(caught.value) is error
    assert caught.value.may_retry is retried
    assert "sk-secret" not in str(caught.value) + caught.value.public


async def test_provider_is_obeyed_about_retries(stage_on: Open) -> None:
    headers = {"retry-after-ms": "1500", "retry-after": "9", "x-should-retry": "false"}
    async with stage_on(Scene(fault=Fault(kind="status", status=429, headers=headers))) as stage:
        with pytest.raises(ModelRateLimited) as caught:
            await stage.play()
    assert caught.value.retry_after == 1.5
    assert not caught.value.may_retry


async def test_connection_refused_is_unavailable(stage_on: Open) -> None:
    async with stage_on() as stage:
        await stage.upstream.close()
        with pytest.raises(ModelUnavailable):
            await stage.play()


async def test_connection_reset_before_the_answer_is_unavailable(stage_on: Open) -> None:
    async with stage_on(Scene(fault=Fault(kind="reset_before_response"))) as stage:
        with pytest.raises(ModelUnavailable):
            await stage.play()


async def test_connection_is_used_again_for_the_next_turn(stage_on: Open) -> None:
    async with stage_on(Scene(deltas=3)) as stage:
        seen = set()
        for _ in range(3):
            await stage.play()
            connections = psutil.Process().net_connections("tcp")
            seen |= {
                at.laddr for at in connections if at.raddr and stage.upstream.base_url.endswith(f":{at.raddr[1]}/v1")
            }
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (ModelUnavailable, {"retry-after-ms": "40"}),
        (ModelRateLimited, {"retry-after-ms": "40"}),
        (ModelRateLimited, {"retry-after": "0.04"}),
    ],
)
async def test_retry_is_silent_announced_and_waits_as_told(
    stage_on: Open, error: type[ModelError], headers: dict[str, str]
) -> None:
    status = 429 if error is ModelRateLimited else 503
    failing = Scene(times=2, fault=Fault(kind="status", status=status, headers=headers))
    async with stage_on(failing, Scene(text="at last"), retry=RetrySettings(base_delay=0.001)) as stage:
        events = await stage.play()
        assert len(stage.upstream.requests) == 3
    announced = [event for event in events if isinstance(event, Retrying)]
    assert events[:2] == announced
    assert all(0.040 <= retry.delay <= 0.044 for retry in announced)
    assert all(retry.code == error.code for retry in announced)
    assert text_of(events) == "at last"


async def test_retries_end_after_three_tries(stage_on: Open) -> None:
    failing = Scene(fault=Fault(kind="status", status=500))
    async with stage_on(failing, retry=RetrySettings(base_delay=0.001)) as stage:
        with pytest.raises(ModelUnavailable):
            await stage.play()
        assert len(stage.upstream.requests) == 3


async def test_turn_is_not_tried_again_after_its_first_chunk(stage_on: Open) -> None:
    failing = Scene(deltas=5, fault=Fault(kind="reset"))
    async with stage_on(failing, retry=RetrySettings(base_delay=0.001)) as stage:
        with pytest.raises(ModelProtocolError):
            await stage.play()
        assert len(stage.upstream.requests) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="status", status=400),
        Fault(kind="status", status=503, headers={"x-should-retry": "false"}),
        Fault(kind="status", status=429, headers={"x-should-retry": "false", "retry-after-ms": "1"}),
        Fault(kind="status", status=429, headers={"retry-after": "3600"}),
        Fault(kind="status", status=429, code="insufficient_quota"),
    ],
)
async def test_what_will_not_help_is_not_tried_again(stage_on: Open, fault: Fault) -> None:
    async with stage_on(Scene(fault=fault), retry=RetrySettings(base_delay=0.001)) as stage:
        with pytest.raises(ModelError):
            await stage.play()
        assert len(stage.upstream.requests) == 1


async def test_retries_of_many_turns_stay_within_the_budget(stage_on: Open) -> None:
    retry = RetrySettings(base_delay=0.001, budget=0.1, reserve=2)
    async with stage_on(Scene(fault=Fault(kind="status", status=500)), retry=retry) as stage:
        for _ in range(10):
            with pytest.raises(ModelUnavailable):
                await stage.play()
        assert 10 < len(stage.upstream.requests) <= 13


async def test_without_a_reserve_the_share_still_adds_up_to_retries(stage_on: Open) -> None:
    retry = RetrySettings(base_delay=0.001, budget=0.5, reserve=0)
    async with stage_on(Scene(fault=Fault(kind="status", status=500)), retry=retry) as stage:
        for _ in range(4):
            with pytest.raises(ModelUnavailable):
                await stage.play()
        assert len(stage.upstream.requests) == 6


async def test_name_that_nobody_resolves_takes_no_longer_than_connecting_may(
    stage_on: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    resolve = socket.getaddrinfo

    def wait_or_resolve(host: Any, *rest: Any, **named: Any) -> Any:
        if host == "lost.test":
            answered.wait()
            raise socket.gaierror
        return resolve(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", wait_or_resolve)
    try:
        async with stage_on(base_url="http://lost.test/v1", connect_timeout=0.2) as stage:
            with pytest.raises(ModelTimeout, match="no connection in time"):
                await asyncio.wait_for(stage.play(), 20.0)
    finally:
        answered.set()
