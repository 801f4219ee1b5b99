"""A Valkey that hangs."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import Redis


async def process_of(redis: Redis) -> int:
    return int((await redis.info("server"))["process_id"])


@contextmanager
def frozen(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)
