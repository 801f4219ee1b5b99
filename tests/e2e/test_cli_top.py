"""`famulus-server top` on a terminal, which is a real pseudo-terminal."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from command import PROGRAM, SECONDS, environment
from metered import Metered


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(rows=30, columns=120)
        self.before = self.mode()
        self.process = subprocess.Popen(
            [PROGRAM, *arguments],
            env=environment({"TERM": "xterm", "COLUMNS": "", "LINES": ""}),
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
        )
        self._seen = ""

    def until(self, text: str) -> str:
        """What has been written since the last call, as soon as this text is in it."""
        deadline = time.monotonic() + SECONDS
        while text not in self._seen:
            assert select.select([self._master], [], [], deadline - time.monotonic())[0], self._seen
            self._seen += os.read(self._master, 65_536).decode(errors="replace")
        seen, self._seen = self._seen, ""
        return seen

    def press(self, key: str) -> None:
        os.write(self._master, key.encode())

    def resize(self, *, rows: int, columns: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def mode(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._slave)
        os.close(self._master)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    opened = Terminal(*arguments)
    try:
        yield opened
    finally:
        opened.close()


def test_q_quits_and_leaves_the_terminal_as_it_was() -> None:
    replica = Metered()
    replica.set("queue_runs", 4_321)
    with replica.served() as address, terminal("top", address, "--interval", "60") as shown:
        assert "4,321 runs wait" in shown.until(address)
        assert shown.mode() != shown.before
        shown.press("q")
        assert shown.process.wait(SECONDS) == 0
        assert shown.mode() == shown.before


def test_view_is_drawn_again_each_interval_and_in_the_size_that_the_terminal_has() -> None:
    replica = Metered()
    replica.set("queue_runs", 1)
    with replica.served() as address, terminal("top", address, "--interval", "0.1") as shown:
        shown.until("1 runs wait")
        replica.set("queue_runs", 2)
        shown.until("2 runs wait")
        shown.resize(rows=30, columns=40)
        shown.process.send_signal(signal.SIGWINCH)
        # Too narrow for the line: its end is on the next one.
        shown.until("oldest for\r\n")
        shown.press("q")
        assert shown.process.wait(SECONDS) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_quits_as_well(number: signal.Signals) -> None:
    with Metered().served() as address, terminal("top", address, "--interval", "60") as shown:
        shown.until("q quits")
        shown.process.send_signal(number)
        assert shown.process.wait(SECONDS) == 0
        assert shown.mode() == shown.before
