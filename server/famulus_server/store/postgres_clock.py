"""The database's clock, read without asking the database each time."""

import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

_EXCHANGES = 3


class DatabaseClock:
    """See `ports.Clock`. The database's time at one moment, and what this machine's monotonic clock counted since.

    A machine whose own clock is wrong does no harm so: replicas agree on what time it is.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._told: datetime | None = None
        self._told_at = 0.0

    def now(self) -> datetime:
        if self._told is None:
            raise RuntimeError("the database's clock was not read yet: open the store first")
        return self._told + timedelta(seconds=self._monotonic() - self._told_at)

    async def read(self, ask: Callable[[], Awaitable[datetime]]) -> None:
        """Asks a few times, and believes the quickest answer: its error is at most half the time it took."""
        quickest = float("inf")
        for _ in range(_EXCHANGES):
            asked_at = self._monotonic()
            told = await ask()
            took = self._monotonic() - asked_at
            if took < quickest:
                quickest = took
                best = told, asked_at + took / 2
        self._told, self._told_at = best
