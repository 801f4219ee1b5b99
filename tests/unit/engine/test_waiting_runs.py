import pytest

from contract.samples import add_run, add_thread, run
from famulus_server.engine.waiting_runs import WaitingRuns
from famulus_server.errors import Unavailable
from famulus_server.store.sqlite import SqliteStore


async def test_number_of_waiting_runs_is_absent_while_the_store_is_away(store: SqliteStore) -> None:
    waiting = WaitingRuns(store=store)
    assert waiting.last is None
    await add_thread(store, "thread_1", "hello")
    await add_run(store, run())
    await waiting.look()
    assert waiting.last is not None
    assert waiting.last.runs == 1
    await store.close()
    with pytest.raises(Unavailable):
        await waiting.look()
    assert waiting.last is None
