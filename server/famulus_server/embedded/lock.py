"""A file lock between processes, awaited without a thread."""

from __future__ import annotations

import asyncio
import fcntl

_RETRY_SECONDS = 0.02


async def lock(fd: int, *, patience: float) -> None:
    """Lock the open file exclusively, trying for `patience` seconds (may be infinite); then TimeoutError.

    The lock belongs to the open file: it lasts until every process that inherited `fd` has closed it or died.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if loop.time() >= deadline:
                raise TimeoutError from None
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            return
