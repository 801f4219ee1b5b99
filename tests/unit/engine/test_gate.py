"""Who is let in where the limits are reached."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from contract.samples import TENANT
from famulus.v1.run_service_pb2 import CreateRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus_server.coordination.local_limiter import LocalLimiter
from famulus_server.engine.gate import Gate
from famulus_server.engine.policy import DEFAULT_TIER, CallerQuotas, Policies, Policy, Quota, Tier
from famulus_server.errors import ResourceExhausted
from famulus_server.ports import Demand, Limiter, Refused, RequestKey
from famulus_server.store.sqlite import SqliteStore

ONE_RUN = Policy(tiers={DEFAULT_TIER: Tier(limits=CallerQuotas(tenant=Quota(concurrent_runs=1)))})
WEEK = CreateRunRequest(new_thread=Thread(), assistant_id="asst_1")
WEEK.ttl.FromTimedelta(timedelta(days=7))
KEY = RequestKey("CreateRun", "once", b"the same")


class Entrance(LocalLimiter):
    """Limits of one process. Whoever comes is announced, and waits until the gate is open."""

    def __init__(self) -> None:
        self.seconds = 0.0
        super().__init__(share=lambda: 1, clock=lambda: self.seconds)
        self.came = asyncio.Event()
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def take(
        self, demands: Sequence[Demand], *, holder: str = "", seconds: float = 0.0, key: str = ""
    ) -> Refused | None:
        self.came.set()
        await self.is_open.wait()
        return await super().take(demands, holder=holder, seconds=seconds)


def gate_with(store: SqliteStore, limiter: Limiter) -> Gate:
    return Gate(store=store, limiter=limiter, policies=Policies(ONE_RUN))


async def enter(gate: Gate, run_id: str, key: RequestKey | None = None) -> None:
    """A run comes in, and stays."""
    async with gate.passing(TENANT, WEEK, key, run_id=run_id) as passing:
        passing.stays = True


async def test_request_is_not_refused_what_the_same_one_took_elsewhere_meanwhile(store: SqliteStore) -> None:
    limiter = Entrance()
    here, there = gate_with(store, limiter), gate_with(store, limiter)
    async with here.passing(TENANT, WEEK, KEY, run_id="run_1") as passing:
        limiter.came.clear()
        limiter.is_open.clear()
        second = asyncio.create_task(enter(there, "run_2", KEY))
        await limiter.came.wait()
        await store.write(lambda tx: tx.requests.remember(TENANT, KEY, "run_1"))
        passing.stays = True
    limiter.is_open.set()
    await second
    with pytest.raises(ResourceExhausted):
        await enter(there, "run_3", RequestKey("CreateRun", "another", b"other"))


async def test_run_is_counted_for_an_hour_at_most(store: SqliteStore) -> None:
    limiter = Entrance()
    gate = gate_with(store, limiter)
    await enter(gate, "run_1")
    limiter.seconds = 3_599.0
    with pytest.raises(ResourceExhausted):
        await enter(gate, "run_2")
    limiter.seconds = 3_601.0
    await enter(gate, "run_2")
