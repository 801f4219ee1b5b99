"""Two tenants on two replicas, each with one slot: who has much to do does not hold up who has little."""

from contextlib import AsyncExitStack
from typing import Any

import pytest

from famulus.v1.run_pb2 import RunState
from famulus_server.api import server
from famulus_server.api.callers import OneCaller
from famulus_server.api.calls import Caller
from famulus_server.embedded.upstream import Match, Scene
from replicas.conftest import OpenReplica
from run_stage import Stage

MANY, FEW = 20, 4
SCENES = (Scene(match=Match(user_contains="held"), deltas=6, hold_after=3), Scene(text="fine"))
NARROW: dict[str, Any] = {"slots": 1, "lease_seconds": 60.0}


async def open_for(tenant: str, open_replica: OpenReplica, stack: AsyncExitStack) -> Stage:
    """A replica all of whose callers are this tenant."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "OneCaller", lambda _: OneCaller(Caller(tenant=tenant)))
        return await stack.enter_async_context(open_replica(worker=NARROW))


async def test_runs_of_a_quiet_tenant_start_in_turn_with_those_of_a_noisy_one(open_replica: OpenReplica) -> None:
    async with AsyncExitStack() as stack:
        noisy = await open_for("noisy", open_replica, stack)
        quiet = await open_for("quiet", open_replica, stack)
        noisy.play(*SCENES)
        for number, stage in enumerate((noisy, quiet), 1):
            run = await stage.start("held")
            await stage.until(run.id, "text_delta")
            assert (await noisy.request(number)).number
        many = [await noisy.start() for _ in range(MANY)]
        few = [await quiet.start() for _ in range(FEW)]
        assert {run.state for run in many + few} == {RunState.RUN_STATE_QUEUED}
        for number in (1, 2):
            (await noisy.request(number)).released.set()
        ended = [(noisy, await noisy.wait(run.id)) for run in many] + [(quiet, await quiet.wait(run.id)) for run in few]
    assert {run.state for _, run in ended} == {RunState.RUN_STATE_COMPLETED}
    order = [stage for stage, run in sorted(ended, key=lambda one: one[1].start_time.ToMicroseconds())]
    # Each replica gives both tenants one start after the other; in the order of their creation, they would be the last.
    last = max(place for place, stage in enumerate(order, 1) if stage is quiet)
    assert last <= 2 * FEW + 2, [stage is quiet for stage in order]
