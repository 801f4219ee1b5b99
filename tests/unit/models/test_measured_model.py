from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from famulus_server.errors import (
    ModelAuthenticationError,
    ModelError,
    ModelProtocolError,
    ModelRateLimited,
    ModelRejectedRequest,
    ModelSuspended,
    ModelTimeout,
    ModelUnavailable,
)
from famulus_server.models.measured import MeasuredModel
from famulus_server.ports import ModelEvent, ModelRequest, TextChunk, TurnEnded, TurnOutcome
from famulus_server.ports.metrics import UPSTREAM_CALLS, UPSTREAM_FIRST_EVENT_SECONDS, UPSTREAM_SECONDS
from famulus_server.telemetry.metrics import Measurements

REQUEST = ModelRequest(model="m", instructions="", items=[])


class StagedModel:
    """Says two words, and ends, or fails in between."""

    def __init__(self, error: ModelError | None = None) -> None:
        self._error = error

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[ModelEvent], None]:
        yield [TextChunk(0, 0, "one")]
        if self._error is not None:
            raise self._error
        yield [TextChunk(0, 0, "two")]
        yield [TurnEnded(TurnOutcome.COMPLETED, [], None)]

    async def count(self, request: ModelRequest) -> int | None:
        return 7


def measured(error: ModelError | None = None) -> tuple[MeasuredModel, Measurements]:
    metrics, times = Measurements(), iter(range(100))
    model = MeasuredModel(model=StagedModel(error), name="m", metrics=metrics, stopwatch=lambda: float(next(times)))
    return model, metrics


async def test_call_is_measured_to_its_first_word_and_to_its_end() -> None:
    model, metrics = measured()
    assert [event async for events in model.stream(REQUEST) for event in events][-1].__class__ is TurnEnded
    found = metrics.snapshot()
    assert found.values[UPSTREAM_CALLS] == {("m", "completed"): 1}
    assert found.spreads[UPSTREAM_FIRST_EVENT_SECONDS]["m",].total == 1
    assert found.spreads[UPSTREAM_SECONDS]["m",].total == 2
    assert await model.count(REQUEST) == 7


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (ModelSuspended, "suspended"),
        (ModelRateLimited, "rate_limited"),
        (ModelTimeout, "timeout"),
        (ModelProtocolError, "protocol"),
        (ModelUnavailable, "unavailable"),
        (ModelAuthenticationError, "rejected"),
        (ModelRejectedRequest, "rejected"),
    ],
)
async def test_failure_is_counted_by_its_kind(error: type[ModelError], result: str) -> None:
    model, metrics = measured(error("no"))
    with pytest.raises(error):
        _ = [events async for events in model.stream(REQUEST)]
    found = metrics.snapshot()
    assert found.values[UPSTREAM_CALLS] == {("m", result): 1}
    assert found.spreads[UPSTREAM_SECONDS] == {}


async def test_call_that_is_broken_off_is_abandoned_unless_it_had_ended() -> None:
    model, metrics = measured()
    async with aclosing(model.stream(REQUEST)) as stream:
        await anext(stream)
    assert metrics.snapshot().values[UPSTREAM_CALLS] == {("m", "abandoned"): 1}
    async with aclosing(model.stream(REQUEST)) as stream:
        async for events in stream:
            if isinstance(events[-1], TurnEnded):
                break
    assert metrics.snapshot().values[UPSTREAM_CALLS] == {("m", "abandoned"): 1, ("m", "completed"): 1}
