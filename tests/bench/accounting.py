"""Processor time and memory of a system, by the operating system's accounting."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import psutil

Parts = Callable[[], Mapping[str, Sequence[psutil.Process]]]
"""The processes of each part of a system; asked each time, because databases start some for each connection."""
_CLIENT = "client"
_OTHERS = "others"
"""What else ran on the machine."""


@dataclass
class Spent:
    """Seconds on the clock, and of processors for each part."""

    seconds: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)

    @property
    def cores(self) -> dict[str, float]:
        """Processors that each part used, on average."""
        return {part: seconds / self.seconds for part, seconds in self.cpu.items()}

    def of(self, parts: Sequence[str]) -> float:
        """Processor seconds of some parts together."""
        return sum(self.cpu.get(part, 0.0) for part in parts)

    def add(self, other: "Spent") -> None:
        """Joins two measurements of the same."""
        self.seconds += other.seconds
        self.cpu = {part: self.cpu.get(part, 0.0) + seconds for part, seconds in other.cpu.items()}


@contextlib.contextmanager
def accounted(*parts: Parts) -> Iterator[Spent]:
    """Measures what is spent inside, by these parts, this process as the client, and everybody else."""
    spent = Spent()
    before, busy, start = _seconds(parts), _busy(), time.perf_counter()
    try:
        yield spent
    finally:
        spent.seconds = time.perf_counter() - start
        after, others = _seconds(parts), _busy() - busy
        spent.cpu = {part: seconds - before.get(part, 0.0) for part, seconds in after.items()}
        spent.cpu[_OTHERS] = max(0.0, others - sum(spent.cpu.values()))


def memory(parts: Parts) -> float:
    """Bytes that a system holds; pages that several processes share count once."""
    held = 0
    for processes in parts().values():
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                held += process.memory_full_info().pss
    return float(held)


def _seconds(parts: Sequence[Parts]) -> dict[str, float]:
    taken: dict[str, float] = {_CLIENT: _of([psutil.Process()])}
    for asked in parts:
        for part, processes in asked().items():
            taken[part] = taken.get(part, 0.0) + _of(processes)
    return taken


def _of(processes: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])  # children that have ended included
    return total


def _busy() -> float:
    """Seconds that all processors were busy since the machine started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)
