"""What callers can do with threads."""

from collections.abc import Sequence

from famulus.v1.message_pb2 import Message
from famulus.v1.run_pb2 import Run
from famulus.v1.thread_pb2 import Thread
from famulus_server.engine import lifecycle
from famulus_server.engine.clock import timestamp
from famulus_server.engine.control import Interruption
from famulus_server.engine.etags import check_etag
from famulus_server.engine.feed import Feed
from famulus_server.engine.fields import copy_fields, copy_of, is_set
from famulus_server.engine.gate import Gate
from famulus_server.engine.messages import prepare
from famulus_server.engine.worker import Worker
from famulus_server.ports import (
    Clock,
    Cursor,
    Ids,
    RequestKey,
    RunFilter,
    Store,
    ThreadCache,
    ThreadFilter,
    Transaction,
)

# What a caller can set, and later change.
_MUTABLE = ("title", "default_assistant_id", "tool_resources", "metadata")
_SETTABLE = ("user_id", *_MUTABLE)


class ThreadDesk:
    """Threads: create, read, change, fork, delete."""

    def __init__(
        self,
        *,
        store: Store,
        thread_cache: ThreadCache,
        feed: Feed,
        worker: Worker,
        gate: Gate,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self._store = store
        self._thread_cache = thread_cache
        self._feed = feed
        self._worker = worker
        self._gate = gate
        self._clock = clock
        self._ids = ids

    def prepare(self, thread: Thread) -> Thread:
        """A caller's thread, ready to be stored."""
        result = Thread(id=self._ids.new("thread"))
        copy_fields(thread, result, _SETTABLE)
        now = timestamp(self._clock.now())
        for moment in (result.create_time, result.update_time, result.last_activity_time):
            moment.CopyFrom(now)
        return result

    async def create(self, tenant: str, thread: Thread, messages: Sequence[Message], key: RequestKey | None) -> Thread:
        """Creates a thread with messages."""
        made = self.prepare(thread)
        first = prepare(messages, ids=self._ids, now=self._clock.now())

        async def unit(tx: Transaction) -> Thread:
            if key is not None:
                known = await tx.requests.find(tenant, key)
                if known is not None:
                    return await tx.threads.get(tenant, known)
            await tx.threads.insert(tenant, made)
            if first:
                await tx.messages.append(tenant, made.id, first)
            if key is not None:
                await tx.requests.remember(tenant, key, made.id)
            return await tx.threads.get(tenant, made.id)

        return await self._store.write(unit)

    async def get(self, tenant: str, thread_id: str) -> Thread:
        """Raises NotFound."""
        return await self._store.read(lambda tx: tx.threads.get(tenant, thread_id))

    async def page(self, tenant: str, which: ThreadFilter, *, after: Cursor | None, limit: int) -> list[Thread]:
        """Latest activity first."""
        return await self._store.read(lambda tx: tx.threads.page(tenant, which, after=after, limit=limit))

    async def update(self, tenant: str, thread: Thread, paths: Sequence[str]) -> Thread:
        """Replaces the fields named by `paths`."""
        now = self._clock.now()

        async def unit(tx: Transaction) -> Thread:
            current = await tx.threads.get(tenant, thread.id, lock=True)
            check_etag(thread.etag, current.etag)
            copy_fields(thread, current, paths)
            current.update_time.CopyFrom(timestamp(now))
            await tx.threads.replace(tenant, current)
            return current

        return await self._store.write(unit)

    async def delete(self, tenant: str, thread_id: str, etag: str) -> None:
        """Deletes a thread with everything in it; an active run is stopped (contract 24). Raises NotFound."""
        now = self._clock.now()

        async def unit(tx: Transaction) -> tuple[list[str], list[Run]]:
            thread = await tx.threads.get(tenant, thread_id, lock=True)
            check_etag(etag, thread.etag)
            ids = await tx.runs.ids(tenant, thread_id)
            unfinished = RunFilter(thread_id=thread_id, states=tuple(lifecycle.ACTIVE))
            cut_off = await tx.runs.page(tenant, unfinished, after=None, limit=len(ids))
            await tx.threads.bury(tenant, thread_id, now)
            return ids, cut_off

        run_ids, cut_off = await self._store.write(unit)
        # Nobody will tell of their end.
        for run in cut_off:
            self._gate.leave(tenant, run)
        self._thread_cache.forget(tenant, thread_id)
        for run_id in run_ids:
            self._worker.stop(run_id, Interruption.LEASE_LOST)
            async with self._feed.order(run_id):
                self._feed.drop(run_id)

    async def fork(
        self, tenant: str, thread_id: str, message_id: str, thread: Thread, key: RequestKey | None
    ) -> Thread:
        """A new thread that shares the messages up to one of them, or all. Raises NotFound."""
        wanted = self.prepare(thread)

        async def unit(tx: Transaction) -> Thread:
            if key is not None:
                known = await tx.requests.find(tenant, key)
                if known is not None:
                    return await tx.threads.get(tenant, known)
            origin = await tx.threads.get(tenant, thread_id, lock=True)
            upto = origin.last_message_sequence
            if message_id:
                upto = (await tx.messages.get(tenant, thread_id, message_id)).sequence
            made = copy_of(wanted)
            # What the caller did not set is taken from the origin.
            copy_fields(origin, made, [name for name in _SETTABLE if not is_set(wanted, name)])
            made.forked_from.thread_id = thread_id
            made.forked_from.message_sequence = upto
            await tx.threads.fork(tenant, thread_id, upto, made)
            if key is not None:
                await tx.requests.remember(tenant, key, made.id)
            return await tx.threads.get(tenant, made.id)

        return await self._store.write(unit)
