"""What Redis answers to scripts, read where it arrives: no task waits for it."""

import asyncio
from collections.abc import Callable, Iterator

from redis.exceptions import ResponseError

Answer = bytes | int | ResponseError | None

# An answer of a script is far shorter.
_LONGEST = 64 * 1024


class Answers(asyncio.Protocol):
    """Reads a connection that `before` has read until now. Each answer is `heard`; the connection is `lost` once the
    other side has ended it, or has sent what no script answers."""

    def __init__(
        self, *, before: asyncio.BaseProtocol, heard: Callable[[Answer], None], lost: Callable[[str], None]
    ) -> None:
        self._before = before
        self._heard = heard
        self._lost = lost
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        self._rest += data
        try:
            for answer, rest in _read(self._rest):
                self._rest = rest
                self._heard(answer)
        except ValueError:
            self._lost("unknown answer")

    def connection_lost(self, error: Exception | None) -> None:
        # Whoever closes the connection waits for that.
        self._before.connection_lost(error)
        self._lost("connection lost")


def _read(data: bytes) -> Iterator[tuple[Answer, bytes]]:
    """The answers that are there as a whole, each with what comes behind it. Raises ValueError."""
    while data:
        line, ended, rest = data.partition(b"\r\n")
        if not ended:
            if len(data) > _LONGEST:
                raise ValueError("too long")
            return
        kind, told = line[:1], line[1:]
        answer: Answer
        if kind == b"-":
            answer = ResponseError(told.decode(errors="replace"))
        elif kind == b":":
            answer = int(told)
        elif kind == b"_" or line == b"$-1":
            answer = None
        elif kind == b"$" and 0 <= (length := int(told)) <= _LONGEST:
            if len(rest) < length + 2:
                return
            answer, rest = rest[:length], rest[length + 2 :]
        else:
            raise ValueError("unknown")
        yield answer, rest
        data = rest
