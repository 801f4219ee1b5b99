"""The worker of this process: holds slots, claims runs, renews leases, ends what nobody works on (contract 8-10).

Wake-ups only save time: whatever they announce, the loop finds within a second by itself.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

import structlog

from famulus_server.engine import facts, lifecycle
from famulus_server.engine.control import Control, Interruption
from famulus_server.engine.executor import Executor
from famulus_server.engine.feed import Feed
from famulus_server.engine.settlement import Settled, announce, end_waiting, publish_settled
from famulus_server.errors import NotFound, Unavailable
from famulus_server.ports import Claimed, Clock, Lease, Store, Transaction

_POLL_SECONDS = 1.0
_RENEWALS_PER_LEASE = 3
# Of a lease: a worker that could not renew for this long stops its runs by itself, before others may claim them.
_GIVE_UP_SHARE = 2 / 3
_SWEEP_BATCH = 100
_FORGET_SECONDS = 3_600.0

_log = structlog.get_logger(__name__)


class Worker:
    """Executes runs in a bounded number of slots."""

    def __init__(self, *, store: Store, feed: Feed, executor: Executor, lease: Lease, slots: int, clock: Clock) -> None:
        self._store = store
        self._feed = feed
        self._executor = executor
        self.lease = lease
        self._free = slots
        self._clock = clock
        self._executions: dict[str, tuple[asyncio.Task[None], Control]] = {}
        self._wake = asyncio.Event()
        # Whether runs may be queued that somebody waits for; otherwise a freed slot is no reason to look.
        self._backlog = True
        self._renewed = 0.0
        self._claiming: asyncio.Task[None] | None = None
        self._others: list[asyncio.Task[None]] = []
        self._stopping = False

    def reserve(self) -> bool:
        """Takes a free slot, for a run that is about to be stored. Follow with `start` or `release`."""
        if self._free == 0 or self._stopping:
            return False
        self._free -= 1
        return True

    def release(self) -> None:
        """Gives a reserved slot back; somebody may be waiting for it."""
        self._free += 1
        if self._backlog:
            self._wake.set()

    def start(self, claimed: Claimed) -> None:
        """Executes a claimed run in a reserved slot."""
        # A process that was frozen for longer than a lease may claim its own run again: one of the two must go.
        self.interrupt(claimed.run.id, Interruption.LEASE_LOST)
        control = Control()
        task = asyncio.create_task(self._executor.execute(claimed, control), name=claimed.run.id)
        self._executions[claimed.run.id] = task, control
        task.add_done_callback(lambda done: self._finished(claimed.run.id, done))

    def interrupt(self, run_id: str, why: Interruption) -> None:
        """Interrupts a run, if this worker executes it."""
        if run_id in self._executions:
            self._executions[run_id][1].interrupt(why)

    def wake(self) -> None:
        """A run was queued, because there was no slot for it."""
        self._backlog = True
        self._wake.set()

    def open(self) -> None:
        """Starts the loops."""
        self._claiming = asyncio.create_task(self._claim_loop(), name="claim")
        self._others = [
            asyncio.create_task(self._repeat(step, pause), name=step.__name__)
            for step, pause in (
                (self._renew, self.lease.seconds / _RENEWALS_PER_LEASE),
                (self._sweep, _POLL_SECONDS),
                (self._forget, _FORGET_SECONDS),
            )
        ]

    async def close(self, *, grace: float) -> None:
        """Takes no more runs, lets those at work end within `grace` seconds, and gives the others back."""
        self._stopping = True
        self._wake.set()
        if self._claiming is not None:
            # Not cancelled: what it is about to claim would be nobody's.
            await self._claiming
        if self._executions:
            await asyncio.wait([task for task, _ in self._executions.values()], timeout=grace)
        # Those too that a call in progress has started meanwhile.
        for _, control in self._executions.values():
            control.interrupt(Interruption.DRAIN)
        await asyncio.gather(*(task for task, _ in self._executions.values()), return_exceptions=True)
        # Last, so that leases do not run out while the last runs end.
        for loop in self._others:
            loop.cancel()
        await asyncio.gather(*self._others, return_exceptions=True)

    def _finished(self, run_id: str, task: asyncio.Task[None]) -> None:
        if self._executions.get(run_id, (None,))[0] is task:
            del self._executions[run_id]
        self.release()

    async def _claim_loop(self) -> None:
        while not self._stopping:
            self._wake.clear()
            await self._attempt(self._claim)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._wake.wait()

    async def _repeat(self, step: Callable[[], Awaitable[None]], pause: float) -> None:
        while True:
            await self._attempt(step)
            await asyncio.sleep(pause)

    async def _attempt(self, step: Callable[[], Awaitable[None]]) -> None:
        """One round of a loop: a loop that died would be missed by nobody until runs hang."""
        try:
            await step()
        except Unavailable:
            _log.warning("store unavailable", step=step.__name__)
        except Exception:  # noqa: BLE001 - see above
            _log.exception("worker step failed", step=step.__name__)

    async def _claim(self) -> None:
        # Looked for before slots are taken: a run that comes in meanwhile shall find one (contract 10).
        if self._free <= 0 or not await self._store.read(lambda tx: tx.runs.is_claimable()):
            self._backlog = self._backlog and self._free <= 0
            return
        slots, self._free = self._free, 0
        claimed: Sequence[Claimed] = ()
        try:
            claimed = await self._store.write(lambda tx: tx.runs.claim(self.lease, limit=slots))
        finally:
            self._free += slots - len(claimed)
        self._backlog = len(claimed) == slots
        for one in claimed:
            if not one.taken_over:
                events = [facts.state_changed(one.run)]
                facts.number(events, one.run.last_sequence - 1, self._clock.now())
                announce(self._feed, Settled(one.run, events))
            self.start(one)

    async def _renew(self) -> None:
        loop = asyncio.get_running_loop()
        held = set(self._executions)
        if not held:
            self._renewed = loop.time()
            return
        try:
            kept = await self._store.write(lambda tx: tx.runs.renew(self.lease, held))
        except Unavailable:
            if loop.time() - self._renewed < self.lease.seconds * _GIVE_UP_SHARE:
                raise
            kept = set()
        else:
            self._renewed = loop.time()
        for run_id in held - kept:
            self.interrupt(run_id, Interruption.LEASE_LOST)

    async def _sweep(self) -> None:
        due = await self._store.read(lambda tx: tx.runs.due(self._clock.now(), limit=_SWEEP_BATCH))
        for tenant, run_id in due:
            await self._expire(tenant, run_id)

    async def _expire(self, tenant: str, run_id: str) -> None:
        now = self._clock.now()

        async def unit(tx: Transaction) -> Settled:
            run = await tx.runs.get(tenant, run_id, lock=True)
            if run.state not in lifecycle.WAITING:
                return Settled(run)
            return await end_waiting(tx, tenant, run, lifecycle.EXPIRED, now=now)

        # Its thread may have been deleted in between.
        with contextlib.suppress(NotFound):
            await publish_settled(self._store, self._feed, run_id, unit)

    async def _forget(self) -> None:
        while await self._store.write(lambda tx: tx.requests.forget_old(_SWEEP_BATCH)) == _SWEEP_BATCH:
            pass
