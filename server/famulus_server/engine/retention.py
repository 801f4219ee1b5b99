"""How long threads are kept, and the sweep of those whose time is over (contract 25)."""

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import structlog

from famulus.v1.thread_pb2 import Thread
from famulus_server.engine.aftermath import Aftermath, Removed, remove
from famulus_server.engine.clock import timestamp
from famulus_server.engine.policy import DEFAULT_TIER, Policies, Retention
from famulus_server.errors import NotFound, Unavailable
from famulus_server.ports import Clock, Lifetimes, Store, Transaction

_BATCH = 100
_NO_RULES = Retention()

# Finds threads, named by (tenant, id), whose time is over at a moment.
Look: TypeAlias = Callable[[Transaction, datetime], Awaitable[list[tuple[str, str]]]]

_log = structlog.get_logger(__name__)


def lifetimes(retention: Retention) -> Lifetimes:
    """The rules of a tenant's tier."""
    return Lifetimes(
        after_create=_days(retention.after_create_days),
        after_last_activity=_days(retention.after_last_activity_days),
        on_completion=retention.on_completion,
        most_after_create=_days(retention.max_after_create_days),
    )


def expire_time(thread: Thread, rules: Lifetimes) -> datetime | None:
    """When a thread's time is over, but for its last run; None: never."""
    own = thread.retention
    after_create, after_activity = rules.after_create, rules.after_last_activity
    if own.HasField("after_create"):
        after_create = own.after_create.ToTimedelta()
    if own.HasField("after_last_activity"):
        after_activity = own.after_last_activity.ToTimedelta()
    kept = [span for span in (after_create, rules.most_after_create) if span is not None]
    ends = [thread.create_time.ToDatetime(UTC) + min(kept)] if kept else []
    if after_activity is not None:
        ends.append(thread.last_activity_time.ToDatetime(UTC) + after_activity)
    return min(ends, default=None)


def goes_on_completion(thread: Thread, rules: Lifetimes) -> bool:
    """Whether a thread goes with its last run."""
    own = thread.retention
    return own.on_completion if own.HasField("on_completion") else rules.on_completion


def show(thread: Thread, retention: Retention) -> Thread:
    """The same thread, which now tells when its time is over."""
    ends = expire_time(thread, lifetimes(retention))
    if ends is not None:
        thread.expire_time.CopyFrom(timestamp(ends))
    return thread


class Sweeper:
    """Deletes threads whose time is over, and old tombstones. Any number of replicas may do so at once: each thread is
    looked at again, locked, before it goes."""

    def __init__(
        self, *, store: Store, aftermath: Aftermath, policies: Policies, clock: Clock, tombstone_days: float
    ) -> None:
        self._store = store
        self._aftermath = aftermath
        self._policies = policies
        self._clock = clock
        self._tombstones_kept = timedelta(days=tombstone_days)
        # Counted since this was made: threads that were deleted, and tombstones that were removed.
        self.threads = 0
        self.tombstones = 0

    async def sweep(self) -> None:
        """Does all that there is to do now. Broken off, it goes on where it was the next time."""
        while await self._sweep_some(lambda tx, now: tx.threads.expired(now, limit=_BATCH)):
            pass
        async for tenant in self._tenants():
            while await self._sweep_some(functools.partial(self._outlived, tenant)):
                pass
        before = self._clock.now() - self._tombstones_kept
        cleared = _BATCH
        while cleared == _BATCH:
            cleared = await self._store.write(lambda tx: tx.threads.clear_tombstones(before, limit=_BATCH))
            self.tombstones += cleared

    async def _tenants(self) -> AsyncIterator[str]:
        """Those whose tiers have rules. Only where all tenants that nobody has named have some, all are looked up."""
        policy = self._policies.current
        if policy.tiers[DEFAULT_TIER].retention == _NO_RULES:
            for tenant in policy.tenants:
                if policy.tier(tenant).retention != _NO_RULES:
                    yield tenant
            return
        last = ""
        while found := await self._store.read(
            lambda tx: tx.threads.tenants(after=last, limit=_BATCH)  # noqa: B023 - awaited
        ):
            for tenant in found:
                if policy.tier(tenant).retention != _NO_RULES:
                    yield tenant
            last = found[-1]

    async def _outlived(self, tenant: str, tx: Transaction, now: datetime) -> list[tuple[str, str]]:
        found = await tx.threads.outlived(tenant, self._rules(tenant), now, limit=_BATCH)
        return [(tenant, thread_id) for thread_id in found]

    def _rules(self, tenant: str) -> Lifetimes:
        return lifetimes(self._policies.current.tier(tenant).retention)

    async def _sweep_some(self, look: Look) -> bool:
        """Deletes a batch of the threads that are found; whether there may be more."""
        now = self._clock.now()
        found = await self._store.read(lambda tx: look(tx, now))
        gone = 0
        for tenant, thread_id in found:
            try:
                gone += await self._sweep_one(tenant, thread_id, self._rules(tenant), now)
            except Unavailable:
                raise
            except Exception:  # noqa: BLE001 - one that cannot be read must not keep all others for ever
                _log.exception("thread not swept", tenant=tenant, thread_id=thread_id)
        self.threads += gone
        return gone > 0 and len(found) >= _BATCH

    async def _sweep_one(self, tenant: str, thread_id: str, rules: Lifetimes, now: datetime) -> bool:
        async def unit(tx: Transaction) -> Removed | None:
            thread = await tx.threads.outline(tenant, thread_id)
            if not await _is_over(tx, tenant, thread, rules, now):
                return None
            return await remove(tx, tenant, thread_id, now=now)

        try:
            removed = await self._store.write(unit)
        except NotFound:
            # Somebody else was faster.
            return False
        if removed is not None:
            await self._aftermath.clear(tenant, removed)
        return removed is not None


async def _is_over(tx: Transaction, tenant: str, thread: Thread, rules: Lifetimes, now: datetime) -> bool:
    # Where runs are in line, one is active.
    if thread.active_run_id:
        return False
    ends = expire_time(thread, rules)
    if ends is not None and ends <= now:
        return True
    return goes_on_completion(thread, rules) and bool(await tx.runs.outlines(tenant, thread.id))


def _days(days: float | None) -> timedelta | None:
    return None if days is None else timedelta(days=days)
