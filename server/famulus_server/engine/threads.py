"""What callers can do with threads."""

from collections.abc import Sequence

from famulus.v1.message_pb2 import Message
from famulus.v1.thread_pb2 import Thread
from famulus_server.engine import retention
from famulus_server.engine.aftermath import Aftermath, Removed, remove
from famulus_server.engine.clock import timestamp
from famulus_server.engine.etags import check_etag
from famulus_server.engine.fields import copy_fields, copy_of, is_set
from famulus_server.engine.messages import prepare
from famulus_server.engine.policy import Policies
from famulus_server.ports import Clock, Cursor, Ids, RequestKey, Store, ThreadFilter, Transaction

# What a caller can set, and later change.
_MUTABLE = ("title", "default_assistant_id", "tool_resources", "metadata", "retention")
_SETTABLE = ("user_id", *_MUTABLE)
# What somebody wrote about his own thread, and his files.
_PERSONAL = ("title", "tool_resources", "metadata")


class ThreadDesk:
    """Threads: create, read, change, fork, delete."""

    def __init__(
        self,
        *,
        store: Store,
        aftermath: Aftermath,
        policies: Policies,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self._store = store
        self._aftermath = aftermath
        self._policies = policies
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
            await tx.threads.insert(tenant, made, first)
            if key is not None:
                await tx.requests.remember(tenant, key, made.id)
            return await tx.threads.get(tenant, made.id)

        return self._shown(tenant, await self._store.write(unit))

    async def get(self, tenant: str, thread_id: str) -> Thread:
        """Raises NotFound."""
        return self._shown(tenant, await self._store.read(lambda tx: tx.threads.get(tenant, thread_id)))

    async def page(self, tenant: str, which: ThreadFilter, *, after: Cursor | None, limit: int) -> list[Thread]:
        """Latest activity first."""
        found = await self._store.read(lambda tx: tx.threads.page(tenant, which, after=after, limit=limit))
        return [self._shown(tenant, thread) for thread in found]

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

        return self._shown(tenant, await self._store.write(unit))

    async def delete(self, tenant: str, thread_id: str, etag: str) -> None:
        """Deletes a thread with everything in it; an active run is stopped (contract 24). Raises NotFound."""
        now = self._clock.now()

        async def unit(tx: Transaction) -> Removed:
            check_etag(etag, (await tx.threads.outline(tenant, thread_id)).etag)
            return await remove(tx, tenant, thread_id, now=now)

        await self._aftermath.clear(tenant, await self._store.write(unit))

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
            # Not to a thread of another user, who may stay when the data of the first one is deleted.
            kept_back = _PERSONAL if origin.user_id and wanted.user_id not in ("", origin.user_id) else ()
            inherited = [name for name in _SETTABLE if name not in kept_back and not is_set(wanted, name)]
            copy_fields(origin, made, inherited)
            made.forked_from.thread_id = thread_id
            made.forked_from.message_sequence = upto
            await tx.threads.fork(tenant, thread_id, upto, made)
            if key is not None:
                await tx.requests.remember(tenant, key, made.id)
            return await tx.threads.get(tenant, made.id)

        return self._shown(tenant, await self._store.write(unit))

    def _shown(self, tenant: str, thread: Thread) -> Thread:
        return retention.show(thread, self._policies.current.tier(tenant).retention)
