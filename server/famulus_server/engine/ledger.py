"""Commit, then publish (contract 3): the one way in which facts of runs come out."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run
from famulus_server.engine.feed import Feed
from famulus_server.engine.packing import pack
from famulus_server.engine.run_metrics import RunMetrics
from famulus_server.ports import WORK, Hints, Store, Transaction


@dataclass(slots=True)
class Settled:
    """What is stored now: the run, and the facts to publish, none where nothing changed. `queued` says that a run waits
    for a worker because of it, `ended` whose run has ended by it: its tenant's."""

    run: Run
    facts: list[RunEvent] = field(default_factory=list)
    queued: bool = False
    ended: str = ""


class Ledger:
    """Stores changes of runs, then tells of them: watchers, and workers that have something to do."""

    def __init__(self, *, store: Store, feed: Feed, hints: Hints, metrics: RunMetrics) -> None:
        self._store = store
        self._feed = feed
        self._hints = hints
        self._metrics = metrics
        self._wake: Callable[[], None] = lambda: None
        self._leave: Callable[[str, Run], object] = lambda *_: None

    def wakes(self, wake: Callable[[], None]) -> None:
        """Sets what is called at once when a run waits for a worker: a hint takes longer, and may be lost."""
        self._wake = wake

    def frees(self, leave: Callable[[str, Run], object]) -> None:
        """Sets what is told of each run that has ended, with its tenant."""
        self._leave = leave

    async def write(self, run_id: str, unit: Callable[[Transaction], Awaitable[Settled]]) -> Settled:
        """Commits, then publishes: in the order of the commits, also where several writers here meet on one run."""
        async with self._feed.order(run_id):
            settled = await self._store.write(unit)
            self.announce(settled)
        return settled

    def announce(self, settled: Settled) -> None:
        """Publishes the facts of what is stored now."""
        self._feed.publish(settled.run.id, pack(settled.facts))
        log = self._feed.find(settled.run.id)
        if log is not None:
            log.stored_sequence = settled.run.last_sequence
        if settled.queued:
            self.offer()
        if settled.ended:
            self._metrics.ended(settled.ended, settled.run)
            self._leave(settled.ended, settled.run)

    def offer(self) -> None:
        """Tells workers, here and elsewhere, that a run waits for one."""
        self._wake()
        self._hints.send(WORK)
