"""Data keys in SQL, and those that this process has at hand."""

from collections.abc import Collection, Mapping

import msgspec

from famulus_server.ports import DataKey, KeyUnknown, WrappedKey
from famulus_server.store.columns import micros
from famulus_server.store.errors import KeysUnusable
from famulus_server.store.key_cache import KeyCache
from famulus_server.store.refusals import unavailable
from famulus_server.store.session import Row, RunAgain, Session


class SqlDataKeys:
    """See `ports.DataKeys`. Without a `cache` there is no encryption.

    A key that a transaction has made or found is this transaction's, until `settle` says that it was committed: what is
    sealed with a key that was never stored is lost.
    """

    def __init__(self, session: Session, cache: KeyCache | None) -> None:
        self._session = session
        self.cache = cache
        self._by_id: dict[tuple[str, str], DataKey] = {}
        self._in_use: dict[tuple[str, str], DataKey] = {}
        self._removed: list[tuple[str, str, str]] = []
        self._renewed = False

    def settle(self, *, committed: bool) -> None:
        """The transaction has ended; or a part of it was undone, which may take what others of its parts made along:
        that is found again."""
        if self.cache is not None and committed:
            self._publish(self.cache)
        self._by_id.clear()
        self._in_use.clear()

    def _publish(self, cache: KeyCache) -> None:
        if self._renewed:
            cache.in_use.clear()
        for place, key in self._by_id.items():
            cache.by_id.put(place, key)
        for place, key in self._in_use.items():
            cache.in_use.put(place, key)
        for tenant, scope_id, key_id in self._removed:
            cache.by_id.drop((tenant, key_id))
            cache.in_use.drop((tenant, scope_id))
        self._removed.clear()
        self._renewed = False

    async def obtain(self, tenant: str, scope_id: str) -> DataKey:
        cache, place = self._required(), (tenant, scope_id)
        found = self._in_use.get(place)
        if found is None and not self._renewed:
            found = cache.in_use.get(place)
        if found is not None:
            return found
        wrapped = await self._stored(tenant, scope_id)
        if wrapped is None:
            wrapped = await self._make(cache, tenant, scope_id)
        key = self._unwrapped(wrapped)
        self._in_use[place] = key
        return key

    async def find(self, wanted: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], DataKey]:
        """Those of the keys, named by (tenant, id), that there are. Raises KeyUnknown, or ValueError where one of them
        was changed."""
        cache, found, missing = self._required(), {}, []
        for place in wanted:
            key = self._by_id.get(place) or cache.by_id.get(place)
            if key is None:
                missing.append(place)
            else:
                found[place] = key
        if missing:
            for row in await self._session.all("data_keys_find", msgspec.json.encode(missing).decode()):
                wrapped = _wrapped(row)
                found[wrapped.tenant, wrapped.id] = self._unwrapped(wrapped)
        return found

    async def remove_of_log(self, tenant: str, log_id: str) -> None:
        """Removes the keys of a thread that is deleted, unless others still see messages of its log."""
        for (key_id,) in await self._session.all("data_keys_delete_of_log", tenant, log_id):
            self._by_id.pop((tenant, key_id), None)
            self._in_use.pop((tenant, log_id), None)
            self._removed.append((tenant, log_id, key_id))

    async def check(self) -> None:
        kek_id = ""
        while (row := await self._session.one("data_keys_next_wrapping", kek_id)) is not None:
            kek_id = row[3]
            if self.cache is None:
                raise KeysUnusable(
                    "rows of the database are encrypted: give [encryption] key_file or key_command, with the key "
                    f"{kek_id} or one that its data keys were wrapped by since"
                )
            try:
                self.cache.vault.unwrap(_wrapped(row))
            except KeyUnknown:
                raise KeysUnusable(
                    f"rows of the database need the key {kek_id}, and the configured one is "
                    f"{self.cache.vault.kek_id}: give the former, or name it in [encryption] old_key_files"
                ) from None
            except ValueError as error:
                raise KeysUnusable(f"a data key that {kek_id} has wrapped cannot be opened: {error}") from None

    async def wrappings(self) -> Mapping[str, int]:
        return {row[0]: row[1] for row in await self._session.all("data_keys_wrappings")}

    async def rewrap(self, *, limit: int) -> int:
        vault = self._required().vault
        rows = await self._session.all("data_keys_wrapped_otherwise", vault.kek_id, limit)
        again = [(vault.rewrap(_wrapped(row)), row[3]) for row in rows]
        changes = [(key.tenant, key.id, before, key.kek_id, key.wrapped) for key, before in again]
        if changes:
            await self._session.run_many("data_keys_rewrap", changes)
        return len(changes)

    async def retire(self) -> int:
        if await self.retired_for() is not None:
            return 0
        self._in_use.clear()
        self._renewed = True
        return await self._session.run("data_keys_retire", micros(self._session.now()))

    async def retired_for(self) -> float | None:
        row = await self._session.one("data_keys_newest_retired")
        return None if row is None else (micros(self._session.now()) - row[0]) / 1_000_000

    async def remove_retired(self) -> int:
        removed = await self._session.all("data_keys_delete_retired")
        self._removed += [(tenant, "", key_id) for tenant, key_id in removed]
        return len(removed)

    async def _stored(self, tenant: str, scope_id: str) -> WrappedKey | None:
        row = await self._session.one("data_keys_in_use", tenant, scope_id)
        return None if row is None else _wrapped(row)

    async def _make(self, cache: KeyCache, tenant: str, scope_id: str) -> WrappedKey:
        made = cache.vault.make(tenant, scope_id)
        now = micros(self._session.now())
        if await self._session.run("data_keys_insert", tenant, made.id, scope_id, made.kek_id, made.wrapped, now):
            return made
        # Another replica was faster: what is stored counts.
        stored = await self._stored(tenant, scope_id)
        if stored is None:
            # And that was retired at this moment.
            raise RunAgain(unavailable())
        return stored

    def _required(self) -> KeyCache:
        if self.cache is None:
            raise KeysUnusable("encryption is not configured: give [encryption] key_file or key_command")
        return self.cache

    def _unwrapped(self, wrapped: WrappedKey) -> DataKey:
        key = self._required().vault.unwrap(wrapped)
        self._by_id[wrapped.tenant, wrapped.id] = key
        return key


def _wrapped(row: Row) -> WrappedKey:
    tenant, scope_id, key_id, kek_id, wrapped = row
    return WrappedKey(tenant=tenant, scope_id=scope_id, id=key_id, kek_id=kek_id, wrapped=bytes(wrapped))
