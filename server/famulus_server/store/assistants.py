"""Assistants and their versions in SQL."""

from collections.abc import Sequence

from famulus.v1.assistant_pb2 import Assistant
from famulus_server.errors import NotFound
from famulus_server.ports import Cursor
from famulus_server.store.bodies import SqlBodies
from famulus_server.store.columns import END, before, etag, stamp_micros
from famulus_server.store.session import Row, Session


class SqlAssistants:
    """See `ports.Assistants`."""

    def __init__(self, session: Session, bodies: SqlBodies) -> None:
        self._session = session
        self._bodies = bodies

    async def insert(self, tenant: str, assistant: Assistant, *, config_hash: bytes | None = None) -> bool:
        created = stamp_micros(assistant.create_time)
        if not await self._session.run("assistants_insert", tenant, assistant.id, created, config_hash):
            return False
        await self._insert_version(tenant, assistant, 1)
        return True

    async def get(self, tenant: str, assistant_id: str, *, version: int = 0, lock: bool = False) -> Assistant:
        if lock:
            await self._session.hold("assistants_hold", tenant, assistant_id)
        if version == 0:
            row = await self._session.one("assistants_get", tenant, assistant_id)
        else:
            row = await self._session.one("assistants_get_version", tenant, assistant_id, version)
        if row is None:
            raise NotFound("assistant", assistant_id)
        [assistant] = await self._assistants(tenant, [row])
        return assistant

    async def find(self, tenant: str, config_hash: bytes) -> Assistant | None:
        row = await self._session.one("assistants_find", tenant, config_hash)
        found = await self._assistants(tenant, [] if row is None else [row])
        return found[0] if found else None

    async def page(self, tenant: str, *, after: Cursor | None, limit: int) -> list[Assistant]:
        rows = await self._session.all("assistants_page", tenant, *before(after), limit)
        return await self._assistants(tenant, rows)

    async def versions(self, tenant: str, assistant_id: str, *, after: Cursor | None, limit: int) -> list[Assistant]:
        below = END if after is None else after.number
        rows = await self._session.all("assistants_versions", tenant, assistant_id, below, limit)
        if not rows:
            await self.get(tenant, assistant_id)
        return await self._assistants(tenant, rows)

    async def replace(self, tenant: str, assistant: Assistant) -> None:
        row = await self._session.one("assistants_advance", tenant, assistant.id)
        if row is None:
            raise NotFound("assistant", assistant.id)
        await self._insert_version(tenant, assistant, row[0])

    async def delete(self, tenant: str, assistant_id: str) -> None:
        if not await self._session.run("assistants_delete", tenant, assistant_id):
            raise NotFound("assistant", assistant_id)
        await self._session.run("assistants_delete_versions", tenant, assistant_id)

    async def _insert_version(self, tenant: str, assistant: Assistant, version: int) -> None:
        assistant.version = version
        assistant.etag = etag(version)
        body = await self._bodies.seal("assistants", tenant, (assistant.id, version), assistant.SerializeToString())
        await self._session.run("assistants_insert_version", tenant, assistant.id, version, body)

    async def _assistants(self, tenant: str, rows: Sequence[Row]) -> list[Assistant]:
        bodies = await self._bodies.open("assistants", [(tenant, (row[0], row[1]), row[2]) for row in rows])
        return [_assistant(version, body) for (_, version, _), body in zip(rows, bodies, strict=True)]


def _assistant(version: int, body: bytes) -> Assistant:
    assistant = Assistant.FromString(body)
    assistant.version = version
    assistant.etag = etag(version)
    return assistant
