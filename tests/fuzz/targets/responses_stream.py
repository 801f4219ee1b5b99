"""A stream of the Responses API, from bytes to what is stored, whole and in pieces."""

from fuzz.streams import check_stream, stream_seeds

SEEDS = stream_seeds("responses")


def try_input(data: bytes) -> None:
    check_stream("responses", data)
