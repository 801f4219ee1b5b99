"""SIGINT and SIGTERM: the first asks to stop, the second exits at once. SIGHUP: asks to read the settings again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A signal came while something was under way that it ends."""


class StopSignals:
    """Receives the signals while it is entered, inside an event loop."""

    def __init__(self) -> None:
        self._received = asyncio.Event()
        self._interruptible: asyncio.Task[Any] | None = None

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._receive, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in _SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)

    async def wait(self) -> None:
        """Returns when a signal has come."""
        await self._received.wait()

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """A signal that comes, or came, ends what the current task does in here with Stopped."""
        if self._received.is_set():
            raise Stopped
        task = self._interruptible = asyncio.current_task()
        try:
            yield
        except asyncio.CancelledError:
            if task is None or not self._received.is_set() or task.uncancel():
                raise
            raise Stopped from None
        finally:
            self._interruptible = None

    def _receive(self, number: int) -> None:
        if self._received.is_set():
            # Child processes notice by themselves that their owner is gone.
            os._exit(128 + number)
        self._received.set()
        if self._interruptible is not None:
            self._interruptible.cancel()


class Hangups:
    """Receives SIGHUP while it is entered, inside an event loop; otherwise it would end the process."""

    def __init__(self) -> None:
        self._came = False
        self._act: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)

    @contextlib.contextmanager
    def calling(self, act: Callable[[], None]) -> Iterator[None]:
        """Each signal calls `act` in here; so does one that came before."""
        self._act = act
        if self._came:
            act()
        try:
            yield
        finally:
            self._act = None

    def _receive(self) -> None:
        self._came = True
        if self._act is not None:
            self._act()
