"""When a turn is tried again, and how soon. Nobody waits: the pauses are written down."""

from collections.abc import AsyncGenerator

import pytest

from famulus_server.errors import ModelError, ModelRateLimited, ModelSuspended, ModelTimeout, ModelUnavailable
from famulus_server.models.retry import RetryingModel
from famulus_server.models.settings import RetrySettings
from famulus_server.ports import ModelEvent, ModelRequest, Retrying, TurnEnded, TurnOutcome

REQUEST = ModelRequest(model="m", instructions="", items=())
END = TurnEnded(TurnOutcome.COMPLETED, [], None)


class Failing:
    """A model that fails as told, turn by turn, and then answers."""

    def __init__(self, *errors: ModelError) -> None:
        self._errors = list(errors)
        self.calls = 0

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[ModelEvent], None]:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        yield [END]

    async def count(self, request: ModelRequest) -> int | None:
        return None


async def play(model: Failing, *, chance: float = 0.0, **settings: float) -> tuple[list[ModelEvent], list[float]]:
    """The events, and the pauses that were made."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    retrying = RetryingModel(
        model=model,
        settings=RetrySettings(**settings),  # type: ignore[arg-type]
        sleep=sleep,
        chance=lambda: chance,
    )
    return [event async for events in retrying.stream(REQUEST) for event in events], slept


async def test_by_default_there_are_three_tries_after_one_and_two_seconds() -> None:
    model = Failing(*(ModelUnavailable("500") for _ in range(2)))
    events, slept = await play(model)
    assert slept == [1.0, 2.0]
    assert events == [Retrying(ModelUnavailable.code, 1.0), Retrying(ModelUnavailable.code, 2.0), END]
    with pytest.raises(ModelUnavailable):
        await play(model := Failing(*(ModelUnavailable("500") for _ in range(3))))
    assert model.calls == 3


async def test_pauses_double_up_to_ten_seconds_and_grow_by_up_to_a_tenth() -> None:
    errors = [ModelTimeout("silent") for _ in range(6)]
    assert (await play(Failing(*errors), attempts=7))[1] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    longest = (await play(Failing(*errors), attempts=7, chance=1.0))[1]
    assert longest == pytest.approx([1.1, 2.2, 4.4, 8.8, 11.0, 11.0])


@pytest.mark.parametrize(("asked", "waited"), [(0.05, 1.0), (2.5, 2.5), (30.0, 30.0), (60.0, 60.0)])
async def test_pause_is_as_long_as_the_provider_asks_but_no_shorter_than_ours(asked: float, waited: float) -> None:
    events, slept = await play(Failing(ModelRateLimited("429", retry_after=asked)))
    assert slept == [waited]
    assert events[0] == Retrying(ModelRateLimited.code, waited)


@pytest.mark.parametrize(
    "error",
    [
        ModelRateLimited("429", retry_after=60.1),
        ModelRateLimited("429", retry=False),
        ModelUnavailable("503", retry=False),
        ModelSuspended("the breaker is open", retry_after=0.1),
    ],
)
async def test_what_will_not_help_is_not_even_waited_for(error: ModelError) -> None:
    with pytest.raises(type(error)) as caught:
        await play(model := Failing(error))
    assert caught.value is error
    assert model.calls == 1
