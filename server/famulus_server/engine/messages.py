"""What callers can do with the messages of a thread."""

from collections.abc import Sequence
from datetime import datetime

from famulus.v1.message_pb2 import Message, MessageState
from famulus.v1.run_pb2 import Run
from famulus_server.engine.clock import timestamp
from famulus_server.engine.etags import check_etag
from famulus_server.engine.fields import copy_fields, copy_of
from famulus_server.ports import Clock, Ids, RequestKey, Store, Transaction

# Messages of one run that are shown together.
_MAX_OF_RUN = 1_000
# What a caller can set.
_SETTABLE = ("role", "content", "attachments", "metadata")


def prepare(messages: Sequence[Message], *, ids: Ids, now: datetime) -> list[Message]:
    """Messages of a caller, ready to be stored."""
    return [_prepare(message, ids=ids, now=now) for message in messages]


async def messages_of(tx: Transaction, tenant: str, run: Run) -> list[Message]:
    """The messages that a run wrote, in order; of very many the newest."""
    newest = await tx.messages.page(tenant, run.thread_id, run_id=run.id, limit=_MAX_OF_RUN, descending=True)
    return newest[::-1]


def _prepare(message: Message, *, ids: Ids, now: datetime) -> Message:
    result = Message()
    copy_fields(message, result, _SETTABLE)
    for part in result.content:
        if part.HasField("text"):
            part.text.ClearField("annotations")
    result.id = ids.new("msg")
    result.create_time.CopyFrom(timestamp(now))
    result.state = MessageState.MESSAGE_STATE_COMPLETED
    return result


class MessageDesk:
    """Messages: append, read, change, delete."""

    def __init__(self, *, store: Store, clock: Clock, ids: Ids) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids

    async def create(self, tenant: str, thread_id: str, message: Message, key: RequestKey | None) -> Message:
        """Appends a message. Always accepted; an active run sees it at its next turn (contract 6)."""
        now = self._clock.now()
        made = prepare([message], ids=self._ids, now=now)[0]

        async def unit(tx: Transaction) -> Message:
            if key is not None:
                known = await tx.requests.find(tenant, key)
                if known is not None:
                    return await tx.messages.get(tenant, thread_id, known)
            stored = copy_of(made)
            await tx.messages.append(tenant, thread_id, [stored], now=now)
            if key is not None:
                await tx.requests.remember(tenant, key, stored.id)
            return stored

        return await self._store.write(unit)

    async def get(self, tenant: str, thread_id: str, message_id: str) -> Message:
        """Raises NotFound."""
        return await self._store.read(lambda tx: tx.messages.get(tenant, thread_id, message_id))

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
        """Messages with after_sequence < sequence < before_sequence. Raises NotFound where there is no such thread."""

        async def unit(tx: Transaction) -> list[Message]:
            await tx.threads.get(tenant, thread_id)
            return await tx.messages.page(
                tenant,
                thread_id,
                limit=limit,
                after_sequence=after_sequence,
                before_sequence=before_sequence,
                descending=descending,
                run_id=run_id,
            )

        return await self._store.read(unit)

    async def update(self, tenant: str, thread_id: str, message: Message) -> Message:
        """Replaces the metadata, for this thread."""

        async def unit(tx: Transaction) -> Message:
            current = await tx.messages.get(tenant, thread_id, message.id, lock=True)
            check_etag(message.etag, current.etag)
            current.ClearField("metadata")
            current.metadata.update(message.metadata)
            await tx.messages.replace(tenant, thread_id, current)
            return current

        return await self._store.write(unit)

    async def delete(self, tenant: str, thread_id: str, message_id: str) -> None:
        """Raises NotFound."""
        await self._store.write(lambda tx: tx.messages.delete(tenant, thread_id, message_id))
