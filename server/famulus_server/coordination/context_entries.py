"""What is remembered of a thread, as one value: a line of numbers by which Redis compares two of them, and the rest.

    1 REVISION UPTO FLOOR \\n sealed(head, tenant, thread, first message, messages)

The line stands in the sealed part once more, so that nobody can give an old value a new revision.
"""

import re
import zlib
from collections.abc import Sequence

import msgspec
from google.protobuf.message import DecodeError

from famulus.v1.message_pb2 import Message
from famulus_server.ports import Remembered, Sealer

# Before the first digit: the version of this format.
_HEAD = re.compile(rb"1 (\d{1,19}) (\d{1,19}) (\d{1,19})")
_NEWEST_OF_ALL = 2**63 - 1
# What frames a message, or all of them together, at most.
_FRAME_BYTES = 5
_ENVELOPE_BYTES = 512
_CHECKSUM_BYTES = 4

# In place of a deleted thread's: nothing is newer, and there is nothing in it.
TOMBSTONE = f"1 {_NEWEST_OF_ALL} 0 0\n".encode()


class Unreadable(Exception):
    """What is there is damaged, of another format, or not ours."""


class Checksum:
    """The Sealer where nothing is secret: it finds damage."""

    def seal(self, plain: bytes, context: bytes) -> bytes:  # noqa: ARG002 - what is sealed says what it is
        return zlib.crc32(plain).to_bytes(_CHECKSUM_BYTES) + plain

    def open(self, sealed: bytes, context: bytes) -> bytes:  # noqa: ARG002 - as above
        plain = sealed[_CHECKSUM_BYTES:]
        if sealed[:_CHECKSUM_BYTES] != zlib.crc32(plain).to_bytes(_CHECKSUM_BYTES):
            raise ValueError("damaged")
        return plain


class _Body(msgspec.Struct, array_like=True, frozen=True):
    head: bytes
    tenant: str
    thread_id: str
    first: bytes | None
    messages: list[bytes]


def encode(tenant: str, thread_id: str, remembered: Remembered, *, sealer: Sealer, max_bytes: int) -> bytes | None:
    """The value. Where it would be larger, the oldest messages are left out; None where not even one fits."""
    messages = [message.SerializeToString() for message in remembered.messages]
    fitting, room = _fitting(messages, max_bytes - _ENVELOPE_BYTES)
    if not fitting:
        return None
    floor, oldest = remembered.floor, remembered.first
    left_out = remembered.messages[: len(messages) - fitting]
    if left_out:
        # All messages above a floor of 0 are all there are.
        oldest = oldest or (left_out[0] if floor <= 0 else None)
        floor = left_out[-1].sequence
    first = None if oldest is None else oldest.SerializeToString()
    if first is not None and len(first) + _FRAME_BYTES > room:
        first = None
    head = f"1 {remembered.revision} {remembered.upto} {floor}".encode()
    body = _Body(head, tenant, thread_id, first, messages[-fitting:])
    return head + b"\n" + sealer.seal(msgspec.msgpack.encode(body), head)


def decode(tenant: str, thread_id: str, value: bytes, *, sealer: Sealer) -> Remembered | None:
    """What the value says of this thread; None where it is a tombstone. Raises Unreadable."""
    head, _, sealed = value.partition(b"\n")
    numbers = _HEAD.fullmatch(head)
    if numbers is None:
        raise Unreadable
    if not sealed:
        return None
    try:
        body = msgspec.msgpack.decode(sealer.open(sealed, head), type=_Body)
        if (body.head, body.tenant, body.thread_id) != (head, tenant, thread_id):
            raise Unreadable
        first = None if body.first is None else Message.FromString(body.first)
        messages = [Message.FromString(message) for message in body.messages]
    except (ValueError, msgspec.DecodeError, DecodeError) as error:
        raise Unreadable from error
    revision, upto, floor = map(int, numbers.groups())
    return Remembered(revision=revision, upto=upto, floor=floor, first=first, messages=messages)


def _fitting(messages: Sequence[bytes], room: int) -> tuple[int, int]:
    """How many of the newest messages have room, and what room is left."""
    count = 0
    for message in reversed(messages):
        if len(message) + _FRAME_BYTES > room:
            break
        room -= len(message) + _FRAME_BYTES
        count += 1
    return count, room
