"""The worker of this process: holds slots, claims runs, renews leases, ends what nobody works on (contract 8-10).

Wake-ups only save time: whatever they announce, the loop finds within a second by itself.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial

import structlog

from famulus_server.engine import facts, lifecycle
from famulus_server.engine.executor import NOBODYS, Control, Executor, Interruption
from famulus_server.engine.feed import Feed
from famulus_server.engine.settlement import Settled, end_waiting, publish_settled
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
        # Run ids, with their tenants, whose execution ended since the last renewal.
        self._ended: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def running(self) -> int:
        """How many runs this worker executes now."""
        return len(self._executions)

    def reserve(self) -> bool:
        """Takes a free slot, for a run that is about to be stored. Follow with `start` or `release`."""
        if self._free == 0 or self._stopping:
            return False
        self._free -= 1
        return True

    def release(self) -> None:
        """Gives a reserved slot back; somebody may be waiting for it."""
        self._free += 1
        self._wake.set()

    def start(self, claimed: Claimed) -> None:
        """Executes a claimed run in a reserved slot."""
        control = Control()
        task = asyncio.create_task(self._executor.execute(claimed, control), name=claimed.run.id)
        self._executions[claimed.run.id] = task, control
        task.add_done_callback(lambda done: self._finished(claimed, done))

    def interrupt(self, run_id: str, why: Interruption) -> None:
        """Interrupts a run, if this worker executes it."""
        if run_id in self._executions:
            self._executions[run_id][1].interrupt(why)

    def wake(self) -> None:
        """Something may be waiting in the queue."""
        self._wake.set()

    def open(self) -> None:
        """Starts the loops."""
        loops = (self._claim_loop, self._renew_loop, self._sweep_loop, self._forget_loop)
        self._loops = [asyncio.create_task(loop(), name=loop.__name__) for loop in loops]

    async def close(self, *, grace: float) -> None:
        """Takes no more runs, lets those at work end within `grace` seconds, and gives the others back."""
        self._stopping = True
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        tasks = [task for task, _ in self._executions.values()]
        if tasks:
            # Leases must not run out while the last runs end.
            renewing = asyncio.create_task(self._renew_loop())
            _, left = await asyncio.wait(tasks, timeout=grace)
            for _, control in list(self._executions.values()):
                control.interrupt(Interruption.DRAIN)
            await asyncio.gather(*left, return_exceptions=True)
            renewing.cancel()

    def _finished(self, claimed: Claimed, task: asyncio.Task[None]) -> None:
        run_id = claimed.run.id
        if self._executions.get(run_id, (None,))[0] is task:
            del self._executions[run_id]
            self._ended[run_id] = claimed.tenant
        self.release()

    async def _claim_loop(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._claim()
            except Unavailable:
                _log.warning("store unavailable, cannot claim")
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _claim(self) -> None:
        slots = self._free
        if slots == 0:
            return
        self._free = 0
        claimed: Sequence[Claimed] = ()
        try:
            claimed = await self._store.write(lambda tx: tx.runs.claim(self.lease, limit=slots))
        finally:
            self._free += slots - len(claimed)
        for one in claimed:
            if not one.taken_over:
                events = [facts.state_changed(one.run)]
                facts.number(events, one.run.last_sequence - 1, self._clock.now())
                self._feed.publish(one.run.id, events)
            self.start(one)

    async def _renew_loop(self) -> None:
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            await asyncio.sleep(self.lease.seconds / _RENEWALS_PER_LEASE)
            held = set(self._executions)
            if not held:
                self._ended.clear()
                renewed = loop.time()
                continue
            try:
                kept = await self._store.write(lambda tx: tx.runs.renew(self.lease))
                renewed = loop.time()
                lost = held - kept
                await self._give_back(kept)
            except Unavailable:
                lost = held if loop.time() - renewed >= self.lease.seconds * _GIVE_UP_SHARE else set()
            for run_id in lost:
                self.interrupt(run_id, Interruption.LEASE_LOST)

    async def _give_back(self, kept: set[str]) -> None:
        """Ends leases on runs whose execution ended without an end of the run, as when the store was away: renewed
        with the others, they would be nobody's for ever."""
        for run_id, tenant in list(self._ended.items()):
            if run_id in kept and run_id not in self._executions:
                with contextlib.suppress(NotFound):
                    await self._store.write(partial(_release, tenant=tenant, run_id=run_id))
            self._ended.pop(run_id, None)

    async def _sweep_loop(self) -> None:
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                due = await self._store.read(lambda tx: tx.runs.due(self._clock.now(), limit=_SWEEP_BATCH))
                for tenant, run_id in due:
                    await self._expire(tenant, run_id)
            except Unavailable:
                _log.warning("store unavailable, cannot sweep")

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

    async def _forget_loop(self) -> None:
        while True:
            try:
                while await self._store.write(lambda tx: tx.requests.forget_old(_SWEEP_BATCH)) == _SWEEP_BATCH:
                    pass
            except Unavailable:
                _log.warning("store unavailable, cannot forget old request ids")
            await asyncio.sleep(_FORGET_SECONDS)


async def _release(tx: Transaction, *, tenant: str, run_id: str) -> None:
    run = await tx.runs.get(tenant, run_id, lock=True)
    if run.state in lifecycle.OWNED:
        await tx.runs.replace(tenant, run, attempt=run.attempt, lease=NOBODYS)
