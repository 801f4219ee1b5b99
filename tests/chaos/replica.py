"""`python -m chaos.replica CONFIG [MUTATION]`: `famulus-server serve`, perhaps with one safety less."""

import asyncio
import ctypes
import signal
import sys
from typing import Any

from famulus_server.cli import main

_PR_SET_PDEATHSIG = 1


def serve(config: str, mutation: str = "") -> None:
    """Serves until SIGTERM."""
    if sys.platform == "linux":
        # Even a frozen replica goes when the harness is killed.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGUSR1, _show_tasks)
    if mutation:
        # Here, because it imports everything that it changes.
        from chaos.mutations import MUTATIONS

        MUTATIONS[mutation].apply()
    main(["--config", config, "serve"])


def _show_tasks(_: int, __: object) -> None:
    """For replicas that hang: what they wait for, in their log."""
    for task in asyncio.all_tasks():
        sys.stderr.write(f"{task.get_name()}\n")
        waiting: Any = task.get_coro()
        while (frame := getattr(waiting, "cr_frame", None) or getattr(waiting, "ag_frame", None)) is not None:
            sys.stderr.write(f"    {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}\n")
            waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "ag_await", None)
        sys.stderr.write(f"    {waiting!r}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    serve(*sys.argv[1:])
