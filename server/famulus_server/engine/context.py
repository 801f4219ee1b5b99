"""A thread's messages as the input of a turn needs them: what is remembered of them, and the rest from the store.

What is remembered counts only where the store confirms it, in the snapshot that everything else is read from: no
message was changed or removed since (the revision), and the newest remembered message stands there as remembered. Then
all that can be new is behind it.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from famulus.v1.message_pb2 import Message
from famulus_server.ports import Remembered, Transaction

_PAGE = 200


class Context:
    """A thread at one moment. Make it by `recall`, or by `whole`.

    All messages above `floor` are known; those below are read where they are asked for. `stale` says that something was
    remembered which no longer holds.
    """

    def __init__(
        self,
        *,
        page: Callable[..., Awaitable[list[Message]]],
        revision: int,
        floor: int,
        messages: Sequence[Message],
        first: Message | None = None,
        stale: bool = False,
    ) -> None:
        self.stale = stale
        self._page = page
        self._revision = revision
        self._floor = floor
        self._messages = list(messages)
        self._first = first

    async def first(self) -> Message | None:
        """The oldest message."""
        if self._floor <= 0:
            return self._messages[0] if self._messages else None
        if self._first is None:
            found = await self._page(limit=1)
            self._first = found[0] if found else None
        return self._first

    async def older(self, count: int, *, after: int, before: int | None) -> list[Message]:
        """Some of the newest messages between two sequences, newest first and at most so many; an empty list only where
        there are none. The store is asked where none of them is known."""
        known = self._between(after, before)
        if known or self._floor <= after:
            return known[-count:][::-1]
        below = self._floor + 1 if before is None else min(before, self._floor + 1)
        page = await self._page(limit=count, after_sequence=after, before_sequence=below, descending=True)
        if below == self._floor + 1:
            self._floor = after if len(page) < count else page[-1].sequence - 1
            self._messages[:0] = page[::-1]
        return page

    async def behind(self, sequence: int) -> list[Message]:
        """All messages behind a sequence, oldest first."""
        newer: list[Message] = []
        while sequence < self._floor:
            page = await self._page(limit=_PAGE, after_sequence=sequence, before_sequence=self._floor + 1)
            newer += page
            sequence = page[-1].sequence if len(page) == _PAGE else self._floor
        return newer + self._between(sequence, None)

    def since(self, oldest: int) -> Remembered:
        """What is worth remembering of a window that begins with this message: all from it on, the one before it, which
        ends the window of the next run as well, and the very first one; the last two where they are known."""
        number = next(number for number, message in enumerate(self._messages) if message.sequence == oldest)
        start = max(0, number - 1)
        return Remembered(
            revision=self._revision,
            floor=self._messages[start - 1].sequence if start else self._floor,
            upto=self._messages[-1].sequence,
            messages=self._messages[start:],
            first=self._messages[0] if start and self._floor <= 0 else self._first,
        )

    def _between(self, after: int, before: int | None) -> list[Message]:
        return [
            message
            for message in self._messages
            if message.sequence > after and (before is None or message.sequence < before)
        ]


async def recall(tx: Transaction, tenant: str, thread_id: str, remembered: Remembered | None, *, count: int) -> Context:
    """The thread as it is now, by one statement; `count` is how many of its newest messages are about to be asked for,
    at least 1. `remembered` may be of any age."""
    # The newest message that is remembered is read again, to be compared.
    after = remembered.upto - 1 if remembered else 0
    revision, newest = await tx.messages.newest(tenant, thread_id, limit=count, after_sequence=after)
    messages = newest[::-1]
    complete = len(newest) < count
    floor = after if complete else messages[0].sequence - 1
    first = None
    stale = False
    if remembered is not None:
        stands = revision == remembered.revision
        if stands and messages[:1] == list(remembered.messages[-1:]):
            floor, first = remembered.floor, remembered.first
            messages[:1] = remembered.messages
        else:
            # Otherwise what is new is all that was asked for.
            stale = complete or not stands
    return Context(
        page=partial(tx.messages.page, tenant, thread_id),
        revision=revision,
        floor=floor,
        messages=messages,
        first=first,
        stale=stale,
    )


def whole(thread: Remembered) -> Context:
    """A thread of which everything is known for certain: nothing is read."""
    return Context(page=_nothing, revision=thread.revision, floor=thread.floor, messages=thread.messages)


async def _nothing(**_: object) -> list[Message]:
    return []
