"""Sealing, and the operator's key that wraps others."""

import os
from dataclasses import replace

import pytest

from famulus_server.encryption.aes import AesKey, AesVault, kek_id
from famulus_server.ports import KeyUnknown

OLD, NEW = b"o" * 32, b"n" * 32


def test_what_was_sealed_is_opened_in_its_context_only() -> None:
    key = AesKey(os.urandom(32))
    sealed = key.seal(b"secret", b"row 1")
    assert b"secret" not in sealed
    assert key.open(sealed, b"row 1") == b"secret"
    with pytest.raises(ValueError, match="sealed by another key or as something else"):
        key.open(sealed, b"row 2")
    with pytest.raises(ValueError, match="sealed by another key"):
        AesKey(os.urandom(32)).open(sealed, b"row 1")


def test_each_flipped_bit_is_found_and_so_is_what_was_cut_off() -> None:
    key = AesKey(os.urandom(32))
    sealed = key.seal(b"secret", b"")
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(ValueError, match="changed"):
            key.open(bytes(changed), b"")
        with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
            key.open(sealed[:place], b"")


# From the specification, https://c2sp.org/XAES-256-GCM.
@pytest.mark.parametrize(
    ("key", "context", "sealed"),
    [
        (1, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (3, b"c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
    ],
)
def test_sealing_is_what_its_specification_says(key: int, context: bytes, sealed: str) -> None:
    nonce = b"ABCDEFGHIJKLMNOPQRSTUVWX"
    ours = AesKey(bytes([key]) * 32).seal_with(nonce, b"XAES-256-GCM", context)
    assert (ours[:24], ours[24:].hex()) == (nonce, sealed)


def test_same_text_is_never_sealed_alike() -> None:
    key = AesKey(os.urandom(32))
    assert len({key.seal(b"secret", b"") for _ in range(100)}) == 100


def test_data_key_is_unwrapped_for_its_tenant_and_scope_only() -> None:
    vault = AesVault(key=NEW)
    wrapped = vault.make("acme", "thread_1")
    sealed = vault.unwrap(wrapped).seal(b"secret", b"")
    assert vault.unwrap(wrapped).open(sealed, b"") == b"secret"
    others = replace(wrapped, tenant="globex"), replace(wrapped, scope_id="thread_2"), replace(wrapped, id="0" * 32)
    for other in others:
        with pytest.raises(ValueError, match="as something else"):
            vault.unwrap(other)


def test_data_key_outlives_the_key_that_wrapped_it() -> None:
    wrapped = AesVault(key=OLD).make("acme", "")
    sealed = AesVault(key=OLD).unwrap(wrapped).seal(b"secret", b"")
    both = AesVault(key=NEW, old=[OLD])
    assert both.unwrap(wrapped).open(sealed, b"") == b"secret"
    again = both.rewrap(wrapped)
    assert (wrapped.kek_id, again.kek_id) == (kek_id(OLD), kek_id(NEW))
    assert AesVault(key=NEW).unwrap(again).open(sealed, b"") == b"secret"
    with pytest.raises(KeyUnknown, match=kek_id(OLD)):
        AesVault(key=NEW).unwrap(wrapped)


def test_name_of_a_key_is_eight_digits_of_its_hash() -> None:
    assert kek_id(b"\0" * 32) == "66687aad"
