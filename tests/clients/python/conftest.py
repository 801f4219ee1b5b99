"""The same scenarios for both clients: `follow` has one parameter for each."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from famulus import FamulusClient, FamulusError, FamulusSyncClient, RetryPolicy, RunView
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_service_pb2 import CreateRunRequest

CREATE = CreateRunRequest(thread_id="thread_1", assistant_id="asst_1")
QUICK = RetryPolicy(initial_delay=0.001, max_delay=0.02, give_up_after=20.0, silence=5.0)


@dataclass
class Followed:
    """What a user of a client got to see."""

    events: list[RunEvent]
    texts: list[str]
    view: RunView
    last_sequence: int
    error: FamulusError | None = None


async def follow_async(
    target: str,
    *,
    create: CreateRunRequest = CREATE,
    run_id: str = "",
    retry: RetryPolicy = QUICK,
    stop_after: int = 0,
    **options: Any,
) -> Followed:
    async with FamulusClient(target, retry=retry) as client:
        stream = client.watch_run(run_id, **options) if run_id else client.stream_run(create, **options)
        events: list[RunEvent] = []
        texts: list[str] = []
        error = None
        try:
            async with stream:
                async for event in stream:
                    events.append(event)
                    texts.append(stream.view.text)
                    if len(events) == stop_after:
                        break
        except FamulusError as failure:
            error = failure
    return Followed(events, texts, stream.view, stream.last_sequence, error)


def follow_in_thread(
    target: str,
    *,
    create: CreateRunRequest = CREATE,
    run_id: str = "",
    retry: RetryPolicy = QUICK,
    stop_after: int = 0,
    **options: Any,
) -> Followed:
    with FamulusSyncClient(target, retry=retry) as client:
        stream = client.watch_run(run_id, **options) if run_id else client.stream_run(create, **options)
        events: list[RunEvent] = []
        texts: list[str] = []
        error = None
        try:
            with stream:
                for event in stream:
                    events.append(event)
                    texts.append(stream.view.text)
                    if len(events) == stop_after:
                        break
        except FamulusError as failure:
            error = failure
    return Followed(events, texts, stream.view, stream.last_sequence, error)


async def follow_sync(target: str, **options: Any) -> Followed:
    return await asyncio.to_thread(follow_in_thread, target, **options)


Follow = Callable[..., Coroutine[Any, Any, Followed]]


@pytest.fixture(params=[follow_async, follow_sync], ids=["async", "sync"])
def follow(request: pytest.FixtureRequest) -> Follow:
    """Follows a run with one of the clients, to its end or for some events, and tells what was seen."""
    driver: Follow = request.param
    return driver
