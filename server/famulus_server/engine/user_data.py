"""What is stored of one user: its deletion, which survives any crash, and its export."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from famulus.v1.user_data_service_pb2 import DeletionReceipt, DeletionState
from famulus_server.engine import receipts
from famulus_server.engine.aftermath import Aftermath, Removed, remove
from famulus_server.engine.clock import timestamp
from famulus_server.engine.fields import copy_of
from famulus_server.errors import Unavailable
from famulus_server.ports import Clock, Deletion, Ids, RequestKey, Store, Transaction

# How long a caller waits for the end of a deletion; after that, whoever comes by goes on with it.
_CALL_SECONDS = 10.0
_TURN_SECONDS = 30.0
# Threads, and records, of one transaction.
_THREADS = 10
_RECORDS = 1_000
_BATCH = 100
# For what is wiped outside the store, each.
_WIPE_SECONDS = 10.0
_SIGNING_KEY = "receipts"
_HASHING_KEY = "receipts-users"

_log = structlog.get_logger(__name__)

Wipe = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class _Step:
    """What a transaction did. `erased`: nothing of the user is left in the store."""

    receipt: DeletionReceipt
    erased: bool
    removed: list[Removed] = field(default_factory=list)


class UserDataDesk:
    """Deletes the data of a user. The row of the deletion is committed first, and names the user until nothing of him
    is left; each step is one transaction that also counts what it did, so that any process may do the next one."""

    def __init__(self, *, store: Store, aftermath: Aftermath, wipes: Sequence[Wipe], clock: Clock, ids: Ids) -> None:
        """`wipes` remove what deleted data leaves outside the tables, one after the other, as well as they can."""
        self._store = store
        self._aftermath = aftermath
        self._wipes = wipes
        self._clock = clock
        self._ids = ids
        # Counted since this was made: deletions that ended here.
        self.completed = 0

    async def delete(self, tenant: str, user_id: str, key: RequestKey | None) -> DeletionReceipt:
        """Begins a deletion, or joins the one that is under way, which is then also about what was created since it
        began. Returns when it is done, or after some seconds."""
        now = self._clock.now()
        receipt = DeletionReceipt(
            id=self._ids.new("del"), state=DeletionState.DELETION_STATE_DELETING, create_time=timestamp(now)
        )

        async def unit(tx: Transaction) -> DeletionReceipt:
            if key is not None:
                known = await tx.requests.find(tenant, key)
                if known is not None:
                    return (await tx.deletions.get(tenant, known)).receipt
            begun = await _begin(tx, tenant, Deletion(user_id, copy_of(receipt), until=now))
            if key is not None:
                await tx.requests.remember(tenant, key, begun.id)
            return begun

        begun = await self._store.write(unit)
        return await self._pursue(tenant, begun, seconds=_CALL_SECONDS)

    async def get(self, tenant: str, receipt_id: str) -> DeletionReceipt:
        """Raises NotFound."""
        return (await self._store.read(lambda tx: tx.deletions.get(tenant, receipt_id))).receipt

    async def resume(self) -> None:
        """Goes on with deletions that nobody's call waits for any more."""
        before = self._clock.now() - timedelta(seconds=_CALL_SECONDS)
        for tenant, receipt_id in await self._store.read(lambda tx: tx.deletions.under_way(before, limit=_BATCH)):
            try:
                await self._pursue(tenant, await self.get(tenant, receipt_id), seconds=_TURN_SECONDS)
            except Unavailable:
                raise
            except Exception:  # noqa: BLE001 - it must not keep the others from their end
                _log.exception("deletion failed", receipt_id=receipt_id)

    async def _pursue(self, tenant: str, receipt: DeletionReceipt, *, seconds: float) -> DeletionReceipt:
        """Does one step after the other, until it is done or the time is over."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while receipt.state == DeletionState.DELETION_STATE_DELETING and loop.time() < until:
            step = await self._store.write(lambda tx: self._advance(tx, tenant, receipt.id))  # noqa: B023 - awaited
            for removed in step.removed:
                await self._aftermath.clear(tenant, removed)
            receipt = await self._finish(tenant, step.receipt) if step.erased else step.receipt
        return receipt

    async def _advance(self, tx: Transaction, tenant: str, receipt_id: str) -> _Step:
        """Deletes some threads; where there are none, makes some records anonymous; where there are none either, the
        deletion forgets the user."""
        deletion = await tx.deletions.get(tenant, receipt_id, lock=True)
        step = _Step(deletion.receipt, erased=not deletion.user_id)
        if step.erased:
            return step
        counts = deletion.receipt.counts
        found = await tx.threads.of_user(tenant, deletion.user_id, until=deletion.until, limit=_THREADS)
        for thread_id, is_deleted in found:
            await self._erase(tx, tenant, thread_id, step, is_deleted=is_deleted)
        if not found:
            anonymous = await tx.usages.anonymize(tenant, deletion.user_id, limit=_RECORDS)
            counts.usage_records += anonymous
            if anonymous < _RECORDS:
                deletion.user_id, step.erased = "", True
        await tx.deletions.replace(tenant, deletion)
        return step

    async def _erase(self, tx: Transaction, tenant: str, thread_id: str, step: _Step, *, is_deleted: bool) -> None:
        now, counts = self._clock.now(), step.receipt.counts
        counts.messages += await tx.threads.erase(tenant, thread_id, now)
        counts.threads += 1
        if not is_deleted:
            removed = await remove(tx, tenant, thread_id, now=now)
            counts.messages += removed.messages
            counts.runs += len(removed.run_ids)
            step.removed.append(removed)

    async def _finish(self, tenant: str, receipt: DeletionReceipt) -> DeletionReceipt:
        """Wipes what is left elsewhere, then signs. Whoever did the steps may have died before he came to that."""
        await self._drop_all(tenant, receipt)
        for wipe in self._wipes:
            try:
                async with asyncio.timeout(_WIPE_SECONDS):
                    await wipe()
            except Exception:  # noqa: BLE001 - as well as it can: the data itself is deleted
                _log.exception("wiping failed", receipt_id=receipt.id)
        now = self._clock.now()

        async def unit(tx: Transaction) -> DeletionReceipt:
            deletion = await tx.deletions.get(tenant, receipt.id, lock=True)
            done = deletion.receipt
            if done.state == DeletionState.DELETION_STATE_DELETING:
                done.state = DeletionState.DELETION_STATE_COMPLETED
                done.complete_time.CopyFrom(timestamp(now))
                receipts.sign(done, tenant, seed=await tx.secrets.obtain(_SIGNING_KEY))
                await tx.deletions.replace(tenant, deletion)
            return done

        done = await self._store.write(unit)
        self.completed += 1
        return done

    async def _drop_all(self, tenant: str, receipt: DeletionReceipt) -> None:
        since, last = receipt.create_time.ToDatetime(self._clock.now().tzinfo), ""
        while found := await self._store.read(
            lambda tx: tx.runs.deleted_since(tenant, since, after=last, limit=_BATCH)  # noqa: B023 - awaited
        ):
            for thread_id, run_id in found:
                self._aftermath.forget(tenant, thread_id)
                await self._aftermath.drop(run_id)
            last = found[-1][1]


async def _begin(tx: Transaction, tenant: str, new: Deletion) -> DeletionReceipt:
    new.receipt.user_hmac = receipts.user_hmac(new.user_id, secret=await tx.secrets.obtain(_HASHING_KEY))
    while not await tx.deletions.insert(tenant, new):
        under_way = await tx.deletions.join(tenant, new.user_id, new.until)
        if under_way is not None:
            return under_way.receipt
    return new.receipt
