"""How long those who wait for Redis put up with its silence (contract 27)."""

import asyncio
import contextlib
from collections.abc import Iterator

from famulus_server.coordination.errors import RedisUnavailable
from famulus_server.coordination.reachability import Reachability

# What a caller waits at most.
_SECONDS = 0.05
# A timer that goes off later than this tells of our own loop or machine, not of Redis: its answer may be there.
_LATE = 0.005
# A Redis that does not answer is asked this often, and is then left alone.
_FAILURES = 5
_LEFT_ALONE_SECONDS = 5.0


class Patience:
    """Counts failures in a row: of calls that nobody can wait for longer.

    All that this process's callers wait for shares one, so that a Redis that hangs costs them no more by being asked
    for several things.
    """

    def __init__(self) -> None:
        self._state = Reachability(name="Redis")
        self._failures = 0
        self._failed_at = 0.0
        self._waiting = 0
        self._left_alone_until = 0.0

    @property
    def is_answered(self) -> bool:
        """Whether Redis answers, as far as anybody has waited for it lately."""
        return self._state.reachable

    @property
    def seconds(self) -> float:
        """How long a caller waits at most."""
        return _SECONDS

    @property
    def is_over(self) -> bool:
        """Whether Redis is left alone now."""
        return asyncio.get_running_loop().time() < self._left_alone_until

    @property
    def is_spent(self) -> bool:
        """Whether nobody else is to wait now: Redis is left alone, or may be hanging, and one waits for it already.
        Look right before asking it: while a call waited for its turn, others may have found that."""
        return self.is_over or (self._failures > 0 and self._waiting > 0)

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        """Around a call that somebody waits for. RedisUnavailable is a failure, unless the call began before the last
        one, and says nothing new; its end is an answer."""
        asked = asyncio.get_running_loop().time()
        self._waiting += 1
        try:
            yield
        except RedisUnavailable as error:
            if asked >= self._failed_at:
                self._count_failure(error)
            raise
        finally:
            self._waiting -= 1
        self._failures = 0
        self._state.found()

    def is_late(self, asked: float) -> bool:
        """Whether the time of what was asked then, by the loop's clock, was over well before anybody noticed."""
        return asyncio.get_running_loop().time() - asked > _SECONDS + _LATE

    async def regain(self) -> None:
        """Returns once Redis is not left alone any more."""
        while self.is_over:  # noqa: ASYNC110 - it sleeps as long as it has to
            await asyncio.sleep(self._left_alone_until - asyncio.get_running_loop().time())

    def _count_failure(self, error: RedisUnavailable) -> None:
        self._failed_at = asyncio.get_running_loop().time()
        self._failures += 1
        if self._failures >= _FAILURES and not self.is_over:
            self._failures = 0
            self._left_alone_until = self._failed_at + _LEFT_ALONE_SECONDS
            self._state.lost(error)
