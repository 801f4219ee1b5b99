"""AES-256-GCM, for data keys and for the operator's key that wraps them."""

import hashlib
import os
from collections.abc import Sequence

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from famulus_server.ports import KeyUnknown, WrappedKey

_KEY_BYTES = 32
_ID_BYTES = 16
# Random: by the book a key is good for 2^32 of them.
_NONCE_BYTES = 12
_KEK_ID_DIGITS = 8


class AesKey:
    """See `ports.DataKey`. What it seals is a nonce, then the text and its tag: 28 bytes more."""

    def __init__(self, key: bytes, *, id: str = "") -> None:  # noqa: A002 - it is called so everywhere
        self.id = id
        self._cipher = AESGCM(key)

    def seal(self, plain: bytes, context: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
        except InvalidTag:
            raise ValueError("it was changed, or sealed by another key or as something else") from None


class AesVault:
    """See `ports.Vault`. `key` and the `old` ones have 32 bytes each; the old ones only unwrap."""

    def __init__(self, *, key: bytes, old: Sequence[bytes] = ()) -> None:
        self.kek_id = kek_id(key)
        self._keks = {kek_id(one): AesKey(one) for one in (*old, key)}

    def make(self, tenant: str, scope_id: str) -> WrappedKey:
        return self._wrap(tenant, scope_id, os.urandom(_ID_BYTES).hex(), os.urandom(_KEY_BYTES))

    def unwrap(self, key: WrappedKey) -> AesKey:
        return AesKey(self._plain(key), id=key.id)

    def rewrap(self, key: WrappedKey) -> WrappedKey:
        return self._wrap(key.tenant, key.scope_id, key.id, self._plain(key))

    def _wrap(self, tenant: str, scope_id: str, id: str, plain: bytes) -> WrappedKey:  # noqa: A002 - as above
        wrapped = self._keks[self.kek_id].seal(plain, _context(tenant, scope_id, id))
        return WrappedKey(tenant=tenant, scope_id=scope_id, id=id, kek_id=self.kek_id, wrapped=wrapped)

    def _plain(self, key: WrappedKey) -> bytes:
        kek = self._keks.get(key.kek_id)
        if kek is None:
            raise KeyUnknown(f"it needs the key {key.kek_id}, which is not configured")
        return kek.open(key.wrapped, _context(key.tenant, key.scope_id, key.id))


def kek_id(key: bytes) -> str:
    """The name of an operator's key, which tells nothing of it."""
    return hashlib.sha256(key).hexdigest()[:_KEK_ID_DIGITS]


def _context(*parts: str) -> bytes:
    return msgspec.msgpack.encode(parts)
