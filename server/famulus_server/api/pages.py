"""Pages of lists (AIP-158): sizes, and tokens that only we can make."""

import base64
import binascii
import hashlib
import hmac
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from famulus.v1 import error_reason_pb2 as reasons
from famulus_server.errors import InvalidArgument, Violation
from famulus_server.ports import Cursor

T = TypeVar("T", bound=Message)

_DEFAULT_SIZE = 20
_MAX_SIZE = 100
_MAX_BYTES = 2 * 1024 * 1024  # half of what gRPC's clients accept unless told otherwise
_MAC_BYTES = 16
_NUMBER = struct.Struct(">q")


class PageTokens:
    """Tokens hold a cursor, signed with HMAC-SHA256 over it, the tenant, the method and the filter: changed in any bit
    or used with any other of these, a token is refused. All replicas must have the same `key`, at least 32 bytes."""

    def __init__(self, *, key: bytes) -> None:
        self._key = key

    def seal(self, scope: bytes, cursor: Cursor) -> str:
        """The token for what follows `cursor` in the list that `scope` names."""
        payload = _NUMBER.pack(cursor.number) + cursor.id.encode()
        return base64.urlsafe_b64encode(self._mac(scope, payload) + payload).rstrip(b"=").decode()

    def open(self, scope: bytes, token: str) -> Cursor:
        """The cursor in a token. Raises InvalidArgument (INVALID_PAGE_TOKEN)."""
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise _refusal() from None
        mac, payload = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        # The last character of base64 has bits that decode to nothing: only the one spelling we make is good.
        canonical = base64.urlsafe_b64encode(raw).rstrip(b"=").decode() == token
        if not canonical or len(payload) < _NUMBER.size or not hmac.compare_digest(mac, self._mac(scope, payload)):
            raise _refusal()
        (number,) = _NUMBER.unpack_from(payload)
        return Cursor(number, payload[_NUMBER.size :].decode())

    def _mac(self, scope: bytes, payload: bytes) -> bytes:
        return hmac.digest(self._key, scope + payload, "sha256")[:_MAC_BYTES]


@dataclass(frozen=True, slots=True)
class Page:
    """The page that a list request asks for: the items behind `after`, at most `size` of them, and no more than fit
    into 2 MiB."""

    size: int
    after: Cursor | None
    _scope: bytes
    _tokens: PageTokens

    @property
    def limit(self) -> int:
        """How many items to ask for: one more than the page holds, to know whether another page follows."""
        return self.size + 1

    def close(self, items: Sequence[T], cursor: Callable[[T], Cursor]) -> tuple[Sequence[T], str]:
        """The items of the page and the token of the next one, empty at the end of the list."""
        shown = fitting(items[: self.size], _MAX_BYTES)
        if len(shown) == len(items):
            return items, ""
        return shown, self._tokens.seal(self._scope, cursor(shown[-1]))


class Pages:
    """Finds out which page a list request asks for."""

    def __init__(self, *, key: bytes) -> None:
        self._tokens = PageTokens(key=key)

    def of(self, tenant: str, request: Any, *, default_size: int = _DEFAULT_SIZE, max_size: int = _MAX_SIZE) -> Page:
        """The page that a validated list request asks for. A size above the maximum is taken for the maximum, as
        AIP-158 has it. Raises InvalidArgument (INVALID_PAGE_TOKEN)."""
        scope = _scope(tenant, request)
        after = self._tokens.open(scope, request.page_token) if request.page_token else None
        return Page(min(request.page_size or default_size, max_size), after, scope, self._tokens)


def fitting(items: Sequence[T], max_bytes: int) -> Sequence[T]:
    """The first items, as many as fit into so many bytes; one at least, where there is one."""
    size = 0
    for count, item in enumerate(items):
        size += item.ByteSize()
        if size > max_bytes and count:
            return items[:count]
    return items


def _scope(tenant: str, request: Message) -> bytes:
    """A hash of everything that a token is bound to. The type of the request stands for the method."""
    bound = type(request)()
    bound.CopyFrom(request)
    bound.ClearField("page_token")
    bound.ClearField("page_size")
    name = request.DESCRIPTOR.full_name
    return hashlib.sha256(
        f"{len(tenant)}:{tenant}:{name}:".encode() + bound.SerializeToString(deterministic=True)
    ).digest()


def _refusal() -> InvalidArgument:
    return InvalidArgument(
        reasons.ERROR_REASON_INVALID_PAGE_TOKEN,
        "the page token is damaged, or belongs to another list",
        violations=[Violation("page_token", "is not a token of this list")],
    )
