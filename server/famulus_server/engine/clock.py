"""Time and ids: injected everywhere, so that tests can hold them."""

import os
from collections.abc import Callable
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from famulus_server.ports import Clock

# Crockford's base 32: no vowels but A and E, no digit that looks like a letter; sorts as its bytes do.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
# For each byte the digit of its last five bits.
_DIGITS = (_ALPHABET * 8).encode()


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Now, in UTC."""
        return datetime.now(UTC)


class TimeOrderedIds:
    """Ids that sort by time: 48 bits of milliseconds, then 80 random bits (as a ULID has them)."""

    def __init__(self, *, clock: Clock, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self._clock = clock
        self._entropy = entropy

    def new(self, prefix: str) -> str:
        """`prefix_` and 26 characters."""
        milliseconds = int(self._clock.now().timestamp() * 1_000)
        moment = "".join([_PAIRS[milliseconds >> shift & 1023] for shift in (40, 30, 20, 10, 0)])
        return f"{prefix}_{moment}{self._entropy(16).translate(_DIGITS).decode()}"


def timestamp(moment: datetime) -> Timestamp:
    """The protobuf form of a moment."""
    # The library's own way takes four times as long, and a run has some thirty moments.
    since = moment - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)
