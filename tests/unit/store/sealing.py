"""Encrypted stores, and messages in which every word is a mark."""

from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as ProtoMessage

from contract.samples import MovableClock
from famulus_server.encryption.aes import AesVault
from famulus_server.store.key_cache import KeyCache, Scope
from famulus_server.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

M = TypeVar("M", bound=ProtoMessage)

KEK = b"k" * 32
MARK = "xyzzy"


def key_cache(scope: Scope = "tenant", *, kek: bytes = KEK, old: tuple[bytes, ...] = ()) -> KeyCache:
    return KeyCache(vault=AesVault(key=kek, old=old), scope=scope)


@asynccontextmanager
async def opened(path: Path, keys: KeyCache | None) -> "AsyncIterator[SqliteStore]":
    store = SqliteStore(path=path, clock=MovableClock(), keys=keys)
    await store.open()
    yield store
    await store.close()


def filled(message: M, *, depth: int = 4) -> M:
    """The message, with the mark in every text that it may hold and does not yet, of all kinds of parts."""
    for field in message.DESCRIPTOR.fields:
        _fill(message, field, depth)
    return message


def _fill(message: ProtoMessage, field: Any, depth: int) -> None:
    there: Any = getattr(message, field.name)
    if field.message_type is None:
        if field.type == FieldDescriptor.TYPE_STRING and not there:
            if field.is_repeated:
                there.append(MARK)
            elif field.containing_oneof is None or message.WhichOneof(field.containing_oneof.name) is None:
                setattr(message, field.name, MARK)
    elif field.message_type.GetOptions().map_entry:
        if field.message_type.fields_by_name["value"].type == FieldDescriptor.TYPE_STRING:
            there[MARK] = MARK
    elif not depth or field.message_type.full_name.startswith("google."):
        return
    elif field.is_repeated:
        for name in _kinds(field):
            part = there.add()
            if name:
                filled(getattr(part, name), depth=depth - 1).SetInParent()
            filled(part, depth=depth - 1)
    elif field.containing_oneof is None or message.WhichOneof(field.containing_oneof.name) is None:
        filled(there, depth=depth - 1)


def _kinds(field: Any) -> Iterator[str]:
    """The kinds of an element; one without a name where it has none."""
    kinds = [one.name for oneof in field.message_type.oneofs for one in oneof.fields if one.message_type is not None]
    yield from kinds or [""]
