"""Spares a model that fails all the time: it is not asked for a while, then by one call alone."""

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum

import structlog

from famulus_server.errors import ModelProtocolError, ModelSuspended, ModelTimeout, ModelUnavailable
from famulus_server.models.settings import BreakerSettings
from famulus_server.ports import Model, ModelEvent, ModelRequest, TurnEnded

# What shows that the model is ill. A refusal shows the opposite: somebody was there to refuse.
_FAILURES = (ModelUnavailable, ModelTimeout, ModelProtocolError)
_BUCKETS = 10

_log = structlog.get_logger(__name__)


class Phase(Enum):
    """What a breaker does with calls."""

    CLOSED = "closed"  # lets them through
    OPEN = "open"  # refuses them
    HALF_OPEN = "half_open"  # lets one of them through, as a probe


@dataclass(frozen=True, slots=True)
class BreakerState:
    """What a breaker does, and why: the calls that ended within the window, and how many of them failed; `openings`
    counts since it was made."""

    phase: Phase
    calls: int
    failures: int
    openings: int


class Breaker:
    """Opens when too great a share of the calls fails, and closes when a probe has succeeded.

    Calls are known by the number that `admit` gives. Of a call that began before the breaker last opened or closed
    nothing is learnt: it tells how the model was, not how it is.
    """

    def __init__(self, *, model: str, settings: BreakerSettings, now: Callable[[], float] = time.monotonic) -> None:
        """`model` is its name, for the log; `now` is in seconds, from any start."""
        self._model = model
        self._settings = settings
        self._now = now
        self._window = _Window(seconds=settings.window_seconds, now=now)
        self._opened = 0  # times in a row
        self._openings = 0
        self._open_until = 0.0
        self._probing = False
        self._era = 0

    @property
    def phase(self) -> Phase:
        """As it is now."""
        if not self._opened:
            return Phase.CLOSED
        return Phase.OPEN if self._now() < self._open_until else Phase.HALF_OPEN

    @property
    def state(self) -> BreakerState:
        """As it is now."""
        return BreakerState(self.phase, *self._window.totals(), self._openings)

    @property
    def rest(self) -> float:
        """Seconds until a call may begin; 0 where it may at once."""
        if not self._opened:
            return 0.0
        wait = self._open_until - self._now()
        if wait > 0:
            return wait
        # Nobody knows how long a probe takes: then it is when to ask again.
        return self._settings.open_seconds if self._probing else 0.0

    def admit(self) -> int:
        """The number of a call that may begin. Raises ModelSuspended."""
        if rest := self.rest:
            raise ModelSuspended("the breaker is open", retry_after=rest)
        if self._opened:
            self._probing = True
        return self._era

    def succeed(self, call: int) -> None:
        """The call reached its terminal event."""
        if call != self._era:
            return
        if self._opened:
            self._turn(opened=0)
            self._window.clear()
            _log.info("model asked again", model=self._model)
        else:
            self._window.add(failed=False)

    def fail(self, call: int) -> None:
        """The call failed as a model fails that is ill."""
        if call != self._era:
            return
        self._window.add(failed=True)
        calls, failures = self._window.totals()
        settings = self._settings
        # Looked at here alone, so that nobody is cut off by a success.
        if self._opened or (calls >= settings.min_calls and failures / calls >= settings.failure_share):
            longest = max(settings.open_seconds, settings.max_open_seconds)
            seconds = min(settings.open_seconds * 2.0 ** min(self._opened, 64), longest)
            self._open_until = self._now() + seconds
            self._turn(opened=self._opened + 1)
            self._openings += 1
            _log.warning("model suspended", model=self._model, seconds=seconds, calls=calls, failures=failures)

    def leave(self, call: int) -> None:
        """The call is over; nothing is learnt of one that neither failed nor succeeded, and another may probe."""
        if call == self._era:
            self._probing = False

    def _turn(self, *, opened: int) -> None:
        self._opened = opened
        self._era += 1
        self._probing = False


class BreakerModel:
    """Implements the port `Model` around one that tries once."""

    def __init__(self, *, model: Model, breaker: Breaker) -> None:
        self._model = model
        self._breaker = breaker

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[ModelEvent], None]:
        call = self._breaker.admit()
        try:
            async with aclosing(self._model.stream(request)) as stream:
                async for events in stream:
                    if isinstance(events[-1], TurnEnded):
                        self._breaker.succeed(call)
                    yield events
        except _FAILURES:
            self._breaker.fail(call)
            raise
        finally:
            self._breaker.leave(call)

    async def count(self, request: ModelRequest) -> int | None:
        # Not through the breaker: whoever can count need not be able to answer. But nobody waits for one that is ill.
        return await self._model.count(request) if self._breaker.phase is Phase.CLOSED else None


@dataclass(slots=True)
class _Bucket:
    number: int
    calls: int = 0
    failures: int = 0


class _Window:
    """The calls that ended within the last seconds. Forgets them by tenths of that time."""

    def __init__(self, *, seconds: float, now: Callable[[], float]) -> None:
        self._width = seconds / _BUCKETS
        self._now = now
        self._buckets: deque[_Bucket] = deque()

    def add(self, *, failed: bool) -> None:
        number = self._forget()
        if not self._buckets or self._buckets[-1].number != number:
            self._buckets.append(_Bucket(number))
        self._buckets[-1].calls += 1
        self._buckets[-1].failures += failed

    def totals(self) -> tuple[int, int]:
        """Calls, and failures among them."""
        self._forget()
        return sum(bucket.calls for bucket in self._buckets), sum(bucket.failures for bucket in self._buckets)

    def clear(self) -> None:
        self._buckets.clear()

    def _forget(self) -> int:
        """Drops what is too old, and returns the number of the bucket that it is time for."""
        number = int(self._now() / self._width)
        while self._buckets and self._buckets[0].number <= number - _BUCKETS:
            self._buckets.popleft()
        return number
