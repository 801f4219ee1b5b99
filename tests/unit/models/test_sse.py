"""The SSE decoder."""

import tracemalloc
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from famulus_server.errors import ModelProtocolError
from famulus_server.models.sse import SseDecoder

STREAM = (
    b': ping\r\n\r\nevent: a\r\ndata: {"a":1}\r\n\r\ndata:{"b":2}\n\ndata: one\ndata: two\n\rid: 7\n\ndata: [DONE]\r\r'
)
EVENTS = [b'{"a":1}', b'{"b":2}', b"one\ntwo", b"[DONE]"]


def decoder(limit: int = 1_000) -> SseDecoder:
    return SseDecoder(max_line_bytes=limit)


def feed_all(sse: SseDecoder, pieces: Iterable[bytes]) -> list[bytes]:
    return [event for piece in pieces for event in sse.feed(piece)]


@given(st.lists(st.integers(0, len(STREAM))))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert feed_all(decoder(), [STREAM[at:to] for at, to in pairwise(edges)]) == EVENTS


def test_comments_and_other_fields_are_no_events() -> None:
    assert decoder().feed(b": ping\n\nevent: x\n\nretry: 5\nid: 1\n\n") == []


def test_event_without_its_empty_line_never_happened() -> None:
    assert decoder().feed(b"data: whole\n\ndata: half\n") == [b"whole"]


@pytest.mark.parametrize("line", [b"x" * 100_000, b"data: " + b"x" * 100_000 + b"\n\n", b"data: xxxx\n" * 10_000])
def test_line_or_event_over_the_limit_is_refused(line: bytes) -> None:
    pieces = [line[at : at + 64] for at in range(0, len(line), 64)]
    with pytest.raises(ModelProtocolError):
        feed_all(decoder(), pieces)


def test_line_at_the_limit_is_taken() -> None:
    assert decoder(limit=10).feed(b"data: 4444\n\n") == [b"4444"]


def test_endless_line_takes_no_more_memory_than_the_limit() -> None:
    sse = decoder(limit=1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(ModelProtocolError):
            feed_all(sse, (b"x" * 1_000 for _ in range(20_000)))
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()
