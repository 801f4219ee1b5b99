"""Steps of runs in SQL."""

from collections.abc import Sequence

from famulus.v1.run_step_pb2 import RunStep
from famulus_server.errors import LeaseLost, NotFound
from famulus_server.store.bodies import SqlBodies
from famulus_server.store.session import Row, Session


class SqlSteps:
    """See `ports.Steps`. A step of a run that is gone raises LeaseLost: a late worker leaves no orphan."""

    def __init__(self, session: Session, bodies: SqlBodies) -> None:
        self._session = session
        self._bodies = bodies

    async def put(self, tenant: str, step: RunStep) -> None:
        plain = step.SerializeToString()
        body = await self._bodies.seal_of_run("steps", tenant, step.run_id, step.position, plain)
        row = (tenant, step.run_id, step.position, step.id, body)
        await self._session.post("steps_put", [row], otherwise=LeaseLost(f"{step.run_id} is gone"))

    async def get(self, tenant: str, run_id: str, step_id: str) -> RunStep:
        row = await self._session.one("steps_get", tenant, run_id, step_id)
        if row is None:
            raise NotFound("run step", step_id)
        [step] = await self._steps(tenant, run_id, [row])
        return step

    async def page(self, tenant: str, run_id: str, *, after_position: int = 0, limit: int = 1_000) -> list[RunStep]:
        rows = await self._session.all("steps_page", tenant, run_id, after_position, limit)
        return await self._steps(tenant, run_id, rows)

    async def _steps(self, tenant: str, run_id: str, rows: Sequence[Row]) -> list[RunStep]:
        found = [(tenant, (run_id, position), body) for position, body in rows]
        return [RunStep.FromString(body) for body in await self._bodies.open("steps", found)]
