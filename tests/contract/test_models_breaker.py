"""A model that fails all the time, over real sockets: it is spared, and nobody's load is multiplied."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import pytest

from contract.model_stage import Open, Stage, ask, open_stage, text_of
from famulus_server.embedded.upstream import ScriptedUpstream
from famulus_server.embedded.upstream.script import Fault, Scene, Script
from famulus_server.errors import ModelError, ModelProtocolError, ModelSuspended, ModelUnavailable
from famulus_server.models.breaker import Phase
from famulus_server.models.registry import ModelRegistry
from famulus_server.models.settings import BreakerSettings, ModelSettings, RetrySettings
from famulus_server.telemetry.metrics import Measurements

DOWN = Scene(fault=Fault(kind="status", status=500))
TOUCHY = BreakerSettings(min_calls=3, open_seconds=5.0)
# Three tries and the budget are the defaults; the pauses are not what is tested here.
QUICK = RetrySettings(base_delay=0.001, max_delay=0.002)
TURNS = 200


@dataclass
class Clock:
    """Stands still."""

    time: float = 1_000.0

    def now(self) -> float:
        return self.time


@pytest.fixture(name="stage_on", params=["responses", "chat"])
def choose_backend(request: pytest.FixtureRequest) -> Open:
    return partial(open_stage, request.param, breaker=TOUCHY)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def phase(stage: Stage) -> Phase:
    return stage.registry.breakers()["m"].phase


async def fail(stage: Stage, times: int) -> None:
    for _ in range(times):
        with pytest.raises(ModelError) as caught:
            await stage.play()
        assert not isinstance(caught.value, ModelSuspended)


async def break_down(stage: Stage, clock: Clock, *scenes: Scene) -> None:
    """Opens the breaker, lets it time out, and plays these scenes from now on."""
    await fail(stage, 3)
    assert phase(stage) is Phase.OPEN
    clock.time += 5.0
    stage.upstream.replace(Script(scenes=scenes))


async def test_model_that_fails_is_not_asked_until_a_probe_may_go(stage_on: Open, clock: Clock) -> None:
    async with stage_on(DOWN, now=clock.now) as stage:
        await fail(stage, 3)
        for _ in range(5):
            with pytest.raises(ModelSuspended) as caught:
                await stage.play()
        assert (caught.value.code, caught.value.retry_after) == (ModelUnavailable.code, 5.0)
        assert len(stage.upstream.requests) == 3
        clock.time += 5.0
        stage.upstream.replace(Script(scenes=(Scene(text="back"),)))
        assert text_of(await stage.play()) == "back"
        assert phase(stage) is Phase.CLOSED


async def test_of_twenty_turns_at_once_one_is_the_probe(stage_on: Open, clock: Clock) -> None:
    async with stage_on(DOWN, now=clock.now) as stage:
        await break_down(stage, clock, Scene(deltas=3, hold_after=1))
        turns = [asyncio.create_task(stage.play()) for _ in range(20)]
        probe = await stage.upstream.wait_for_request(4)
        refused = await asyncio.gather(*turns[1:], return_exceptions=True)
        assert [type(refusal) for refusal in refused] == [ModelSuspended] * 19
        probe.released.set()
        assert text_of(await turns[0]) == "w1 w2 w3"
        assert len(stage.upstream.requests) == 4
        stage.upstream.replace(Script(scenes=(Scene(text="back"),)))
        again = await asyncio.gather(*(stage.play() for _ in range(20)))
        assert [text_of(events) for events in again] == ["back"] * 20


async def test_probe_has_succeeded_at_its_end_and_not_at_its_first_chunk(stage_on: Open, clock: Clock) -> None:
    async with stage_on(DOWN, now=clock.now) as stage:
        await break_down(stage, clock, Scene(deltas=3, hold_after=1, fault=Fault(kind="reset", after=2)))
        stream = stage.model.stream(ask())
        assert text_of(await anext(stream)) == "w1"
        with pytest.raises(ModelSuspended):
            await stage.play()
        (await stage.upstream.wait_for_request(4)).released.set()
        with pytest.raises(ModelProtocolError):
            async for _ in stream:
                pass
        with pytest.raises(ModelSuspended) as caught:
            await stage.play()
        assert caught.value.retry_after == 10.0


@pytest.mark.parametrize("after", ["cancel", "close"])
async def test_probe_that_its_caller_gives_up_makes_room_for_another(stage_on: Open, clock: Clock, after: str) -> None:
    async with stage_on(DOWN, now=clock.now) as stage:
        await break_down(stage, clock, Scene(times=1, deltas=3, hold_after=1), Scene(text="back"))
        if after == "cancel":
            turn = asyncio.create_task(stage.play())
            await stage.upstream.wait_for_request(4)
            turn.cancel()
            with pytest.raises(asyncio.CancelledError):
                await turn
        else:
            async with aclosing(stage.model.stream(ask())) as stream:
                await anext(stream)
        assert phase(stage) is Phase.HALF_OPEN
        assert text_of(await stage.play()) == "back"
        assert phase(stage) is Phase.CLOSED


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429])
async def test_refusals_neither_open_a_breaker_nor_close_it(stage_on: Open, clock: Clock, status: int) -> None:
    refusing = Scene(fault=Fault(kind="status", status=status))
    async with stage_on(refusing, now=clock.now) as stage:
        await fail(stage, 10)
        state = stage.registry.breakers()["m"]
        assert (state.phase, state.calls) == (Phase.CLOSED, 0)
        stage.upstream.replace(Script(scenes=(DOWN,)))
        await break_down(stage, clock, refusing)
        await fail(stage, 2)
        assert phase(stage) is Phase.HALF_OPEN


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="reset_before_response"),
        Fault(kind="hang_before_response"),
        Fault(kind="hang"),
        Fault(kind="pings", interval_ms=20),
        Fault(kind="no_completed"),
        Fault(kind="bad_json"),
        Fault(kind="error_event"),
    ],
    ids=lambda fault: str(fault.kind),
)
async def test_whatever_shows_that_the_model_is_ill_opens_it(stage_on: Open, fault: Fault) -> None:
    timers = {"first_event_timeout": 0.2, "idle_timeout": 0.2}
    async with stage_on(Scene(deltas=3, fault=fault), **timers) as stage:
        await stage.registry.warm_up()
        failures = await asyncio.gather(*(stage.play() for _ in range(3)), return_exceptions=True)
        assert all(isinstance(failure, ModelError) for failure in failures)
        assert phase(stage) is Phase.OPEN


async def test_each_try_counts_and_an_open_breaker_ends_them(stage_on: Open) -> None:
    breaker = BreakerSettings(min_calls=2)
    async with stage_on(DOWN, retry=QUICK, breaker=breaker) as stage:
        with pytest.raises(ModelSuspended):
            await stage.play()
        assert len(stage.upstream.requests) == 2


async def burst(
    upstream: ScriptedUpstream, *, replicas: int, at_once: int, breaker: BreakerSettings
) -> list[BaseException]:
    """TURNS turns over several replicas, each with so many at once; how they failed."""
    settings = ModelSettings(name="m", backend="responses", base_url=upstream.base_url, retry=QUICK, breaker=breaker)
    registries = [ModelRegistry(settings=[settings], metrics=Measurements()) for _ in range(replicas)]
    numbers = iter(range(TURNS))
    failures: list[BaseException] = []

    async def caller(registry: ModelRegistry) -> None:
        for _ in numbers:
            try:
                async for _events in registry.open("m").stream(ask()):
                    pass
            except ModelError as error:
                failures.append(error)

    try:
        await asyncio.gather(*(caller(registry) for registry in registries for _ in range(at_once)))
    finally:
        for registry in registries:
            await registry.close()
    return failures


def kinds(failures: Sequence[BaseException]) -> set[type[BaseException]]:
    return {type(failure) for failure in failures}


@pytest.mark.parametrize("at_once", [1, 50])
async def test_burst_of_500_is_not_multiplied_by_retries_even_where_no_breaker_opens(at_once: int) -> None:
    never = BreakerSettings(min_calls=1_000_000)
    async with ScriptedUpstream(script=Script(scenes=(DOWN,))) as upstream:
        failures = await burst(upstream, replicas=1, at_once=at_once, breaker=never)
        assert len(failures) == TURNS
        assert kinds(failures) == {ModelUnavailable}
        # There are retries, and they are few.
        assert TURNS < len(upstream.requests) <= 1.2 * TURNS


@pytest.mark.parametrize("at_once", [1, 20])
async def test_burst_of_500_on_three_replicas_reaches_the_upstream_in_part_only(at_once: int) -> None:
    async with ScriptedUpstream(script=Script(scenes=(DOWN,))) as upstream:
        failures = await burst(upstream, replicas=3, at_once=at_once, breaker=BreakerSettings())
        assert len(failures) == TURNS
        assert ModelSuspended in kinds(failures)
        # On each replica: as many as open the breaker, and those that were under way by then.
        assert len(upstream.requests) <= 3 * (10 + at_once - 1)
