"""Decoding of event data."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from famulus_server.errors import ModelProtocolError
from famulus_server.models.payload import decode

ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


class Wrapped(msgspec.Struct):
    text: str


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (rb"\ud800", "\ufffd"),
        (rb"a\udfffb", "a\ufffdb"),
        (rb"\ud800\ud83d\ude00", "\ufffd😀"),
        (rb"\ud83d\ude00\ud83d", "😀\ufffd"),
        (rb"\\ud800 \ud800", r"\ud800 " + "\ufffd"),
        (rb"\ud800\n\"", '\ufffd\n"'),
    ],
)
def test_lone_surrogates_are_replaced_and_nothing_else(text: bytes, read: str) -> None:
    assert decode(ANY, b'["' + text + b'"]') == [read]


@given(st.lists(st.characters() | st.sampled_from(["\ud800", "\udc00", "\\", "\\ud800"])).map("".join))
def test_whatever_comes_out_can_be_encoded(text: str) -> None:
    found = decode(ANY, json.dumps([text]).encode())[0]
    assert found.encode().decode() == found
    if text.isascii():
        assert found == text


@pytest.mark.parametrize(
    "payload", [b"", b"{", b'{"text":"a', b"[DONE]", b'["\xff"]', b'["\\x"]', b"[" * 5_000 + b"]" * 5_000]
)
def test_what_is_not_json_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ModelProtocolError):
        decode(ANY, payload)


def test_json_of_another_shape_is_told_apart() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(msgspec.json.Decoder(Wrapped), b'{"text":5}')
    with pytest.raises(msgspec.ValidationError):
        decode(msgspec.json.Decoder(Wrapped), rb'{"text":5,"other":"\ud800"}')
