"""Just enough of HTTP/2 to send what client libraries refuse to."""

import socket
import struct
from collections.abc import Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4
_STREAM = 1


def call(address: str, path: str, message: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Calls a method with these headers besides the usual ones; returns what came back until the server ended the call,
    or the connection."""
    host, _, port = address.rpartition(":")
    usual = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", address.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
    block = b"".join(literal(name, value) for name, value in (*usual, *headers))
    body = struct.pack(">BI", 0, len(message)) + message
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            PREFACE
            + frame(SETTINGS, 0, 0, b"")
            + frame(HEADERS, END_HEADERS, _STREAM, block)
            + frame(DATA, END_STREAM, _STREAM, body)
        )
        received = b""
        while not _has_ended(received):
            part = connection.recv(65_536)
            if not part:
                break
            received += part
    return received


def _has_ended(received: bytes) -> bool:
    at = 0
    while at + 9 <= len(received):
        length = int.from_bytes(received[at : at + 3])
        kind, flags = received[at + 3], received[at + 4]
        if kind in {RST_STREAM, GOAWAY} or (kind == HEADERS and flags & END_STREAM):
            return at + 9 + length <= len(received)
        at += 9 + length
    return False


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """The bytes of a frame."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header of at most 126 bytes, as it is."""
    return bytes([0, len(name)]) + name + bytes([len(value)]) + value
