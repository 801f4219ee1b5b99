"""What Redis gives back as a thread's context, behind the seal that would find out most damage."""

from famulus.v1.message_pb2 import Message
from famulus_server.coordination.context_entries import TOMBSTONE, Unreadable, decode, encode
from famulus_server.ports import Remembered

_MAX_BYTES = 1_000_000


class _NoSeal:
    def seal(self, plain: bytes, context: bytes) -> bytes:
        return plain

    def open(self, sealed: bytes, context: bytes) -> bytes:
        return sealed


def _seed(*sequences: int) -> bytes:
    messages = [Message(id=f"msg_{sequence}", sequence=sequence) for sequence in sequences]
    remembered = Remembered(revision=3, upto=max(sequences), floor=0, first=messages[0], messages=messages)
    value = encode("t", "thread_1", remembered, sealer=_NoSeal(), max_bytes=_MAX_BYTES)
    assert value is not None
    return value


SEEDS = (TOMBSTONE, _seed(1), _seed(1, 2, 3))


def try_input(data: bytes) -> None:
    try:
        remembered = decode("t", "thread_1", data, sealer=_NoSeal())
    except Unreadable:
        return
    if remembered is None or not remembered.messages:
        return
    again = encode("t", "thread_1", remembered, sealer=_NoSeal(), max_bytes=_MAX_BYTES)
    assert again is not None
    assert decode("t", "thread_1", again, sealer=_NoSeal()) == remembered
