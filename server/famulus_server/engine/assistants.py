"""What callers can do with assistants."""

import hashlib
from collections.abc import Sequence

from famulus.v1.assistant_pb2 import Assistant
from famulus_server.engine.clock import timestamp
from famulus_server.engine.etags import check_etag
from famulus_server.engine.fields import copy_fields
from famulus_server.ports import Clock, Cursor, Ids, RequestKey, Store, Transaction

# The configuration proper; everything else in an assistant is the service's.
CONFIGURATION = (
    "name",
    "description",
    "model",
    "instructions",
    "tools",
    "tool_resources",
    "metadata",
    "temperature",
    "top_p",
    "response_format",
    "reasoning_effort",
)


def configuration(assistant: Assistant) -> Assistant:
    """The assistant without what the service adds."""
    result = Assistant()
    copy_fields(assistant, result, CONFIGURATION)
    return result


def configuration_hash(assistant: Assistant) -> bytes:
    """SHA-256 of everything that makes an assistant answer as it does: equal for equal configurations, on every
    replica (map entries are sorted)."""
    return hashlib.sha256(configuration(assistant).SerializeToString(deterministic=True)).digest()


class AssistantDesk:
    """Assistants: create, ensure, read, change, delete."""

    def __init__(self, *, store: Store, clock: Clock, ids: Ids) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids

    async def create(self, tenant: str, assistant: Assistant, key: RequestKey | None) -> Assistant:
        """Creates an assistant."""
        made = self._prepare(assistant)

        async def unit(tx: Transaction) -> Assistant:
            if key is not None:
                known = await tx.requests.find(tenant, key)
                if known is not None:
                    return await tx.assistants.get(tenant, known)
            await tx.assistants.insert(tenant, made)
            if key is not None:
                await tx.requests.remember(tenant, key, made.id)
            return made

        return await self._store.write(unit)

    async def ensure(self, tenant: str, assistant: Assistant) -> tuple[Assistant, bool]:
        """The assistant with this configuration, and whether this call made it."""
        digest = configuration_hash(assistant)
        found = await self._store.read(lambda tx: tx.assistants.find(tenant, digest))
        if found is not None:
            return found, False
        made = self._prepare(assistant)

        async def unit(tx: Transaction) -> tuple[Assistant, bool]:
            while not await tx.assistants.insert(tenant, made, config_hash=digest):
                other = await tx.assistants.find(tenant, digest)
                if other is not None:
                    return other, False
            return made, True

        return await self._store.write(unit)

    async def get(self, tenant: str, assistant_id: str, version: int) -> Assistant:
        """Raises NotFound. Version 0 is the newest."""
        return await self._store.read(lambda tx: tx.assistants.get(tenant, assistant_id, version=version))

    async def page(self, tenant: str, *, after: Cursor | None, limit: int) -> list[Assistant]:
        """Newest first."""
        return await self._store.read(lambda tx: tx.assistants.page(tenant, after=after, limit=limit))

    async def versions(self, tenant: str, assistant_id: str, *, after: Cursor | None, limit: int) -> list[Assistant]:
        """Newest first. Raises NotFound."""
        return await self._store.read(lambda tx: tx.assistants.versions(tenant, assistant_id, after=after, limit=limit))

    async def update(self, tenant: str, assistant: Assistant, paths: Sequence[str]) -> Assistant:
        """Replaces the fields named by `paths`: a new version, unless nothing changes."""
        now = self._clock.now()

        async def unit(tx: Transaction) -> Assistant:
            current = await tx.assistants.get(tenant, assistant.id, lock=True)
            check_etag(assistant.etag, current.etag)
            before = configuration(current)
            copy_fields(assistant, current, paths)
            if configuration(current) != before:
                current.update_time.CopyFrom(timestamp(now))
                await tx.assistants.replace(tenant, current)
            return current

        return await self._store.write(unit)

    async def delete(self, tenant: str, assistant_id: str, etag: str) -> None:
        """Deletes all versions. Raises NotFound."""

        async def unit(tx: Transaction) -> None:
            current = await tx.assistants.get(tenant, assistant_id, lock=True)
            check_etag(etag, current.etag)
            await tx.assistants.delete(tenant, assistant_id)

        await self._store.write(unit)

    def _prepare(self, assistant: Assistant) -> Assistant:
        made = configuration(assistant)
        made.id = self._ids.new("asst")
        now = timestamp(self._clock.now())
        made.create_time.CopyFrom(now)
        made.update_time.CopyFrom(now)
        return made
