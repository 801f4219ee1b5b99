"""The tables whose bodies are sealed, walked from end to end: to count, and to seal with newer keys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from famulus_server.ports import Place
from famulus_server.store.bodies import SEALED, Key, SqlBodies
from famulus_server.store.session import Row, Session

_START: Place = ("", "", 0)


@dataclass(frozen=True, slots=True)
class _Table:
    """`page` gives of some rows behind a primary key of `width` columns: their thread, the id that names the row if
    it is not its primary key, the primary key, and the body. `context` is the table's name to `SqlBodies`."""

    page: str
    put: str
    width: int
    context: str


_TABLES: Mapping[str, _Table] = {
    "assistant_versions": _Table("assistants_bodies", "assistants_reseal", 3, "assistants"),
    "threads": _Table("threads_bodies", "threads_reseal", 2, "threads"),
    "messages": _Table("messages_bodies", "messages_reseal", 3, "messages"),
    "message_overrides": _Table("overrides_bodies", "overrides_reseal", 3, "messages"),
    "runs": _Table("runs_bodies", "runs_reseal", 2, "runs"),
    "run_steps": _Table("steps_bodies", "steps_reseal", 3, "steps"),
    "run_turns": _Table("turns_bodies", "turns_reseal", 3, "turns"),
    "queued_messages": _Table("queued_messages_bodies", "queued_messages_reseal", 3, "queued_messages"),
}


class SqlSealedBodies:
    """See `ports.SealedBodies`."""

    tables: Sequence[str] = tuple(_TABLES)

    def __init__(self, session: Session, bodies: SqlBodies) -> None:
        self._session = session
        self._bodies = bodies

    async def count_plain(self) -> Mapping[str, int]:
        return {row[0]: row[1] for row in await self._session.all("bodies_count_plain", SEALED)}

    async def reseal(self, table: str, *, after: Place | None, limit: int) -> tuple[Place | None, int]:
        kind = _TABLES[table]
        rows = await self._session.all(kind.page, *(after or _START[: kind.width]), limit)
        changed = 0
        for row in rows:
            changed += await self._reseal(kind, row)
        return (tuple(rows[-1][2:-1]) if len(rows) == limit else None), changed

    async def _reseal(self, kind: _Table, row: Row) -> int:
        thread_id, name, tenant, *rest, body = row
        key: Key = tuple(rest) if name is None else (name,)
        if not body or await self._bodies.is_current(tenant, body, thread_id=thread_id):
            return 0
        plain = await self._bodies.open_one(kind.context, tenant, key, body)
        sealed = await self._bodies.seal(kind.context, tenant, key, plain, thread_id=thread_id)
        # Where it was stored anew at this moment, that stays.
        return await self._session.run(kind.put, tenant, *rest, body, sealed)
