"""Bodies of rows, sealed and opened. The only place that knows whether they are.

    0x00, version, id of the data key (16), what the key made of the body in the context of its row

A message of protobuf never begins with 0x00, nor does JSON: so what is sealed and what is not live side by side.
"""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import msgspec

from famulus_server.ports import DataKey
from famulus_server.store.data_keys import SqlDataKeys
from famulus_server.store.errors import BodyUnreadable
from famulus_server.store.session import Session

# What names a row within its table and tenant; a change of it would make its body unreadable.
Key: TypeAlias = tuple[str | int, ...]

SEALED = b"\x00"
_HEAD = SEALED + b"\x01"
_KEY_ID = slice(len(_HEAD), len(_HEAD) + 16)


class SqlBodies:
    """Seals what is about to be stored, and opens what was. An empty body stays empty."""

    def __init__(self, session: Session, keys: SqlDataKeys) -> None:
        self._session = session
        self._keys = keys

    async def seal(self, table: str, tenant: str, key: Key, plain: bytes, *, thread_id: str = "") -> bytes:
        """The body as it is to be stored; with the thread's own key, where threads have some."""
        if self._keys.cache is None or not plain:
            return plain
        data_key = await self._key(tenant, thread_id)
        return _HEAD + bytes.fromhex(data_key.id) + data_key.seal(plain, _context(table, tenant, key))

    async def seal_of_run(self, table: str, tenant: str, run_id: str, number: int, plain: bytes) -> bytes:
        """The same, for row `number` of what belongs to a run."""
        thread_id = await self._thread_of(tenant, run_id)
        return await self.seal(table, tenant, (run_id, number), plain, thread_id=thread_id)

    async def open(self, table: str, rows: Iterable[tuple[str, Key, bytes]]) -> list[bytes]:
        """The bodies of rows, named by (tenant, key). Raises BodyUnreadable."""
        found = list(rows)
        wanted = {(tenant, _key_id(body)) for tenant, _, body in found if body.startswith(SEALED)}
        if not wanted:
            return [body for *_, body in found]
        if self._keys.cache is None:
            raise BodyUnreadable(f"{table}: rows are encrypted, and encryption is not configured")
        try:
            keys = await self._keys.find(wanted)
        except ValueError as error:
            raise BodyUnreadable(f"{table}: a data key of {_named(wanted)} cannot be opened: {error}") from None
        opened = []
        for tenant, key, body in found:
            if not body.startswith(SEALED):
                opened.append(body)
                continue
            data_key = keys.get((tenant, _key_id(body)))
            if data_key is None:
                raise BodyUnreadable(f"{table} {key} of tenant {tenant!r} cannot be opened: its key is gone")
            try:
                opened.append(data_key.open(body[_KEY_ID.stop :], _context(table, tenant, key)))
            except ValueError as error:
                raise BodyUnreadable(f"{table} {key} of tenant {tenant!r} cannot be opened: {error}") from None
        return opened

    async def open_one(self, table: str, tenant: str, key: Key, body: bytes) -> bytes:
        """The body of one row. Raises BodyUnreadable."""
        [opened] = await self.open(table, [(tenant, key, body)])
        return opened

    def note_run(self, tenant: str, run_id: str, thread_id: str) -> None:
        """What belongs to this run is sealed with the key of this thread."""
        if self._keys.cache is not None and self._keys.cache.scope == "thread":
            self._keys.cache.threads.put((tenant, run_id), thread_id)

    async def is_current(self, tenant: str, body: bytes, *, thread_id: str) -> bool:
        """Whether a body is sealed, and with the key that `seal` would take now."""
        return body.startswith(SEALED) and _key_id(body) == (await self._key(tenant, thread_id)).id

    async def _key(self, tenant: str, thread_id: str) -> DataKey:
        of_thread = self._keys.cache is not None and self._keys.cache.scope == "thread"
        return await self._keys.obtain(tenant, thread_id if of_thread else "")

    async def _thread_of(self, tenant: str, run_id: str) -> str:
        """'' where it does not matter, or the run is gone."""
        cache = self._keys.cache
        if cache is None or cache.scope == "tenant":
            return ""
        known = cache.threads.get((tenant, run_id))
        if known is None:
            row = await self._session.one("runs_thread", tenant, run_id)
            if row is None:
                return ""
            known = str(row[0])
            cache.threads.put((tenant, run_id), known)
        return known


def _key_id(body: bytes) -> str:
    """The id of the data key of a sealed body; that of none where another version sealed it."""
    return body[_KEY_ID].hex() if body.startswith(_HEAD) else ""


def _context(table: str, tenant: str, key: Key) -> bytes:
    return msgspec.msgpack.encode((table, tenant, key))


def _named(wanted: Iterable[tuple[str, str]]) -> Sequence[str]:
    return sorted({tenant for tenant, _ in wanted})
