"""The ports to encryption: keys, and what is sealed with them.

The operator's key (KEK) never leaves the process, and only wraps others. Those are the data keys, which are stored
wrapped: one for each tenant or thread, and one for Redis.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

# The primary key of a row.
Place: TypeAlias = tuple[str | int, ...]


class KeyUnknown(ValueError):
    """A data key was wrapped by a key that this process does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedKey:
    """A data key as it is stored. `scope_id` says what of the tenant it is for: '' for whatever has no key of its own,
    or a thread id. `id` is 32 hex digits, `kek_id` names the key that it is wrapped by."""

    tenant: str
    scope_id: str
    id: str
    kek_id: str
    wrapped: bytes


class Sealer(Protocol):
    """Encrypts what leaves this process, and proves that it has come back unchanged. Any thread may use it."""

    def seal(self, plain: bytes, context: bytes) -> bytes:
        """`context` says what and whose it is; nothing of it is in the result."""

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Raises ValueError where it was not sealed by the same key in the same context, or has been changed."""


class DataKey(Sealer, Protocol):
    """A data key, ready for use."""

    @property
    def id(self) -> str:
        """As in `WrappedKey`."""


class Vault(Protocol):
    """Has the operator's key, and earlier ones. Any thread may use it."""

    @property
    def kek_id(self) -> str:
        """The key that wraps from now on."""

    def make(self, tenant: str, scope_id: str) -> WrappedKey:
        """A new data key."""

    def unwrap(self, key: WrappedKey) -> DataKey:
        """Raises KeyUnknown, or ValueError where it was changed, or is another tenant's or scope's."""

    def rewrap(self, key: WrappedKey) -> WrappedKey:
        """The same data key, wrapped by the key that wraps now. Raises as `unwrap` does."""


class DataKeys(Protocol):
    """The data keys of all tenants, as they are stored. The scope 'redis' of the tenant '.' is that of Redis."""

    async def obtain(self, tenant: str, scope_id: str) -> DataKey:
        """The key that a scope is sealed with, made at the first call ever."""

    async def check(self) -> None:
        """Raises KeysUnusable (store/errors.py), with a text for the operator, where this process cannot unwrap what is
        stored: it has no key, or not the one that some keys were wrapped by."""

    async def wrappings(self) -> Mapping[str, int]:
        """How many data keys each of the operator's keys wraps, by its id."""

    async def rewrap(self, *, limit: int) -> int:
        """Wraps at most `limit` data keys by the key that wraps now, which did not yet; returns how many."""

    async def retire(self) -> int:
        """Nothing new is to be sealed with the keys of today; returns how many there are. 0, and nothing happens, where
        keys that were retired before are still there."""

    async def retired_for(self) -> float | None:
        """For how many seconds the retired keys have been so; None where there are none."""

    async def remove_retired(self) -> int:
        """Removes them. What they sealed is lost."""


class SealedBodies(Protocol):
    """What of the database is sealed: the bodies of some tables."""

    @property
    def tables(self) -> Sequence[str]:
        """Their names."""

    async def count_plain(self) -> Mapping[str, int]:
        """How many bodies of each table are not sealed yet."""

    async def reseal(self, table: str, *, after: Place | None, limit: int) -> tuple[Place | None, int]:
        """Seals those of the next `limit` rows that are not sealed with today's key of their scope, unless they change
        at this moment. Returns the place of the last one, None at the end of the table; and how many were sealed."""
