"""Keeps a system busy, and notes what that cost."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bench.accounting import Parts, Spent, accounted
from bench.asking import Ask, Heard


@dataclass(frozen=True)
class System:
    """Something that answers: how it is asked, and the processes that do it. `own` are the names of its parts that are
    its own cost: not the client, and not the upstream."""

    name: str
    ask: Ask
    parts: Parts
    own: tuple[str, ...]


@dataclass
class Load:
    """What was heard in all rounds of one situation, and what it cost."""

    spent: Spent = field(default_factory=Spent)
    rates: list[float] = field(default_factory=list)
    """Of each round: deltas per second."""
    paces: list[float] = field(default_factory=list)
    """Of each round: runs per second."""
    firsts: list[float] = field(default_factory=list)
    """Of each run: seconds to the first delta."""
    deltas: int = 0
    runs: int = 0

    def add(self, heard: list[Heard], spent: Spent) -> None:
        """Notes a round."""
        deltas = sum(one.deltas for one in heard)
        self.rates.append(deltas / spent.seconds)
        self.paces.append(len(heard) / spent.seconds)
        self.firsts += [one.first for one in heard]
        self.deltas += deltas
        self.runs += len(heard)
        self.spent.add(spent)

    @property
    def rate(self) -> float:
        """Deltas per second: the median of all rounds."""
        return statistics.median(self.rates)

    @property
    def pace(self) -> float:
        """Runs per second: the median of all rounds."""
        return statistics.median(self.paces)

    @property
    def first_ms(self) -> float:
        """Milliseconds to the first delta, p50."""
        return statistics.median(self.firsts) * 1e3


async def in_batches(system: System, upstream: Parts, text: str, *, at_once: int, seconds: float, load: Load) -> None:
    """A round of questions that are asked together, again when the last one is answered."""
    heard: list[Heard] = []
    with accounted(system.parts, upstream) as spent:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            heard += await asyncio.gather(*(system.ask(text) for _ in range(at_once)))
    load.add(heard, spent)


async def in_turn(system: System, upstream: Parts, text: str, *, at_once: int, seconds: float, load: Load) -> None:
    """A round of callers of whom each asks again as soon as it is answered."""
    heard: list[Heard] = []
    with accounted(system.parts, upstream) as spent:
        end = time.perf_counter() + seconds

        async def call() -> None:
            while time.perf_counter() < end:
                heard.append(await system.ask(text))

        await asyncio.gather(*(call() for _ in range(at_once)))
    load.add(heard, spent)


async def rate(call: Callable[[], Awaitable[None]], *, at_once: int, seconds: float) -> tuple[float, list[float]]:
    """How many calls per second so many callers make, and how long each took, in seconds."""
    taken: list[float] = []
    start = time.perf_counter()

    async def repeat() -> None:
        while (now := time.perf_counter()) < start + seconds:
            await call()
            taken.append(time.perf_counter() - now)

    await asyncio.gather(*(repeat() for _ in range(at_once)))
    return len(taken) / (time.perf_counter() - start), taken
