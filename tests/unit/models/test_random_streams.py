"""Streams of models, cut and garbled: read as they are meant, or a typed failure, and nothing else."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from famulus_server.errors import ModelError, ModelProtocolError
from hostile.strategies import garbled, with_odd_values
from hostile.streams import Api, cut, good_streams, read

EXAMPLES = 120
both = pytest.mark.parametrize("api", get_args(Api))
places = st.lists(st.integers(0, 2**16), max_size=12)


@both
def test_good_streams_are_read_to_their_end(api: Api) -> None:
    for stream in good_streams(api):
        assert isinstance(read(api, [stream]), tuple), stream


@both
@settings(max_examples=EXAMPLES)
@given(data=st.data(), at=places)
def test_stream_means_the_same_however_it_is_cut(api: Api, data: st.DataObject, at: list[int]) -> None:
    stream = data.draw(st.sampled_from(good_streams(api)))
    assert read(api, cut(stream, at)) == read(api, [stream])


@both
@settings(max_examples=EXAMPLES)
@given(data=st.data(), at=places)
def test_garbled_stream_is_read_or_fails_with_a_model_error(api: Api, data: st.DataObject, at: list[int]) -> None:
    streams = st.sampled_from(good_streams(api))
    stream = data.draw(garbled(streams) | streams.flatmap(with_odd_values) | st.binary(max_size=200))
    assert read(api, cut(stream, at)) == read(api, [stream])


@both
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_stream_that_breaks_off_never_counts_as_complete(api: Api, data: st.DataObject) -> None:
    stream = data.draw(st.sampled_from(good_streams(api)))
    end = data.draw(st.integers(0, len(stream) - 3))
    outcome = read(api, [stream[:end]])
    assert isinstance(outcome, type)
    assert issubclass(outcome, ModelError)


@both
def test_line_over_the_limit_is_a_protocol_error(api: Api) -> None:
    line = b"data: " + b"x" * 5_000
    assert read(api, cut(line, range(0, 5_000, 100)), max_line_bytes=1_000) is ModelProtocolError
