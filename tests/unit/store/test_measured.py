from pathlib import Path

import pytest

from contract.samples import add_thread
from famulus_server.engine.clock import SystemClock
from famulus_server.errors import NotFound, Unavailable
from famulus_server.ports import Transaction
from famulus_server.ports.metrics import STORE_FAILURES, STORE_SECONDS
from famulus_server.store.measured import MeasuredStore
from famulus_server.store.sqlite import SqliteStore
from famulus_server.telemetry.metrics import Measurements


async def test_units_are_measured_and_those_that_the_database_did_not_do_are_counted(tmp_path: Path) -> None:
    metrics = Measurements()
    sqlite = SqliteStore(path=tmp_path / "famulus.db", clock=SystemClock())
    store = MeasuredStore(sqlite, metrics=metrics)
    await sqlite.open()
    await add_thread(store, "thread_1", "hello")

    async def nobody(tx: Transaction) -> object:
        return await tx.threads.get("acme", "nobody")

    with pytest.raises(NotFound):
        await store.read(nobody)
    # That was no failure of the database.
    assert metrics.snapshot().values[STORE_FAILURES] == {}
    await sqlite.close()
    for unit in (store.read, store.write):
        with pytest.raises(Unavailable):
            await unit(nobody)
    found = metrics.snapshot()
    assert found.values[STORE_FAILURES] == {("read", "unavailable"): 1, ("write", "unavailable"): 1}
    counts = {labels: sum(spread.counts) for labels, spread in found.spreads[STORE_SECONDS].items()}
    assert counts == {("read",): 2, ("write",): 3}
