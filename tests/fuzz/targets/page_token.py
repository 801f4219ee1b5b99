"""A page token: only what we made is one."""

from famulus_server.api.pages import PageTokens
from famulus_server.errors import InvalidArgument
from famulus_server.ports import Cursor

_TOKENS = PageTokens(key=b"k" * 32)
_SCOPE = b"a list"

SEEDS = [
    _TOKENS.seal(_SCOPE, Cursor(number, text)).encode() for number, text in ((0, ""), (-1, "run_1"), (2**62, "\u2603"))
]


def try_input(data: bytes) -> None:
    token = data.decode(errors="ignore")
    try:
        cursor = _TOKENS.open(_SCOPE, token)
    except InvalidArgument:
        return
    assert _TOKENS.seal(_SCOPE, cursor) == token
