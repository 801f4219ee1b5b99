"""Whether Redis can be reached for something: told in the log only when that changes, and asked again ever later."""

import asyncio

import structlog

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0

_log = structlog.get_logger(__name__)


class Reachability:
    """What one of this process's connections has found. `name` is for the log."""

    def __init__(self, *, name: str) -> None:
        self._name = name
        self._reachable = True
        self._pause_seconds = _FIRST_PAUSE_SECONDS

    @property
    def reachable(self) -> bool:
        """As far as this connection knows."""
        return self._reachable

    def lost(self, error: Exception) -> None:
        """It did not answer, or refused."""
        if self._reachable:
            self._reachable = False
            _log.warning(f"{self._name} unreachable", error=str(error))

    def found(self) -> None:
        """It answered."""
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        if not self._reachable:
            self._reachable = True
            _log.info(f"{self._name} reachable again")

    async def pause(self) -> None:
        """To be waited for before asking again; longer from failure to failure."""
        seconds = self._pause_seconds
        self._pause_seconds = min(seconds * 2, _LONGEST_PAUSE_SECONDS)
        await asyncio.sleep(seconds)
