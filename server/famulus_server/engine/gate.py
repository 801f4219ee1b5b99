"""Lets runs begin within the limits of their callers, and gives their places back when they have ended."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from weakref import WeakValueDictionary

from famulus.v1.run_pb2 import Run
from famulus.v1.run_service_pb2 import CreateRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus_server.engine import quotas
from famulus_server.engine.admission import DEFAULT_TTL, INTERRUPTING
from famulus_server.engine.policy import Policies
from famulus_server.errors import NotFound
from famulus_server.ports import Limiter, RequestKey, Store, Transaction

# Nobody gives back the place of a run whose process dies at its end. A run that lives longer is no longer counted.
_LONGEST_PLACE = timedelta(hours=1)


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
        self._orders: WeakValueDictionary[tuple[str, RequestKey], asyncio.Lock] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def passing(
        self, tenant: str, request: CreateRunRequest, key: RequestKey | None, *, run_id: str
    ) -> AsyncIterator[Passing]:
        """Entered where a new run is within the limits, or there is nothing to limit: a request that made a run before
        gets that, whatever the limits are. Raises ResourceExhausted."""
        passing = Passing()
        if not quotas.limits_starts(self._policies.current, tenant):
            yield passing
            return
        async with self._order(tenant, key):
            outline = await self._enter(tenant, request, key, run_id)
            try:
                yield passing
            finally:
                if outline is not None and not passing.stays:
                    self.leave(tenant, outline)

    def leave(self, tenant: str, run: Run) -> None:
        """The run has ended, or never began: its places are given back. Returns at once."""
        limits = quotas.places_of(self._policies.current, tenant, run)
        if limits:
            self._limiter.release(limits, holder=run.id)

    async def _enter(self, tenant: str, request: CreateRunRequest, key: RequestKey | None, run_id: str) -> Run | None:
        """Takes what the run needs, and returns what it took that for; None where the request makes no run. Raises
        ResourceExhausted."""
        if request.thread_id or key is not None:
            outline = await self._store.read(lambda tx: _outline(tx, tenant, request, key, run_id))
        else:
            # All that there is to know stands in the request.
            outline = _new_run(request.new_thread, request, run_id), None
        if outline is None:
            return None
        run, replaced = outline
        ttl = request.ttl.ToTimedelta() if request.HasField("ttl") else DEFAULT_TTL
        demands = quotas.limits_of_start(self._policies.current, tenant, run, replaced=replaced)
        refused = await self._limiter.take(demands, holder=run_id, seconds=min(ttl, _LONGEST_PLACE).total_seconds())
        if refused is None:
            return run
        # What it is refused may be what the same request took on another replica meanwhile.
        if key is not None and await self._store.read(lambda tx: _is_known(tx, tenant, key)):
            return None
        raise quotas.refusal(refused)

    def _order(self, tenant: str, key: RequestKey | None) -> contextlib.AbstractAsyncContextManager[None]:
        """Held while a request passes: the same one, if it comes meanwhile, waits for the run of the first."""
        if key is None:
            return contextlib.nullcontext()
        lock = self._orders.get((tenant, key))
        if lock is None:
            lock = self._orders[tenant, key] = asyncio.Lock()
        return lock


async def _outline(
    tx: Transaction, tenant: str, request: CreateRunRequest, key: RequestKey | None, run_id: str
) -> tuple[Run, Run | None] | None:
    """What limits need to know of the run that a request would make, and the run that it would replace; None where it
    would make none."""
    if await _is_known(tx, tenant, key):
        return None
    thread, replaced = request.new_thread, None
    if request.thread_id:
        try:
            thread = await tx.threads.get(tenant, request.thread_id)
            if request.busy_policy in INTERRUPTING and thread.active_run_id:
                replaced = await tx.runs.get(tenant, thread.active_run_id)
        except NotFound:
            # Admission says so.
            return None
    return _new_run(thread, request, run_id), replaced


def _new_run(thread: Thread, request: CreateRunRequest, run_id: str) -> Run:
    assistant_id = request.assistant_id or thread.default_assistant_id
    return Run(id=run_id, user_id=thread.user_id, assistant_id=assistant_id)


async def _is_known(tx: Transaction, tenant: str, key: RequestKey | None) -> bool:
    """Whether the same request made a run before."""
    return key is not None and await tx.requests.find(tenant, key) is not None
