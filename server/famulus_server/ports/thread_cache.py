"""The port to what is remembered of threads for their next run. It may be lost, and is never trusted (contract 2)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from famulus.v1.message_pb2 import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """The messages of a thread with a sequence above `floor` and up to `upto`, all of them, oldest first, as they were
    when `revision` counted its changes other than new messages. `upto` is the sequence of the last of them; `first` is
    the thread's oldest message, where that is known and not among these."""

    revision: int
    floor: int
    upto: int
    messages: Sequence[Message] = field(default=())
    first: Message | None = None


class ThreadCache(Protocol):
    """Never raises, and never takes long: at most 50 ms, a few times."""

    async def get(self, tenant: str, thread_id: str) -> Remembered | None:
        """What is remembered, if anything is. Compare it with what the store says now."""

    def note_stale(self) -> None:
        """What `get` gave was compared, and no longer holds: to be counted."""

    def put(self, tenant: str, thread_id: str, remembered: Remembered) -> None:
        """Remembers it, unless something newer is remembered. Returns at once; what is too large is not kept."""

    def forget(self, tenant: str, thread_id: str) -> None:
        """Nothing of the thread is to be kept any longer: it was deleted. Returns at once."""
