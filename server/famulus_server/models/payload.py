"""Decodes the JSON of events. What comes out is always encodable: lone surrogates are replaced on the way."""

import re
from typing import TypeVar

import msgspec

from famulus_server.errors import ModelProtocolError

T = TypeVar("T")

# Reads escapes from left to right, so that an escaped backslash before `ud800` is not taken for a surrogate.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def decode(decoder: msgspec.json.Decoder[T], payload: bytes | msgspec.Raw) -> T:
    """Decodes JSON.

    Raises msgspec.ValidationError where it is JSON of another shape, ModelProtocolError where it is not JSON at all,
    not UTF-8, or nested too deeply.
    """
    try:
        return decoder.decode(payload)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # Lone surrogates are rare and make msgspec fail: only then is the text searched for them.
        repaired = _ESCAPE.sub(_replace_lone, bytes(payload))
        if repaired == bytes(payload):
            raise ModelProtocolError(f"an event that is not JSON: {error}") from error
    try:
        return decoder.decode(repaired)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelProtocolError(f"an event that is not JSON: {error}") from error


def _replace_lone(escape: re.Match[bytes]) -> bytes:
    return rb"\ufffd" if escape[1] else escape[0]
