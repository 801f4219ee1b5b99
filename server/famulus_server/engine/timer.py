"""A time-out for many waits, most of them short."""

import asyncio
from contextvars import Context
from types import TracebackType


class Timer:
    """Breaks off what waits inside `with` by a TimeoutError, as asyncio.timeout does, once the time is up that was
    allowed last. Only one may wait at a time.

    It rings once in the time that is allowed, not once in each wait: the event loop's timer stays as it is while waits
    come and go, and looks, when it rings, whether more time has been allowed since.
    """

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + seconds
        self._handle: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._rang = False

    @property
    def left(self) -> float:
        """How many seconds are left of what was allowed."""
        return max(0.0, self._deadline - self._loop.time())

    def allow(self, seconds: float) -> None:
        """Waits may take so long from now on, those before them forgotten; also the one that is under way."""
        self._deadline = self._loop.time() + seconds
        if self._handle is not None and self._handle.when() > self._deadline:
            self.close()
            if self._waiter is not None:
                self._set()

    def close(self) -> None:
        """Lets go of the event loop's timer, until somebody waits again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def __enter__(self) -> None:
        self._waiter = waiter = asyncio.current_task()
        self._cancelling = waiter.cancelling() if waiter is not None else 0
        if self._handle is None:
            self._set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        waiter, self._waiter = self._waiter, None
        if self._rang:
            self._rang = False
            # As asyncio.timeout: somebody else may have cancelled the task, too, and then it is to end.
            if waiter is not None and waiter.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _set(self) -> None:
        # The loop keeps timers that were cancelled, some for long, and would keep with them all that the task knows.
        self._handle = self._loop.call_at(self._deadline, self._ring, context=Context())

    def _ring(self) -> None:
        if self._loop.time() < self._deadline:
            self._set()
            return
        self._handle = None
        if self._waiter is not None:
            self._rang = True
            self._waiter.cancel()
