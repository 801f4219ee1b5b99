"""PostgreSQL dies, restarts, hangs: nothing acknowledged is lost, callers are told, and the pool heals."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from contract.samples import START, TENANT, MovableClock, add_messages, add_thread, message, read_texts
from famulus.v1.error_reason_pb2 import ErrorReason
from famulus_server.errors import Unavailable
from famulus_server.ports import Transaction
from famulus_server.store.postgres import PostgresStore
from famulus_server.store.postgres_clock import DatabaseClock
from postgres import PostgresServer, until


@pytest.fixture
def server(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    yield postgres_server
    if not postgres_server.running:
        postgres_server.start()


@pytest.fixture(scope="module")
def database(postgres_server: PostgresServer) -> str:
    if not postgres_server.running:
        postgres_server.start()
    return postgres_server.create_database()


@asynccontextmanager
async def opened(url: str, *, patience: float = 2.0, timeout: float = 10.0) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(url=url, patience=patience, timeout=timeout)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def test_killed_database_loses_no_acknowledged_row(server: PostgresServer, database: str) -> None:
    async with opened(database, patience=0.2) as store:
        acknowledged: list[str] = []
        refused: list[Unavailable] = []

        async def write(writer: int) -> None:
            await add_thread(store, f"killed_{writer}")
            for number in range(1_000):
                name = f"m{writer}-{number}"
                try:
                    await add_messages(store, f"killed_{writer}", name)
                except Unavailable as error:
                    refused.append(error)
                    return
                acknowledged.append(name)
                if len(acknowledged) == 200:
                    await asyncio.to_thread(server.kill)

        await asyncio.gather(*(write(writer) for writer in range(8)))
        assert {error.reason for error in refused} == {ErrorReason.ERROR_REASON_STORE_UNAVAILABLE}
        assert all(error.retry_after for error in refused)
        server.start()
        kept = [text for writer in range(8) for text in await read_texts(store, f"killed_{writer}")]
        assert len(acknowledged) >= 200
        assert set(acknowledged) <= set(kept)
        assert len(kept) == len(set(kept))
        await add_messages(store, "killed_0", "afterwards")


async def test_callers_see_nothing_of_a_fast_restart_but_a_delay(server: PostgresServer, database: str) -> None:
    async with opened(database) as store:
        await add_thread(store, "restarted")
        restarted = asyncio.Event()

        async def read() -> int:
            reads = 0
            while not restarted.is_set():
                assert await read_texts(store, "restarted") == []
                reads += 1
            return reads

        reading = [asyncio.create_task(read()) for _ in range(8)]
        await read_texts(store, "restarted")
        await asyncio.to_thread(server.restart)
        restarted.set()
        assert sum(await asyncio.gather(*reading)) > 0


async def test_while_the_database_is_away_callers_are_told_when_to_come_back(
    server: PostgresServer, database: str
) -> None:
    async with opened(database, patience=0.1) as store:
        server.stop()
        for attempt in (store.ping(), read_texts(store, "any"), add_thread(store, "away")):
            with pytest.raises(Unavailable) as refused:
                await attempt
            assert refused.value.reason == ErrorReason.ERROR_REASON_STORE_UNAVAILABLE
            assert refused.value.retry_after
        server.start()
        await add_thread(store, "away")
        assert await read_texts(store, "away") == []


async def test_database_that_hangs_is_not_waited_for_and_may_come_back(server: PostgresServer, database: str) -> None:
    async with opened(database, patience=0.1, timeout=0.3) as store:
        await add_thread(store, "hanging")
        server.freeze()
        began = time.monotonic()
        try:
            outcomes = await asyncio.gather(
                *(add_messages(store, "hanging", f"m{number}") for number in range(40)), return_exceptions=True
            )
        finally:
            server.thaw()
        assert {type(outcome) for outcome in outcomes} == {Unavailable}
        assert time.monotonic() - began < 5
        await store.ping()
        # What hung is undone, or was never sent.
        await add_messages(store, "hanging", "after")
        assert await read_texts(store, "hanging") == ["after"]


async def test_replica_that_stands_still_in_the_middle_holds_nobody_up_for_long(database: str) -> None:
    async with opened(database, timeout=0.4) as frozen, opened(database) as other:
        await add_thread(frozen, "held")
        attempts = 0

        async def unit(tx: Transaction) -> None:
            nonlocal attempts
            attempts += 1
            await tx.threads.get(TENANT, "held", lock=True)
            if attempts == 1:
                held.set()
                await freed.wait()
            await tx.messages.append(TENANT, "held", [message("late")])

        held, freed = asyncio.Event(), asyncio.Event()
        writing = asyncio.create_task(frozen.write(unit))
        await held.wait()
        await add_messages(other, "held", "in time")
        freed.set()
        await writing
        assert attempts == 2
        assert await read_texts(other, "held") == ["in time", "late"]


async def test_statement_that_takes_too_long_is_given_up(database: str) -> None:
    async with opened(database, patience=0.1, timeout=0.3) as store, opened(database) as other:
        await add_thread(store, "slow")

        async def hold(tx: Transaction) -> None:
            await tx.threads.get(TENANT, "slow", lock=True)
            held.set()
            await freed.wait()

        held, freed = asyncio.Event(), asyncio.Event()
        holding = asyncio.create_task(other.write(hold))
        await held.wait()
        with pytest.raises(Unavailable):
            await add_messages(store, "slow", "a")
        freed.set()
        await holding
        # On the server, too: nothing waits there any more.
        await until(database, "SELECT count(*) = 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        assert await read_texts(store, "slow") == []


async def test_stores_clock_is_the_databases(database: str) -> None:
    store = PostgresStore(url=database)
    plain = {**store._statements.plain, "database_time": "SELECT clock_timestamp() + interval '1 hour'"}
    store._statements = replace(store._statements, plain=plain)
    await store.open()
    ahead = store.clock.now() - datetime.now(UTC)
    assert timedelta(minutes=59) < ahead < timedelta(minutes=61)
    await store.close()


async def test_clock_believes_the_quickest_answer_and_goes_on_from_there() -> None:
    monotonic = MonotonicClock()
    clock = DatabaseClock(monotonic=lambda: monotonic.seconds)
    with pytest.raises(RuntimeError):
        clock.now()
    database = MovableClock()
    exchanges = iter([(3.0, 5.0), (0.1, 0.1), (0.0, 2.0)])

    async def ask() -> datetime:
        going, coming = next(exchanges)
        monotonic.seconds += going
        database.advance(going)
        told = database.now()
        monotonic.seconds += coming
        database.advance(coming)
        return told

    await clock.read(ask)
    assert abs(clock.now() - database.now()) < timedelta(microseconds=10)
    monotonic.seconds += 60
    assert abs(clock.now() - database.now() - timedelta(seconds=60)) < timedelta(microseconds=10)
    assert clock.now() > START


class MonotonicClock:
    """Counts what somebody adds."""

    seconds = 1_000.0
