"""How long those who wait for Redis put up with its silence (contract 27)."""

import asyncio

from famulus_server.coordination.errors import RedisUnavailable
from famulus_server.coordination.reachability import Reachability

# A Redis that does not answer is asked this often, and is then left alone.
_FAILURES = 5
_LEFT_ALONE_SECONDS = 5.0


class Patience:
    """Counts failures in a row: of calls that nobody can wait for longer. `name` is for the log."""

    def __init__(self, *, name: str) -> None:
        self._state = Reachability(name=name)
        self._failures = 0
        self._left_alone_until = 0.0

    @property
    def is_over(self) -> bool:
        """Whether Redis is left alone now. Look right before asking it: while a call waited for its turn, others may
        have found that Redis does not answer."""
        return asyncio.get_running_loop().time() < self._left_alone_until

    def failed(self, error: RedisUnavailable) -> None:
        """It did not answer in time, or refused."""
        self._failures += 1
        # Calls that were under way when the last one failed say nothing new.
        if self._failures >= _FAILURES and not self.is_over:
            self._failures = 0
            self._left_alone_until = asyncio.get_running_loop().time() + _LEFT_ALONE_SECONDS
            self._state.lost(error)

    def answered(self) -> None:
        """It did."""
        self._failures = 0
        self._state.found()
