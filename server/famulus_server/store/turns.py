"""Committed model turns in SQL: their items are JSON."""

import msgspec

from famulus_server.errors import LeaseLost
from famulus_server.ports import Turn
from famulus_server.store.bodies import SqlBodies
from famulus_server.store.session import Session


class SqlTurns:
    """See `ports.Turns`. A turn of a run that is gone raises LeaseLost: a late worker leaves no orphan."""

    def __init__(self, session: Session, bodies: SqlBodies) -> None:
        self._session = session
        self._bodies = bodies

    async def put(self, tenant: str, run_id: str, turn: Turn) -> None:
        plain = msgspec.json.encode(turn.items)
        items = await self._bodies.seal_of_run("turns", tenant, run_id, turn.number, plain)
        row = (tenant, run_id, turn.number, turn.seen_sequence, items)
        await self._session.post("turns_put", [row], otherwise=LeaseLost(f"{run_id} is gone"))

    async def all(self, tenant: str, run_id: str) -> list[Turn]:
        rows = await self._session.all("turns_all", tenant, run_id)
        opened = await self._bodies.open("turns", [(tenant, (run_id, number), items) for number, _, items in rows])
        return [
            Turn(number=number, seen_sequence=seen_sequence, items=msgspec.json.decode(items))
            for (number, seen_sequence, _), items in zip(rows, opened, strict=True)
        ]
