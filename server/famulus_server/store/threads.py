"""Threads in SQL. A fork refers to its origin's messages by segments; see `queries.sql`."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from famulus.v1.thread_pb2 import Thread
from famulus_server.errors import NotFound
from famulus_server.ports import Cursor, ThreadFilter
from famulus_server.store.bodies import SqlBodies
from famulus_server.store.columns import END, before, etag, micros, stamp_micros, timestamp
from famulus_server.store.data_keys import SqlDataKeys
from famulus_server.store.session import Row, Session


class SqlThreads:
    """See `ports.Threads`."""

    def __init__(self, session: Session, bodies: SqlBodies, keys: SqlDataKeys) -> None:
        self._session = session
        self._bodies = bodies
        self._keys = keys

    async def insert(self, tenant: str, thread: Thread) -> None:
        await self._insert(tenant, thread, next_sequence=1)

    async def get(self, tenant: str, thread_id: str, *, lock: bool = False) -> Thread:
        if lock:
            await self._session.hold("threads_hold", tenant, thread_id)
        row = await self._session.one("threads_get", tenant, thread_id)
        if row is None:
            raise NotFound("thread", thread_id)
        [thread] = await self._threads(tenant, [row])
        return thread

    async def page(self, tenant: str, which: ThreadFilter, *, after: Cursor | None, limit: int) -> list[Thread]:
        return await self._threads(tenant, await self._page(tenant, which, after, limit))

    async def replace(self, tenant: str, thread: Thread) -> None:
        row = await self._session.one("threads_replace", tenant, thread.id, await self._seal(tenant, thread))
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
        await self._insert(tenant, thread, next_sequence=upto + 1)

    async def bury(self, tenant: str, thread_id: str, now: datetime) -> None:
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
        logs = [log_id for (log_id,) in await self._session.all("segments_delete", tenant, thread_id)]
        for log_id in sorted(logs, reverse=True):
            await self._session.hold("threads_hold", tenant, log_id)
            await self._session.run("messages_delete_unreferred", tenant, log_id)
            await self._session.run("messages_delete_hidden", tenant, log_id)
            await self._keys.remove_of_log(tenant, log_id)

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

    async def _insert(self, tenant: str, thread: Thread, *, next_sequence: int) -> None:
        thread.etag = etag(1)
        thread.active_run_id = ""
        thread.last_message_sequence = next_sequence - 1
        await self._session.run(
            "threads_insert",
            tenant,
            thread.id,
            thread.user_id,
            stamp_micros(thread.last_activity_time),
            next_sequence,
            await self._seal(tenant, thread),
        )
        await self._session.run("segments_insert", tenant, thread.id, next_sequence, END)
        await self._insert_metadata(tenant, thread)

    async def _insert_metadata(self, tenant: str, thread: Thread) -> None:
        if thread.metadata:
            pairs = [(tenant, thread.id, key, value) for key, value in thread.metadata.items()]
            await self._session.run_many("thread_metadata_insert", pairs)

    async def _page(self, tenant: str, which: ThreadFilter, after: Cursor | None, limit: int) -> Sequence[Row]:
        since = -END if which.active_after is None else micros(which.active_after)
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


def _thread(row: Row, body: bytes) -> Thread:
    _, version, last_activity, next_sequence, _, active_run_id = row
    thread = Thread.FromString(body)
    thread.etag = etag(version)
    thread.last_activity_time.CopyFrom(timestamp(last_activity))
    thread.last_message_sequence = next_sequence - 1
    thread.active_run_id = active_run_id or ""
    return thread
