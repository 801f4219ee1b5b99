"""How a thread is deleted: everything in the store at once, then what is left of it elsewhere (contract 24)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from famulus.v1.run_pb2 import Run
from famulus_server.engine import lifecycle
from famulus_server.engine.control import Interruption
from famulus_server.engine.feed import Feed
from famulus_server.engine.gate import Gate
from famulus_server.engine.worker import Worker
from famulus_server.ports import ThreadCache, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What went with a thread: the ids of all its runs, outlines of those that had not ended, how many messages."""

    thread_id: str
    run_ids: Sequence[str]
    cut_off: Sequence[Run]
    messages: int


async def remove(tx: Transaction, tenant: str, thread_id: str, *, now: datetime) -> Removed:
    """Removes a thread, which must be locked, from the store. Raises NotFound."""
    # A body that cannot be read must keep nothing from being deleted.
    runs = await tx.runs.outlines(tenant, thread_id)
    messages = await tx.threads.bury(tenant, thread_id, now)
    return Removed(
        thread_id=thread_id,
        run_ids=[run.id for run in runs],
        cut_off=[run for run in runs if run.state in lifecycle.ACTIVE],
        messages=messages,
    )


class Aftermath:
    """Stops the runs of removed threads, and drops their events and what is remembered of them. Where this process dies
    before it comes to that, some worker does it (`Worker`)."""

    def __init__(self, *, thread_cache: ThreadCache, feed: Feed, worker: Worker, gate: Gate) -> None:
        self._thread_cache = thread_cache
        self._feed = feed
        self._worker = worker
        self._gate = gate

    async def clear(self, tenant: str, removed: Removed) -> None:
        """Follows a removal that is committed."""
        # Nobody will tell of their end.
        for run in removed.cut_off:
            self._gate.leave(tenant, run)
        self._thread_cache.forget(tenant, removed.thread_id)
        for run_id in removed.run_ids:
            self._worker.stop(run_id, Interruption.LEASE_LOST)
            await self.drop(run_id)

    def forget(self, tenant: str, thread_id: str) -> None:
        """Drops what is remembered of a thread."""
        self._thread_cache.forget(tenant, thread_id)

    async def drop(self, run_id: str) -> None:
        """Drops the events of a run, behind those that are about to be published."""
        async with self._feed.order(run_id):
            self._feed.drop(run_id)
