"""Limits, and limiters that share them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from famulus_server.coordination.limiter import RedisLimiter
from famulus_server.coordination.patience import Patience
from famulus_server.ports import Demand, Limit, Limiter, Quantity

# Nothing to speak of comes back during a test.
SLOW = 0.001


def limit(quantity: Quantity = "requests", *, most: int = 3, per_second: float = SLOW, subject: str = "acme") -> Limit:
    return Limit("tenant", subject, quantity, most, 0.0 if quantity == "runs" else per_second)


class Stopwatch:
    """A clock that a test moves, in seconds."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@contextlib.asynccontextmanager
async def opened(url: str, owner: str, *, patience: Patience | None = None) -> AsyncIterator[RedisLimiter]:
    """A limiter that has reached Redis."""
    limiter = RedisLimiter(url=url, patience=patience or Patience(), owner=owner)
    limiter.open()
    await until(lambda: limiter.is_shared)
    yield limiter
    await limiter.close()


async def taken(limiter: Limiter, demand: Demand, *, tries: int) -> int:
    """How many of so many takes are granted."""
    answers = [await limiter.take([demand]) for _ in range(tries)]
    return answers.count(None)


async def carried_out(limiter: Limiter) -> None:
    """Returns once what the limiter was told before is done: what it is asked goes behind that."""
    await limiter.take([Demand(limit(subject="nobody"))])


async def until(condition: Callable[[], bool]) -> None:
    """For what no event tells."""
    async with asyncio.timeout(20.0):
        while not condition():  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.005)
