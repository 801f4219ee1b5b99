"""The installed command on a terminal, which is a real pseudo-terminal."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from command import PROGRAM, SECONDS, environment


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(rows=30, columns=120)
        self.before = self.mode()
        self.process = subprocess.Popen(
            [PROGRAM, *arguments],
            env=environment({"TERM": "xterm", "COLUMNS": "", "LINES": "", **(env or {})}),
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
def terminal(*arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Terminal]:
    opened = Terminal(*arguments, env=env)
    try:
        yield opened
    finally:
        opened.close()
