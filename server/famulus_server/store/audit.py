"""The audit log in SQL."""

from collections.abc import Sequence

from famulus_server.engine.audit_chain import NOTHING, encode, seal
from famulus_server.ports import AuditEntry, AuditRow
from famulus_server.store.columns import micros, moment
from famulus_server.store.session import Row, Session


class SqlAuditLog:
    """See `ports.AuditLog`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        await self._session.hold("audit_hold")
        # Of a commit whose answer was lost: then all of them are there.
        if not entries or await self._session.one("audit_find", entries[0].id) is not None:
            return
        last = await self.head()
        first, digest = (last.number + 1, last.hash) if last else (NOTHING.number + 1, NOTHING.hash)
        rows = []
        for number, entry in enumerate(entries, first):
            body = encode(entry)
            digest = seal(digest, number, body)
            rows.append((number, entry.id, entry.tenant, micros(entry.time), entry.method, body, digest))
        await self._session.run_many("audit_insert", rows)

    async def head(self) -> AuditRow | None:
        row = await self._session.one("audit_head")
        return _row(row) if row else None

    async def page(self, *, after: int, limit: int, tenant: str = "") -> list[AuditRow]:
        if tenant:
            rows = await self._session.all("audit_page_of_tenant", tenant, after, limit)
        else:
            rows = await self._session.all("audit_page", after, limit)
        return [_row(row) for row in rows]


def _row(row: Row) -> AuditRow:
    number, tenant, time, method, body, digest = row
    return AuditRow(number, tenant, moment(time), method, body, bytes(digest))
