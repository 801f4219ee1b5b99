"""Steps of runs in SQL."""

from famulus.v1.run_step_pb2 import RunStep
from famulus_server.errors import LeaseLost, NotFound
from famulus_server.store.session import Session


class SqlSteps:
    """See `ports.Steps`. A step of a run that is gone raises LeaseLost: a late worker leaves no orphan."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def put(self, tenant: str, step: RunStep) -> None:
        body = step.SerializeToString()
        if not await self._session.run("steps_put", tenant, step.run_id, step.position, step.id, body):
            raise LeaseLost(f"{step.run_id} is gone")

    async def get(self, tenant: str, run_id: str, step_id: str) -> RunStep:
        row = await self._session.one("steps_get", tenant, run_id, step_id)
        if row is None:
            raise NotFound("run step", step_id)
        return RunStep.FromString(row[0])

    async def page(self, tenant: str, run_id: str, *, after_position: int = 0, limit: int = 1_000) -> list[RunStep]:
        rows = await self._session.all("steps_page", tenant, run_id, after_position, limit)
        return [RunStep.FromString(body) for (body,) in rows]
