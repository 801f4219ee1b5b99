"""The worker of this process: holds slots, claims runs, renews leases, ends what nobody works on (contract 8-10).

Hints only save time: whatever they announce, the loops find by themselves: what waits and what was cancelled within a
second, what was deleted at the next renewal of the leases.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import timedelta

import structlog

from famulus_server.engine import facts, lifecycle, tracing
from famulus_server.engine.control import Control, Interruption
from famulus_server.engine.executor import Executor
from famulus_server.engine.fairness import Turns
from famulus_server.engine.feed import Feed
from famulus_server.engine.ledger import Ledger, Settled
from famulus_server.engine.policy import Policies
from famulus_server.engine.run_metrics import RunMetrics
from famulus_server.engine.settlement import end_waiting, lock
from famulus_server.errors import NotFound, Unavailable
from famulus_server.ports import STOP, WORK, Claimed, Clock, Hints, Lease, Store, ThreadCache, Transaction

# A dead worker's runs are taken over this long after their leases have run out, at most.
_POLL_SECONDS = 0.5
_SWEEP_SECONDS = 1.0
_RENEWALS_PER_LEASE = 3
# Of the time between two renewals: after so much one that failed is tried again.
_AGAIN_SHARE = 0.1
# Of a lease: a worker that could not renew for this long stops its runs by itself, before others may claim them.
_GIVE_UP_SHARE = 2 / 3
_SWEEP_BATCH = 100
_CLAIM_BATCH = 64
# How long a stop waits for calls that are about to store a run, or outputs, and start it here.
_CALLS_SECONDS = 2.0
_FORGET_SECONDS = 3_600.0
# What is left of a deleted run is dropped once more so long after its deletion, give or take a look.
_DROP_AGAIN = timedelta(seconds=60)
_DROP_SECONDS = 10.0

_log = structlog.get_logger(__name__)

Execution = tuple[asyncio.Task[None], Control]


class Worker:
    """Executes runs in a bounded number of slots. Without slots it only passes on what others shall do."""

    def __init__(
        self,
        *,
        store: Store,
        feed: Feed,
        ledger: Ledger,
        thread_cache: ThreadCache,
        executor: Executor,
        hints: Hints,
        lease: Lease,
        slots: int,
        policies: Policies,
        metrics: RunMetrics,
        clock: Clock,
    ) -> None:
        self._store = store
        self._feed = feed
        self._ledger = ledger
        self._thread_cache = thread_cache
        self._executor = executor
        self._hints = hints
        self.lease = lease
        self.slots = self._free = slots
        self._turns = Turns(policies=policies)
        self._metrics = metrics
        self._clock = clock
        self._executions: dict[str, Execution] = {}
        self._wake = asyncio.Event()
        # Whether runs may be queued that somebody waits for; otherwise a freed slot is no reason to look.
        self._backlog = True
        # Whether more of them waited, when last looked, than there were slots: then new ones wait with them.
        self._behind = False
        self._renewed = 0.0
        self._hinted: set[str] = set()
        self._hint = asyncio.Event()
        self._deaf: list[Callable[[], None]] = []
        self._claiming: asyncio.Task[None] | None = None
        self._others: list[asyncio.Task[None]] = []
        self._stopping = False
        self._giving_back = False

    @property
    def free(self) -> int:
        """How many slots nothing is executed in."""
        return self._free

    def reserve(self) -> bool:
        """Takes a free slot, for a run that is about to be stored, unless others wait for it. Follow with `start` or
        `release`."""
        if self._free == 0 or self._behind or self._stopping:
            return False
        self._free -= 1
        return True

    def release(self) -> None:
        """Gives a reserved slot back; somebody may be waiting for it."""
        self._free += 1
        if self._backlog or self._stopping:
            self._wake.set()

    def start(self, claimed: Claimed) -> None:
        """Executes a claimed run in a reserved slot."""
        # A process that was frozen for longer than a lease may claim its own run again: one of the two must go.
        self._interrupt(claimed.run.id, Interruption.LEASE_LOST)
        control = Control()
        if self._giving_back:
            control.interrupt(Interruption.DRAIN)
        self._feed.own(claimed.run.id)
        self._metrics.started(claimed)
        execution = self._executor.execute(claimed, control)
        apart, run_id = tracing.apart(), claimed.run.id
        task = asyncio.create_task(execution, name=run_id, context=apart)
        self._executions[run_id] = task, control
        task.add_done_callback(lambda done: self._finished(run_id, done), context=apart)

    def stop(self, run_id: str, why: Interruption = Interruption.CANCEL) -> None:
        """Stops a run that was cancelled, or deleted, wherever it is executed."""
        if not self._interrupt(run_id, why):
            self._hints.send(STOP, run_id)

    def wake(self) -> None:
        """A run was queued, because there was no slot for it."""
        self._backlog = True
        self._wake.set()

    def open(self) -> None:
        """Starts the loops."""
        self._ledger.wakes(self.wake)
        self._deaf = [
            self._hints.listen(WORK, lambda _: self.wake()),
            self._hints.listen(STOP, self._hear_stop),
        ]
        self._claiming = asyncio.create_task(self._claim_loop(), name="claim")
        self._others = [
            asyncio.create_task(self._renew_loop(), name="renew"),
            *(
                asyncio.create_task(self._repeat(step, pause, early), name=step.__name__)
                for step, pause, early in (
                    (self._obey, _SWEEP_SECONDS, self._hint),
                    (self._sweep, _SWEEP_SECONDS, None),
                    (self._forget, _FORGET_SECONDS, None),
                    (self._drop_deleted, _DROP_SECONDS, None),
                )
            ),
        ]

    async def close(self, *, grace: float) -> None:
        """Takes no more runs, lets those at work end within `grace` seconds, and gives the others back."""
        self._stopping = True
        self._wake.set()
        for stop_listening in self._deaf:
            stop_listening()
        if self._claiming is not None:
            # Not cancelled: what it is about to claim would be nobody's.
            await asyncio.wait([self._claiming], timeout=_CALLS_SECONDS)
        await self._idle(within=grace)
        self._giving_back, given_back = True, list(self._executions.values())
        for _, control in given_back:
            control.interrupt(Interruption.DRAIN)
        # Calls in progress may still start what they are about to store.
        await self._idle(within=_CALLS_SECONDS)
        if self._executions:
            # The store hangs: leases run out.
            await _cancel([task for task, _ in self._executions.values()])
        if given_back:
            # They wait for another worker.
            self._hints.send(WORK)
        # Last, so that leases do not run out while the last runs end.
        await _cancel(self._others)

    async def _idle(self, *, within: float) -> None:
        """Returns once all slots are free, or after some seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self._free < self.slots:
                    self._wake.clear()
                    await self._wake.wait()

    def _interrupt(self, run_id: str, why: Interruption) -> bool:
        """Interrupts a run; whether this worker executes it."""
        if run_id not in self._executions:
            return False
        _, control = self._executions[run_id]
        control.interrupt(why)
        return True

    def _finished(self, run_id: str, task: asyncio.Task[None]) -> None:
        if self._executions.get(run_id, (None,))[0] is task:
            del self._executions[run_id]
            self._feed.disown(run_id)
        self.release()

    def _hear_stop(self, run_id: str) -> None:
        # Without a name: hints may have been missed.
        if not run_id or run_id in self._executions:
            self._hinted.add(run_id)
            self._hint.set()

    async def _claim_loop(self) -> None:
        while not self._stopping:
            self._wake.clear()
            await self._attempt(self._fill)
            await _pause(_POLL_SECONDS, self._wake)

    async def _renew_loop(self) -> None:
        """One renewal that fails must not cost the runs: the next one in its turn would come too late for them."""
        now = asyncio.get_running_loop().time
        between = self.lease.seconds / _RENEWALS_PER_LEASE
        while True:
            await self._attempt(self._renew)
            await asyncio.sleep(max(between * _AGAIN_SHARE, self._renewed + between - now()))

    async def _repeat(self, step: Callable[[], Awaitable[None]], pause: float, early: asyncio.Event | None) -> None:
        early = early or asyncio.Event()
        while True:
            early.clear()
            await self._attempt(step)
            await _pause(pause, early)

    async def _attempt(self, step: Callable[[], Awaitable[None]]) -> None:
        """One round of a loop: a loop that died would be missed by nobody until runs hang."""
        try:
            await step()
        except Unavailable:
            _log.warning("store unavailable", step=step.__name__)
        except Exception:  # noqa: BLE001 - see above
            _log.exception("worker step failed", step=step.__name__)

    async def _fill(self) -> None:
        """Claims until there is nothing more to claim, or no slot. Two rounds that get nothing are enough: whoever was
        faster goes on, or holds what there is."""
        missed = False
        while (got := await self._claim()) is not None and (got or not missed):
            missed = not got

    async def _claim(self) -> int | None:
        """One round: how many runs it got. None: there is no reason for another one."""
        limit = min(self._free, _CLAIM_BATCH)
        if limit <= 0:
            return None
        # Looked for before slots are taken: a run that comes in meanwhile shall find one (contract 10). One more than
        # can be taken, to see whether that is all.
        queue = await self._store.read(lambda tx: tx.runs.queue(first=self._turns.tenant, limit=limit + 1))
        if queue.parked:
            return await self._store.write(lambda tx: tx.runs.wake(limit=_SWEEP_BATCH))
        slots = min(self._free, limit)
        found = queue.abandoned + sum(queue.waiting.values())
        self._backlog = self._behind = found > slots
        abandoned = min(queue.abandoned, slots)
        shares = self._turns.share(queue.waiting, slots - abandoned)
        if not abandoned and not shares:
            return None

        async def unit(tx: Transaction) -> list[Claimed]:
            taken_over = await tx.runs.take_over(self.lease, limit=abandoned) if abandoned else []
            return taken_over + (await tx.runs.claim(self.lease, shares) if shares else [])

        wanted = abandoned + sum(shares.values())
        self._free -= wanted
        claimed: Sequence[Claimed] = ()
        try:
            claimed = await self._store.write(unit)
        finally:
            self._free += wanted - len(claimed)
        for one in claimed:
            if not one.taken_over:
                events = [facts.state_changed(one.run)]
                facts.number(events, one.run.last_sequence - 1, self._clock.now())
                self._ledger.announce(Settled(one.run, events))
            self.start(one)
        return len(claimed) if self._behind or len(claimed) < wanted else None

    async def _renew(self) -> None:
        loop = asyncio.get_running_loop()
        # By execution: a run that was released and started again meanwhile is another one.
        held, started = dict(self._executions), loop.time()
        if not held:
            self._renewed = started
            return
        give_up_at = self._renewed + self.lease.seconds * _GIVE_UP_SHARE
        try:
            # A database that hangs says nothing for longer than a lease.
            async with asyncio.timeout_at(give_up_at):
                kept = await self._store.write(lambda tx: tx.runs.renew(self.lease, held.keys()))
        except (TimeoutError, Unavailable):
            if loop.time() < give_up_at:
                raise
            # All that is held by now: so what is claimed from now on is not to be given up for it.
            held, kept, self._renewed = dict(self._executions), set(), loop.time()
        else:
            self._renewed = started
        _give_up(held, kept)

    async def _obey(self) -> None:
        """Stops what was cancelled, or deleted, through another replica."""
        if not self._executions:
            return
        hinted = {run_id: held for run_id, held in self._executions.items() if run_id in self._hinted}
        self._hinted = set()
        for run_id in await self._store.read(lambda tx: tx.runs.stopping(self.lease.owner)):
            self._interrupt(run_id, Interruption.CANCEL)
        if hinted:
            _give_up(hinted, await self._store.write(lambda tx: tx.runs.renew(self.lease, hinted.keys())))

    async def _sweep(self) -> None:
        due = await self._store.read(lambda tx: tx.runs.due(self._clock.now(), limit=_SWEEP_BATCH))
        for tenant, run_id in due:
            try:
                await self._expire(tenant, run_id)
            except Unavailable:
                raise
            except Exception:  # noqa: BLE001 - one that cannot be read must not keep all behind it for ever
                _log.exception("run not expired", run_id=run_id)

    async def _expire(self, tenant: str, run_id: str) -> None:
        now = self._clock.now()

        async def unit(tx: Transaction) -> Settled:
            run = await lock(tx, tenant, run_id)
            if run.state not in lifecycle.WAITING:
                return Settled(run)
            return await end_waiting(tx, tenant, run, lifecycle.EXPIRED, now=now)

        # Its thread may have been deleted in between.
        with contextlib.suppress(NotFound):
            await self._ledger.write(run_id, unit)

    async def _forget(self) -> None:
        while await self._store.write(lambda tx: tx.requests.forget_old(_SWEEP_BATCH)) == _SWEEP_BATCH:
            pass

    async def _drop_deleted(self) -> None:
        """Drops what is left of deleted runs and their threads outside the store (contract 24): whoever deleted them
        may have died before it came to that. A thread without runs has left nothing."""
        before = self._clock.now() - _DROP_AGAIN
        deleted = await self._store.write(lambda tx: tx.runs.take_deleted(before, limit=_SWEEP_BATCH))
        for tenant, thread_id, run_id in deleted:
            self._feed.drop(run_id)
            self._thread_cache.forget(tenant, thread_id)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _give_up(held: Mapping[str, Execution], kept: Collection[str]) -> None:
    """Stops those executions whose runs are somebody else's, or gone."""
    for run_id, (_, control) in held.items():
        if run_id not in kept:
            control.interrupt(Interruption.LEASE_LOST)


async def _pause(seconds: float, early: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await early.wait()
