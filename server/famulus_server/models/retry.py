"""The one place that tries a model turn again: silently, and only before its first chunk (contract 18)."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from tenacity import AsyncRetrying, RetryCallState, stop_after_attempt

from famulus_server.errors import ModelError
from famulus_server.models.settings import RetrySettings
from famulus_server.ports import Model, ModelEvent, ModelRequest, Retrying


class RetryBudget:
    """Keeps an outage from multiplying the load: so many retries, and a share of the turns on top."""

    def __init__(self, *, share: float, reserve: int) -> None:
        self._share = share
        self._reserve = reserve
        self._left = float(reserve)

    def earn(self) -> None:
        """A turn began."""
        # Without a reserve the share must still add up to a retry.
        self._left = min(self._left + self._share, max(self._reserve, 1))

    def spend(self) -> bool:
        """Takes one retry, if there is one left."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class RetryingModel:
    """Implements the port `Model` around one that tries once.

    Delays double from `base_delay` to `max_delay`, are never shorter than the provider asked, and grow by up to
    `jitter` at random. A failure after the first chunk goes through: that is a new attempt of the run.
    """

    def __init__(
        self,
        *,
        model: Model,
        settings: RetrySettings,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`chance` gives numbers from 0 to 1."""
        self._model = model
        self._settings = settings
        self._sleep = sleep
        self._chance = chance
        self._budget = RetryBudget(share=settings.budget, reserve=settings.reserve)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[ModelEvent], None]:
        self._budget.earn()
        failure: ModelError | None = None
        events = self._model.stream(request)
        try:
            first = await anext(events)
        except ModelError as error:
            failure = error
        if failure is not None:
            # Only now, since most turns need none of it: to begin takes tenacity longer than all the rest.
            async for attempt in self._attempts():
                if attempt.retry_state.attempt_number == 1:
                    with attempt:
                        raise failure
                    continue
                delay = attempt.retry_state.upcoming_sleep
                yield [Retrying(failure.code, delay)]
                await self._sleep(delay)
                events = self._model.stream(request)
                with attempt:
                    try:
                        first = await anext(events)
                    except ModelError as error:
                        failure = error
                        raise
        async with aclosing(events):
            yield first
            async for more in events:
                yield more

    async def count(self, request: ModelRequest) -> int | None:
        return await self._model.count(request)

    def _attempts(self) -> AsyncRetrying:
        return AsyncRetrying(
            stop=stop_after_attempt(self._settings.attempts),
            retry=self._may_try_again,
            wait=self._delay,
            sleep=_announced_first,
            reraise=True,
        )

    def _may_try_again(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if not isinstance(error, ModelError) or not error.may_retry or state.attempt_number >= self._settings.attempts:
            return False
        return (error.retry_after or 0.0) <= self._settings.patience and self._budget.spend()

    def _delay(self, state: RetryCallState) -> float:
        settings = self._settings
        backoff = min(settings.base_delay * settings.factor ** (state.attempt_number - 1), settings.max_delay)
        error = state.outcome.exception() if state.outcome else None
        asked = (error.retry_after or 0.0) if isinstance(error, ModelError) else 0.0
        return float(max(backoff, asked) * (1 + settings.jitter * self._chance()))


async def _announced_first(_: float) -> None:
    """Does not sleep: `stream` does, once it has told the engine."""
