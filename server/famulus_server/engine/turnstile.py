"""Some at a time, for the sake of what else there is to do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Turnstile:
    """Lets `most` do something at the same time. Nobody waits for his turn longer than `seconds`: what holds up those
    who have theirs, as a store that hangs, is not to hold up everybody."""

    def __init__(self, *, most: int, seconds: float) -> None:
        self._places = asyncio.Semaphore(most)
        self._seconds = seconds

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Around what is done."""
        taken = False
        with suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                taken = await self._places.acquire()
        try:
            yield
        finally:
            if taken:
                self._places.release()
