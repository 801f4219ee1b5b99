"""What the end of a turn asks of others."""

from datetime import timedelta

import pytest

from contract.samples import START, TENANT, add_run, add_thread, claim_runs, run
from famulus_server.engine import lifecycle
from famulus_server.engine.policy import Policy
from famulus_server.engine.settlement import Settlement, settle
from famulus_server.ports import Lease
from famulus_server.store.sqlite import SqliteStore


@pytest.mark.parametrize(("delay", "offered"), [(None, True), (timedelta(seconds=9), False)])
async def test_run_that_is_put_back_is_offered_to_workers_unless_it_is_parked(
    store: SqliteStore, delay: timedelta | None, offered: bool
) -> None:
    await add_thread(store, "thread_1")
    await add_run(store, run())
    [one] = await claim_runs(store, Lease(owner="me", seconds=60))
    claimed = one.run
    wanted = Settlement(state=lifecycle.QUEUED, wake_time=None if delay is None else START + delay)
    settled = await store.write(
        lambda tx: settle(
            tx, TENANT, claimed, sequence=claimed.last_sequence, wanted=wanted, policy=Policy(), now=START
        )
    )
    assert (settled.run.state, settled.queued) == (lifecycle.QUEUED, offered)
