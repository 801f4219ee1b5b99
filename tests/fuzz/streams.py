"""What the targets of both wire formats share."""

from hostile.streams import Api, cut, good_streams, read

_PIECE_BYTES = 8  # for each step of the first byte of an input


def stream_seeds(api: Api) -> list[bytes]:
    """Whole streams, behind the byte that says how they are cut."""
    return [bytes([number]) + stream for number, stream in enumerate(good_streams(api))]


def check_stream(api: Api, data: bytes) -> None:
    """The stream means the same, and be it a typed failure, whole and in pieces."""
    size, stream = (data[0] + 1) * _PIECE_BYTES if data else 1, data[1:]
    assert read(api, [stream]) == read(api, cut(stream, range(size, len(stream), size)))
