"""The view on a terminal, drawn again and again until somebody wants no more of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from famulus_server.cli.monitor.replicas import Replicas, View
from famulus_server.cli.monitor.tables import render
from famulus_server.cli.signals import StopSignals

_HELP = "q quits"
_MOST_KEYS = 64


async def show(replicas: Replicas, *, interval: float) -> None:
    """Returns when q is pressed, or a signal asks to stop."""
    screen = _Screen(interval)
    with StopSignals() as signals, _keys(screen.press), _resizing(screen.draw):
        tasks = [asyncio.create_task(work) for work in (screen.follow(replicas), screen.left(), signals.wait())]
        try:
            with screen.live:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()


class _Screen:
    """What is shown, and whether somebody has seen enough."""

    def __init__(self, interval: float) -> None:
        self.live = Live(console=Console(), screen=True, auto_refresh=False)
        self._interval = interval
        self._view: View | None = None
        self._left = asyncio.Event()

    async def follow(self, replicas: Replicas) -> None:
        """Looks for ever."""
        while True:
            self._view = await replicas.look()
            self.draw()
            await asyncio.sleep(self._interval)

    async def left(self) -> None:
        """Returns once q was pressed."""
        await self._left.wait()

    def press(self, keys: str) -> None:
        """Somebody pressed these."""
        if "q" in keys.lower():
            self._left.set()

    def draw(self) -> None:
        """Shows what was seen last, in the size that the terminal has now."""
        if self._view is not None:
            title = Text(f"famulus, every {self._interval:g} s; {_HELP}", "bold")
            self.live.update(Group(title, Text(), render(self._view)), refresh=True)


@contextlib.contextmanager
def _keys(press: Callable[[str], None]) -> Iterator[None]:
    """Keys come at once in here, and are not shown; Ctrl-C still is a signal."""
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    tty.setcbreak(stdin)
    loop = asyncio.get_running_loop()
    loop.add_reader(stdin, lambda: press(os.read(stdin, _MOST_KEYS).decode(errors="replace")))
    try:
        yield
    finally:
        loop.remove_reader(stdin)
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _resizing(draw: Callable[[], None]) -> Iterator[None]:
    """Draws again when the terminal has another size."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGWINCH, draw)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
