"""Runs one command and takes it down when whoever started the guard is gone, even by SIGKILL.

Run by its path, `python -I -S guard.py GRACE_SECONDS COMMAND...`, as the leader of a process group of its
own; only light modules are imported, so that it is up in some 20 ms. Its standard input is a pipe on which
nobody writes: the kernel ends it when the last process holding the other end closes it or dies. Then the group
gets SIGTERM, and SIGKILL after the grace. Standard output and standard error are the command's.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

_LIFELINE = 0
_NOT_STARTED = 127  # what a shell answers for a command it cannot run


def run(grace: float, command: list[str]) -> int:
    """Run the command to its end; its exit code, 128 + n when signal n ended it, as shells have it."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # a handler, not SIG_IGN: the command would inherit that
    try:
        child = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, _LIFELINE, os.devnull, os.O_RDONLY, 0)],
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores these two
            setsigmask=(),
        )
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        return _NOT_STARTED

    watched = [_LIFELINE, woken]
    kill_at: float | None = None
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        timeout = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        readable, _, _ = select.select(watched, [], [], timeout)
        signals = os.read(woken, 64) if woken in readable else b""
        if kill_at is None:
            if _LIFELINE in readable or signal.SIGTERM in signals:
                os.killpg(0, signal.SIGTERM)
                kill_at = time.monotonic() + grace
                watched = [woken]  # an ended pipe is readable for ever
        elif time.monotonic() >= kill_at:
            os.killpg(0, signal.SIGKILL)  # the guard goes with its group
    os.killpg(0, signal.SIGTERM)  # what the command itself started and left behind
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(run(float(sys.argv[1]), sys.argv[2:]))
