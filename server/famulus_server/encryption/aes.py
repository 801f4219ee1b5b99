"""AES-256-GCM with extended nonces, for data keys and for the operator's key that wraps them.

By itself AES-GCM allows 2^32 random nonces of a key, which the key of Redis would use up in days. So each text has a
key of its own, derived from the first half of its nonce: XAES-256-GCM, https://c2sp.org/XAES-256-GCM.
"""

import hashlib
import os
import threading
from collections.abc import Sequence

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB

from famulus_server.ports import KeyUnknown, WrappedKey

_KEY_BYTES = 32
_ID_BYTES = 16
# Random: the first half chooses the key of a text, the second is AES-GCM's.
_NONCE_BYTES = 24
_HALF = _NONCE_BYTES // 2
_BLOCK_BYTES = 16
# The polynomial of CMAC's subkeys.
_REDUCTION = 0x87
_KEK_ID_DIGITS = 8


class AesKey:
    """See `ports.DataKey`. What it seals is a nonce, then the text and its tag: 40 bytes more."""

    def __init__(self, key: bytes, *, id: str = "") -> None:  # noqa: A002 - it is called so everywhere
        self.id = id
        # Of whole blocks it remembers nothing, so it serves all texts; one thread at a time.
        self._blocks = Cipher(AES256(key), ECB()).encryptor()  # noqa: S305 - of blocks that are never equal
        self._lock = threading.Lock()
        last = int.from_bytes(self._encrypt(bytes(_BLOCK_BYTES)))
        doubled = (last << 1) ^ (_REDUCTION if last >> (8 * _BLOCK_BYTES - 1) else 0)
        subkey = doubled & ((1 << 8 * _BLOCK_BYTES) - 1)
        # The blocks that a key is derived from, but for half a nonce in each.
        self._masks = [subkey ^ int.from_bytes(bytes((0, number)) + b"X\0" + bytes(_HALF)) for number in (1, 2)]

    def seal(self, plain: bytes, context: bytes) -> bytes:
        return self.seal_with(os.urandom(_NONCE_BYTES), plain, context)

    def seal_with(self, nonce: bytes, plain: bytes, context: bytes) -> bytes:
        """The same with a nonce of 24 bytes that was never used before."""
        return nonce + self._derived(nonce).encrypt(nonce[_HALF:], plain, context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        nonce, text = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._derived(nonce).decrypt(nonce[_HALF:], text, context)
        except InvalidTag:
            raise ValueError("it was changed, or sealed by another key or as something else") from None

    def _derived(self, nonce: bytes) -> AESGCM:
        half = int.from_bytes(nonce[:_HALF])
        return AESGCM(self._encrypt(b"".join((mask ^ half).to_bytes(_BLOCK_BYTES) for mask in self._masks)))

    def _encrypt(self, blocks: bytes) -> bytes:
        with self._lock:
            return self._blocks.update(blocks)


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
