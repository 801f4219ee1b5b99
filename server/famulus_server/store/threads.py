"""Threads in SQL. A fork refers to its origin's messages by segments; see `queries.sql`."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from famulus.v1.message_pb2 import Message
from famulus.v1.thread_pb2 import Thread
from famulus_server.errors import NotFound
from famulus_server.ports import Cursor, Lifetimes, ThreadFilter
from famulus_server.store.bodies import SqlBodies
from famulus_server.store.columns import END, NEVER, before, etag, micros, stamp_micros, timestamp
from famulus_server.store.data_keys import SqlDataKeys
from famulus_server.store.messages import SqlMessages
from famulus_server.store.session import Row, Session


class SqlThreads:
    """See `ports.Threads`."""

    def __init__(self, session: Session, bodies: SqlBodies, keys: SqlDataKeys, messages: SqlMessages) -> None:
        self._session = session
        self._bodies = bodies
        self._keys = keys
        self._messages = messages

    async def insert(self, tenant: str, thread: Thread, messages: Sequence[Message] = ()) -> None:
        await self._insert(tenant, thread, first_sequence=1, messages=len(messages))
        await self._messages.put(tenant, thread.id, messages, first=1)

    async def get(self, tenant: str, thread_id: str, *, lock: bool = False) -> Thread:
        if lock:
            await self._session.hold("threads_hold", tenant, thread_id)
        row = await self._session.one("threads_get", tenant, thread_id)
        if row is None:
            raise NotFound("thread", thread_id)
        [thread] = await self._threads(tenant, [row])
        return thread

    async def outline(self, tenant: str, thread_id: str) -> Thread:
        await self._session.hold("threads_hold", tenant, thread_id)
        row = await self._session.one("threads_outline", tenant, thread_id)
        if row is None:
            raise NotFound("thread", thread_id)
        return _outline(thread_id, row)

    async def page(self, tenant: str, which: ThreadFilter, *, after: Cursor | None, limit: int) -> list[Thread]:
        return await self._threads(tenant, await self._page(tenant, which, after, limit))

    async def replace(self, tenant: str, thread: Thread) -> None:
        stored = (*_kept(thread), await self._seal(tenant, thread))
        row = await self._session.one("threads_replace", tenant, thread.id, *stored)
        if row is None:
            raise NotFound("thread", thread.id)
        thread.etag = etag(row[0])
        await self._session.run("thread_metadata_delete", tenant, thread.id)
        await self._insert_metadata(tenant, thread)

    async def hold(self, tenant: str, thread_id: str) -> None:
        await self._session.hold("threads_hold", tenant, thread_id)

    async def touch(self, tenant: str, thread_id: str, now: datetime) -> None:
        await self._session.run("threads_touch", tenant, thread_id, micros(now))

    async def fork(self, tenant: str, origin_id: str, upto_sequence: int, thread: Thread) -> None:
        row = await self._session.one("threads_next_sequence", tenant, origin_id, lock=True)
        if row is None:
            raise NotFound("thread", origin_id)
        # What the origin appends later must not show up in the fork.
        upto = min(upto_sequence, row[0] - 1)
        await self._session.run("segments_fork", tenant, origin_id, thread.id, upto)
        if await self._session.run("overrides_fork", tenant, origin_id, thread.id, upto):
            await self._reseal_overrides(tenant, thread.id)
        await self._insert(tenant, thread, first_sequence=upto + 1)

    async def bury(self, tenant: str, thread_id: str, now: datetime) -> int:
        if not await self._session.run("threads_bury", tenant, thread_id, micros(now), b""):
            raise NotFound("thread", thread_id)
        await self._session.run("thread_metadata_delete", tenant, thread_id)
        # A worker that stores something of its run at this moment either has stored it now, or finds no run.
        await self._session.all("runs_ids_of_thread", tenant, thread_id, lock=True)
        await self._session.run("steps_delete_of_thread", tenant, thread_id)
        await self._session.run("turns_delete_of_thread", tenant, thread_id)
        await self._session.run("queued_messages_delete_of_thread", tenant, thread_id)
        await self._session.run("usage_cancel_of_thread", tenant, thread_id)
        await self._session.run("deleted_runs_note", tenant, thread_id, micros(now))
        await self._session.run("runs_delete_of_thread", tenant, thread_id)
        await self._session.run("overrides_delete_all", tenant, thread_id)
        # Also its ancestors' logs: this thread may have been the last to refer to messages of a deleted one. Of two at
        # once, the second sees what the first has left. Children come before parents, as ids sort by time.
        # Its own one may have been erased before.
        logs = {thread_id, *(log_id for (log_id,) in await self._session.all("segments_delete", tenant, thread_id))}
        messages = 0
        for log_id in sorted(logs, reverse=True):
            await self._session.hold("threads_hold", tenant, log_id)
            messages += await self._session.run("messages_delete_unreferred", tenant, log_id)
            messages += await self._session.run("messages_delete_hidden", tenant, log_id)
            await self._session.run("threads_disown", tenant, log_id)
            await self._keys.remove_of_log(tenant, log_id)
        return messages

    async def erase(self, tenant: str, thread_id: str, now: datetime) -> int:
        # Nobody may fork one of these forks meanwhile, and copy what it sees in place of a message.
        forks = await self._hold_forks(tenant, thread_id)
        await self._session.hold("threads_hold", tenant, thread_id)
        await self._session.run("overrides_delete_of_log", tenant, thread_id)
        messages = await self._session.run("messages_delete_of_log", tenant, thread_id)
        await self._session.run("segments_delete_of_log", tenant, thread_id)
        await self._session.run("threads_disown", tenant, thread_id)
        await self._keys.remove_of_log(tenant, thread_id)
        await self._session.run_many("threads_revise", [(tenant, fork_id) for fork_id in forks])
        # What is remembered of them has these messages.
        await self._session.run_many("deleted_runs_note_fork", [(tenant, fork_id, micros(now)) for fork_id in forks])
        return messages

    async def of_user(
        self, tenant: str, user_id: str, *, until: datetime | None = None, after: str = "", limit: int
    ) -> list[tuple[str, bool]]:
        bound = END if until is None else micros(until)
        rows = await self._session.all("threads_of_user", tenant, user_id, after, bound, limit)
        return [(thread_id, bool(deleted)) for thread_id, deleted in rows]

    async def tenants(self, *, after: str, limit: int) -> list[str]:
        return [tenant for (tenant,) in await self._session.all("threads_tenants", after, limit)]

    async def outlived(self, tenant: str, lifetimes: Lifetimes, now: datetime, *, limit: int) -> list[str]:
        rule, most = lifetimes, _bound(now, lifetimes.most_after_create)
        looks: list[tuple[str, tuple[int, ...]]] = []
        if rule.after_create is not None or rule.most_after_create is not None:
            looks.append(("threads_outlived_by_creation", (max(most, _bound(now, rule.after_create)), most)))
        if rule.after_last_activity is not None:
            looks.append(("threads_outlived_by_activity", (_bound(now, rule.after_last_activity),)))
        if rule.on_completion:
            looks.append(("threads_completed_by_default", ()))
        found: dict[str, None] = {}
        for name, bounds in looks:
            found |= {thread_id: None for (thread_id,) in await self._session.all(name, tenant, *bounds, limit)}
        return list(found)[:limit]

    async def expired(self, now: datetime, *, limit: int) -> list[tuple[str, str]]:
        rows = await self._session.all("threads_expired", micros(now), limit)
        return [(tenant, thread_id) for tenant, thread_id in rows]

    async def clear_tombstones(self, before: datetime, *, limit: int) -> int:
        return await self._session.run("threads_clear_tombstones", micros(before), limit)

    async def _hold_forks(self, tenant: str, thread_id: str) -> list[str]:
        """Locks all other threads that show a thread's log, those included that began to while this waited."""
        held: list[str] = []
        while True:
            rows = await self._session.all("segments_of_log", tenant, thread_id)
            new = [fork_id for (fork_id,) in rows if fork_id not in {thread_id, *held}]
            if not new:
                return held
            for fork_id in new:
                await self._session.hold("threads_hold", tenant, fork_id)
            held += new

    async def _reseal_overrides(self, tenant: str, thread_id: str) -> None:
        """The origin's key may go before the fork does."""
        if self._keys.cache is None:
            return
        for sequence, message_id, body in await self._session.all("overrides_of_thread", tenant, thread_id):
            if not await self._bodies.is_current(tenant, body, thread_id=thread_id):
                plain = await self._bodies.open_one("messages", tenant, (message_id,), body)
                sealed = await self._bodies.seal("messages", tenant, (message_id,), plain, thread_id=thread_id)
                await self._session.run("overrides_reseal", tenant, thread_id, sequence, body, sealed)

    async def _seal(self, tenant: str, thread: Thread) -> bytes:
        return await self._bodies.seal("threads", tenant, (thread.id,), thread.SerializeToString(), thread_id=thread.id)

    async def _threads(self, tenant: str, rows: Sequence[Row]) -> list[Thread]:
        bodies = await self._bodies.open("threads", [(tenant, (row[0],), row[4]) for row in rows])
        return [_thread(row, body) for row, body in zip(rows, bodies, strict=True)]

    async def _insert(self, tenant: str, thread: Thread, *, first_sequence: int, messages: int = 0) -> None:
        next_sequence = first_sequence + messages
        thread.etag = etag(1)
        thread.active_run_id = ""
        thread.last_message_sequence = next_sequence - 1
        row = (
            tenant,
            thread.id,
            thread.user_id,
            stamp_micros(thread.last_activity_time),
            next_sequence,
            stamp_micros(thread.create_time),
            *_kept(thread),
            await self._seal(tenant, thread),
        )
        await self._session.post("threads_insert", [row])
        await self._session.post("segments_insert", [(tenant, thread.id, first_sequence, END)])
        await self._insert_metadata(tenant, thread)

    async def _insert_metadata(self, tenant: str, thread: Thread) -> None:
        pairs = [(tenant, thread.id, key, value) for key, value in thread.metadata.items()]
        await self._session.post("thread_metadata_insert", pairs)

    async def _page(self, tenant: str, which: ThreadFilter, after: Cursor | None, limit: int) -> Sequence[Row]:
        since = NEVER if which.active_after is None else micros(which.active_after)
        below = before(after)
        if which.active_before is not None:
            below = min(below, (micros(which.active_before), ""))
        bounds = (since, *below, limit)
        if which.metadata:
            wanted = msgspec.json.encode(list(which.metadata.items())).decode()
            count = len(which.metadata)
            return await self._session.all("threads_page_with_metadata", tenant, *bounds, which.user_id, wanted, count)
        if which.user_id:
            return await self._session.all("threads_page_of_user", tenant, *bounds, which.user_id)
        return await self._session.all("threads_page", tenant, *bounds)


def _kept(thread: Thread) -> tuple[int | None, int | None, bool | None]:
    """How long the thread itself says that it is kept, and whether it goes with its last run."""
    own = thread.retention
    return (
        own.after_create.ToMicroseconds() if own.HasField("after_create") else None,
        own.after_last_activity.ToMicroseconds() if own.HasField("after_last_activity") else None,
        own.on_completion if own.HasField("on_completion") else None,
    )


def _bound(now: datetime, kept: timedelta | None) -> int:
    """What is older than this is kept no longer; nothing is where all is kept for ever."""
    return NEVER if kept is None else micros(now - kept)


def _outline(thread_id: str, row: Row) -> Thread:
    version, user_id, created, last_activity, after_create, after_activity, completes, active_run_id = row
    thread = Thread(id=thread_id, user_id=user_id, etag=etag(version), active_run_id=active_run_id or "")
    thread.create_time.CopyFrom(timestamp(created))
    thread.last_activity_time.CopyFrom(timestamp(last_activity))
    if after_create is not None:
        thread.retention.after_create.FromMicroseconds(after_create)
    if after_activity is not None:
        thread.retention.after_last_activity.FromMicroseconds(after_activity)
    if completes is not None:
        thread.retention.on_completion = bool(completes)
    return thread


def _thread(row: Row, body: bytes) -> Thread:
    _, version, last_activity, next_sequence, _, active_run_id = row
    thread = Thread.FromString(body)
    thread.etag = etag(version)
    thread.last_activity_time.CopyFrom(timestamp(last_activity))
    thread.last_message_sequence = next_sequence - 1
    thread.active_run_id = active_run_id or ""
    return thread
