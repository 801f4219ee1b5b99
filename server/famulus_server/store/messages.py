"""Messages in SQL, as one thread sees them through its segments and overrides; see `queries.sql`."""

from collections.abc import Sequence
from datetime import datetime

from famulus.v1.message_pb2 import Message
from famulus_server.errors import NotFound
from famulus_server.store.bodies import SqlBodies
from famulus_server.store.columns import END, NEVER, etag, micros
from famulus_server.store.session import Row, Session


class SqlMessages:
    """See `ports.Messages`."""

    def __init__(self, session: Session, bodies: SqlBodies) -> None:
        self._session = session
        self._bodies = bodies

    async def append(
        self, tenant: str, thread_id: str, messages: Sequence[Message], *, now: datetime | None = None
    ) -> None:
        active_at = NEVER if now is None else micros(now)
        row = await self._session.one("threads_take_sequences", tenant, thread_id, len(messages), active_at)
        if row is None:
            raise NotFound("thread", thread_id)
        await self.put(tenant, thread_id, messages, first=row[0] - len(messages))

    async def put(self, tenant: str, thread_id: str, messages: Sequence[Message], *, first: int) -> None:
        for sequence, message in enumerate(messages, first):
            message.thread_id = thread_id
            message.sequence = sequence
            message.etag = etag(1)
        await self._session.post(
            "messages_insert",
            [
                (tenant, thread_id, message.sequence, message.id, message.run_id, await self._seal(tenant, message))
                for message in messages
            ],
        )

    async def get(self, tenant: str, thread_id: str, message_id: str, *, lock: bool = False) -> Message:
        if lock:
            await self._session.hold("threads_hold", tenant, thread_id)
        row = await self._row(tenant, thread_id, message_id, lock=lock)
        [message] = await self._messages(tenant, thread_id, [row[:4]])
        return message

    async def page(
        self,
        tenant: str,
        thread_id: str,
        *,
        limit: int,
        after_sequence: int = 0,
        before_sequence: int | None = None,
        descending: bool = False,
        run_id: str = "",
    ) -> list[Message]:
        bounds = (after_sequence, END if before_sequence is None else before_sequence)
        if run_id:
            rows = await self._session.all("messages_of_run", tenant, thread_id, *bounds, run_id)
            rows = rows[::-1][:limit] if descending else rows[:limit]
        else:
            name = "messages_descending" if descending else "messages_ascending"
            rows = await self._session.all(name, tenant, thread_id, *bounds, limit)
        return await self._messages(tenant, thread_id, rows)

    async def newest(
        self, tenant: str, thread_id: str, *, limit: int, after_sequence: int = 0
    ) -> tuple[int, list[Message]]:
        rows = await self._session.all("messages_newest", tenant, thread_id, after_sequence, limit)
        revision = rows[0][0] if rows else 0
        return revision, await self._messages(tenant, thread_id, [row[1:] for row in rows if row[1] is not None])

    async def replace(self, tenant: str, thread_id: str, message: Message) -> None:
        row = await self._revise(tenant, thread_id, message.id)
        _, sequence, version, _, log_id, overridden = row
        message.thread_id = thread_id
        message.sequence = sequence
        message.etag = etag(version + 1)
        if overridden or await self._seen_elsewhere(tenant, thread_id, log_id, sequence):
            body = await self._seal(tenant, message)
            await self._session.run("overrides_put", tenant, thread_id, sequence, False, version + 1, body)
        else:
            # With the key of those who see it, which may be others' than this thread's.
            body = await self._seal(tenant, message, log_id)
            await self._session.run("messages_replace", tenant, log_id, sequence, version + 1, body)

    async def delete(self, tenant: str, thread_id: str, message_id: str) -> None:
        row = await self._revise(tenant, thread_id, message_id)
        _, sequence, version, _, log_id, _ = row
        if await self._seen_elsewhere(tenant, thread_id, log_id, sequence):
            await self._session.run("overrides_put", tenant, thread_id, sequence, True, version + 1, b"")
        else:
            await self._session.run("overrides_delete", tenant, thread_id, sequence)
            await self._session.run("messages_delete", tenant, log_id, sequence)

    async def _revise(self, tenant: str, thread_id: str, message_id: str) -> Row:
        """The row of a message that is about to change. The change holds for this thread only, and is counted for it
        only: what other threads see of the same log stays as it is."""
        await self._session.run("threads_revise", tenant, thread_id)
        return await self._row(tenant, thread_id, message_id, lock=True)

    async def _row(self, tenant: str, thread_id: str, message_id: str, *, lock: bool) -> Row:
        # Where it is to change, its thread is locked before, which keeps forks away; the message keeps those other
        # threads away that see it.
        row = await self._session.one("messages_get", tenant, thread_id, message_id, lock=lock)
        if row is None:
            raise NotFound("message", message_id)
        return row

    async def _seen_elsewhere(self, tenant: str, thread_id: str, log_id: str, sequence: int) -> bool:
        row = await self._session.one("messages_seen_elsewhere", tenant, log_id, thread_id, sequence)
        return row is not None

    async def _seal(self, tenant: str, message: Message, log_id: str = "") -> bytes:
        """Sealed with the key of its log, that of its thread unless another one is given. An override is sealed as the
        message itself: who reads does not know which he reads."""
        plain = message.SerializeToString()
        return await self._bodies.seal("messages", tenant, (message.id,), plain, thread_id=log_id or message.thread_id)

    async def _messages(self, tenant: str, thread_id: str, rows: Sequence[Row]) -> list[Message]:
        bodies = await self._bodies.open("messages", [(tenant, (row[0],), row[3]) for row in rows])
        return [
            _message(thread_id, sequence, version, body)
            for (_, sequence, version, _), body in zip(rows, bodies, strict=True)
        ]


def _message(thread_id: str, sequence: int, version: int, body: bytes) -> Message:
    message = Message.FromString(body)
    message.thread_id = thread_id
    message.sequence = sequence
    message.etag = etag(version)
    return message
