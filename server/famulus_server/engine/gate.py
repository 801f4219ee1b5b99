"""Lets runs begin within the limits of their callers, and gives their places back when they have ended."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from famulus.v1.run_pb2 import Run
from famulus.v1.run_service_pb2 import CreateRunRequest
from famulus_server.engine import quotas
from famulus_server.engine.admission import DEFAULT_TTL
from famulus_server.engine.policy import Policies
from famulus_server.errors import NotFound
from famulus_server.ports import Limiter, RequestKey, Store, Transaction


@dataclass(slots=True)
class Passing:
    """A request on its way in. `stays` says that its run was made."""

    stays: bool = False


class Gate:
    """Where runs come in."""

    def __init__(self, *, store: Store, limiter: Limiter, policies: Policies) -> None:
        self._store = store
        self._limiter = limiter
        self._policies = policies
        self._leaving: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def passing(
        self, tenant: str, request: CreateRunRequest, key: RequestKey | None, *, run_id: str
    ) -> AsyncIterator[Passing]:
        """Entered where a new run is within the limits, or there is nothing to limit: a request that made a run before
        gets that, whatever the limits are. Raises ResourceExhausted."""
        passing = Passing()
        policy = self._policies.current
        outline = None
        if quotas.limits_starts(policy, tenant):
            outline = await self._store.read(lambda tx: _outline(tx, tenant, request, key, run_id))
        if outline is None:
            yield passing
            return
        ttl = request.ttl.ToTimedelta() if request.HasField("ttl") else DEFAULT_TTL
        demands = quotas.limits_of_start(policy, tenant, outline)
        refused = await self._limiter.take(demands, holder=run_id, seconds=ttl.total_seconds())
        if refused is not None:
            raise quotas.refusal(refused)
        try:
            yield passing
        finally:
            if not passing.stays:
                self.leave(tenant, outline)

    def leave(self, tenant: str, run: Run) -> None:
        """The run has ended, or never began: its places are given back. Returns at once."""
        demands = quotas.limits_of_start(self._policies.current, tenant, run)
        limits = [demand.limit for demand in demands if demand.limit.quantity == "runs"]
        if limits:
            task = asyncio.create_task(self._limiter.release(limits, holder=run.id))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def close(self) -> None:
        """Returns once all places that were to be given back are."""
        await asyncio.gather(*self._leaving)


async def _outline(
    tx: Transaction, tenant: str, request: CreateRunRequest, key: RequestKey | None, run_id: str
) -> Run | None:
    """What limits need to know of the run that a request would make; None where it would make none."""
    if key is not None and await tx.requests.find(tenant, key) is not None:
        return None
    thread = request.new_thread
    if request.thread_id:
        try:
            thread = await tx.threads.get(tenant, request.thread_id)
        except NotFound:
            # Admission says so.
            return None
    assistant_id = request.assistant_id or thread.default_assistant_id
    return Run(id=run_id, user_id=thread.user_id, assistant_id=assistant_id)
