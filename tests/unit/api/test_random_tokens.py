"""Page tokens at random: only what we made is one."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from famulus.v1 import error_reason_pb2 as reasons
from famulus_server.api.pages import PageTokens
from famulus_server.errors import InvalidArgument
from famulus_server.ports import Cursor
from hostile.strategies import garbled

TOKENS = PageTokens(key=b"k" * 32)
SCOPE = b"a list"
cursors = st.builds(Cursor, st.integers(-(2**63), 2**63 - 1), st.text(st.characters(exclude_categories=["Cs"])))
sealed = cursors.map(lambda cursor: TOKENS.seal(SCOPE, cursor))


def check_refused(scope: bytes, token: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        TOKENS.open(scope, token)
    assert caught.value.reason == reasons.ERROR_REASON_INVALID_PAGE_TOKEN


@given(cursors)
def test_token_opens_to_what_was_sealed(cursor: Cursor) -> None:
    assert TOKENS.open(SCOPE, TOKENS.seal(SCOPE, cursor)) == cursor


@settings(max_examples=200)
@given(st.text() | st.binary(max_size=80).map(base64.urlsafe_b64encode).map(bytes.decode))
def test_invented_token_is_refused(token: str) -> None:
    check_refused(SCOPE, token)


@settings(max_examples=200)
@given(st.data(), sealed)
def test_changed_token_is_refused(data: st.DataObject, token: str) -> None:
    changed = data.draw(garbled(st.just(token.encode()))).decode("latin-1")
    if changed != token:
        check_refused(SCOPE, changed)


@given(sealed, st.binary())
def test_token_of_another_list_is_refused(token: str, scope: bytes) -> None:
    if scope != SCOPE:
        check_refused(scope, token)
