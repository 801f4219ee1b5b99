"""Server-sent events: bytes in, the data of whole events out. Both wire formats share it."""

from famulus_server.errors import ModelProtocolError


class SseDecoder:
    """Cuts a stream of bytes into the data of its events.

    Names and ids of events are not looked at, since the data says what it is; comments are no events. An event that
    is not closed by an empty line when the stream ends never happened.
    """

    def __init__(self, *, max_line_bytes: int) -> None:
        """`max_line_bytes` also bounds an event of several lines, and so the memory."""
        self._limit = max_line_bytes
        self._tail = bytearray()
        self._data: list[bytes] = []
        self._held = 0
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that this chunk completed. Raises ModelProtocolError for a line over the limit."""
        if self._after_cr or b"\r" in chunk:
            chunk = self._unify_newlines(chunk)
        *lines, rest = chunk.split(b"\n")
        if lines and self._tail:
            lines[0] = bytes(self._tail) + lines[0]
            self._tail.clear()
        if rest:
            self._tail += rest
            if len(self._tail) > self._limit:
                self._refuse()
        events: list[bytes] = []
        for line in lines:
            if line[:5] == b"data:":
                self._held += len(line)
                if self._held > self._limit:
                    self._refuse()
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line and self._data:
                events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data.clear()
                self._held = 0
        return events

    def _unify_newlines(self, chunk: bytes) -> bytes:
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]  # the second half of a \r\n that two reads tore apart
        self._after_cr = chunk[-1:] == b"\r"
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _refuse(self) -> None:
        raise ModelProtocolError(f"a line or event of more than {self._limit} bytes")
