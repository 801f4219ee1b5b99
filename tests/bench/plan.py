"""How much is measured: the whole, the form of three minutes, and the least that shows that everything works."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Rounds and sizes. In each round all systems are measured, one after the other."""

    rounds: int
    seconds: float
    """How long a system is kept busy, each time."""
    runs: tuple[int, ...] = (8,)
    """W1: how many at once; 8 is among them."""
    deltas: int = 500
    """W1: of each run."""
    starts: tuple[int, ...] = (1, 16)
    """W2: how many at once; 1 and 16 are among them."""
    paced: tuple[int, ...] = (200,)
    """W3: how many runs; the last number is the workload."""
    paced_deltas: int = 50
    paced_rounds: int = 3
    watches: tuple[int, ...] = (10_000,)
    """W4: how many; the last number is the workload."""
    watched_runs: int = 1_000
    watch_seconds: float = 32.0
    """W4: how long other calls are made meanwhile; heartbeats come each 15 seconds."""
    callers: tuple[int, ...] = (16,)
    """W5: how many at once; 16 is among them."""
    sizes: tuple[int, ...] = (10, 1_000, 10_000)
    """W6: messages of a thread."""
    window_runs: int = 100
    """W6: for each size."""
    launches: int = 5
    """W8."""
    limiter_checks: int = 4_000
    profile_seconds: float = 8.0


FULL = Plan(
    rounds=5,
    seconds=1.0,
    runs=(1, 4, 8, 16),
    starts=(1, 4, 16, 64),
    paced=(50, 100, 200),
    watches=(1_000, 5_000, 10_000),
    callers=(1, 4, 16, 64),
    sizes=(10, 100, 1_000, 10_000),
)
QUICK = Plan(
    rounds=3,
    seconds=0.7,
    paced_rounds=2,
    watches=(500, 2_000),
    watched_runs=50,
    watch_seconds=15.5,
    window_runs=20,
    launches=2,
    limiter_checks=1_000,
    profile_seconds=2.0,
)
# For a test of the benchmark itself: its figures mean nothing.
TINY = Plan(
    rounds=1,
    seconds=0.1,
    deltas=20,
    paced=(5,),
    paced_deltas=5,
    paced_rounds=1,
    watches=(10, 20),
    watched_runs=2,
    watch_seconds=0.2,
    sizes=(10, 1_000, 10_000),
    window_runs=2,
    launches=1,
    limiter_checks=20,
    profile_seconds=0.5,
)
