"""Entries of the audit log on their way from the calls to the store."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contract.samples import START, MovableClock
from famulus_server.engine.audit import AuditTrail
from famulus_server.engine.audit_chain import verify
from famulus_server.engine.clock import TimeOrderedIds
from famulus_server.engine.pseudonyms import Pseudonyms
from famulus_server.ports import AuditEntry, AuditRow, Store
from famulus_server.store.postgres import PostgresStore
from famulus_server.store.sqlite import SqliteStore

CLOCK = MovableClock()
IDS = TimeOrderedIds(clock=CLOCK)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """Away until it is opened."""
    made = SqliteStore(path=tmp_path / "famulus.db", clock=CLOCK)
    yield made
    await made.close()


def trail_on(store: Store, **settings: float) -> AuditTrail:
    return AuditTrail(store=store, clock=CLOCK, ids=IDS, **settings)  # type: ignore[arg-type]


def entry(actor: str = "", *, code: str = "OK") -> AuditEntry:
    return AuditEntry(id=IDS.new("audit"), time=START, actor=actor, code=code)


async def rows(store: Store) -> list[AuditRow]:
    return await store.read(lambda tx: tx.audit.page(after=0, limit=1_000))


async def until_written(store: Store, count: int) -> None:
    async with asyncio.timeout(10):
        while (await verify(store)).checked < count:  # noqa: ASYNC110 - a database tells nobody
            await asyncio.sleep(0.005)


async def test_what_calls_note_is_written_soon_and_together(store: SqliteStore) -> None:
    await store.open()
    trail = trail_on(store)
    trail.open()
    before = store.stats
    for number in range(100):
        trail.note(entry(str(number)), must=True)
    await trail.close()
    after = store.stats
    assert [f'"actor":"{number}"' in row.body for number, row in enumerate(await rows(store))] == [True] * 100
    # BEGIN, is it there, the head, 100 rows, COMMIT.
    assert (after.commits - before.commits, after.statements - before.statements) == (1, 104)


async def test_hundred_calls_cost_postgres_seven_statements(empty_database: str) -> None:
    store = PostgresStore(url=empty_database)
    await store.open()
    trail = trail_on(store)
    trail.open()
    before = store.stats
    for _ in range(100):
        trail.note(entry(), must=True)
    await trail.close()
    after = store.stats
    # BEGIN, the lock, whose rows, is it there, the head, 100 rows, COMMIT.
    assert (after.commits - before.commits, after.statements - before.statements) == (1, 7)
    await store.close()


async def test_two_replicas_write_one_chain_at_once(empty_database: str) -> None:
    stores = [PostgresStore(url=empty_database) for _ in range(2)]
    for opened in stores:
        await opened.open()
    trails = [trail_on(each, pause=0.0) for each in stores]
    for trail in trails:
        trail.open()
    for number in range(300):
        for name, trail in enumerate(trails):
            trail.note(entry(f"{name}-{number}"), must=True)
        await asyncio.sleep(0)
    await asyncio.gather(*(trail.close() for trail in trails))
    assert (await verify(stores[0])).checked == 600
    bodies = [row.body for row in await rows(stores[1])]
    for name in range(2):
        actors = [json.loads(row)["actor"].split("-") for row in bodies]
        order = [int(number) for writer, number in actors if writer == str(name)]
        assert order == list(range(300))
    for opened in stores:
        await opened.close()


async def test_entries_wait_while_the_store_is_away_and_none_is_lost(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("famulus_server.engine.audit._RETRY_SECONDS", 0.01)
    trail = trail_on(store, pause=0.0, most=3)
    trail.open()
    for number in range(3):
        assert not trail.full
        trail.note(entry(str(number)), must=True)
    assert trail.full
    # What need not be there is counted only, what must is taken all the same: its call was let in before.
    trail.note(entry("a reader"), must=False)
    trail.note(entry("3"), must=True)
    await store.open()
    await until_written(store, 5)
    await trail.close()
    bodies = [row.body for row in await rows(store)]
    assert [f'"actor":"{number}"' in body for number, body in enumerate(bodies[:4])] == [True] * 4
    assert '"left_out":1' in bodies[4]
    assert not trail.full


async def test_log_goes_on_behind_its_last_row_after_a_restart(tmp_path: Path) -> None:
    for count in (2, 4):
        store = SqliteStore(path=tmp_path / "famulus.db", clock=CLOCK)
        await store.open()
        trail = trail_on(store)
        trail.open()
        trail.note(entry(), must=True)
        trail.note(entry(), must=True)
        await trail.close()
        assert (await verify(store)).checked == count
        await store.close()


async def test_flood_of_unknown_callers_is_counted_and_its_beginning_noted(store: SqliteStore) -> None:
    await store.open()
    trail = trail_on(store)
    trail.open()
    for _ in range(5_000):
        trail.note_stranger(entry(code="UNAUTHENTICATED"))
    await trail.close()
    bodies = [row.body for row in await rows(store)]
    assert len(bodies) == 101
    assert '"left_out":4900' in bodies[-1]


async def test_count_of_a_flood_is_told_once_its_window_is_over(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("famulus_server.engine.audit._WINDOW_SECONDS", 0.05)
    await store.open()
    trail = trail_on(store, pause=0.0)
    trail.open()
    for _ in range(103):
        trail.note_stranger(entry(code="UNAUTHENTICATED"))
    await until_written(store, 101)
    trail.note_stranger(entry(code="UNAUTHENTICATED"))
    await until_written(store, 102)
    bodies = [row.body for row in await rows(store)]
    assert ['"left_out":0' in body for body in bodies] == [True] * 100 + [False, True]
    await trail.close()


async def test_what_could_not_be_written_before_the_end_is_told(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("famulus_server.engine.audit._CLOSE_SECONDS", 0.02)
    trail = trail_on(store)
    trail.open()
    trail.note(entry(), must=True)
    await trail.close()
    assert "audit entries lost" in capsys.readouterr().out


def test_pseudonym_is_the_same_everywhere_and_of_one_user_for_one_purpose() -> None:
    one, other = Pseudonyms(key=b"k" * 32), Pseudonyms(key=b"k" * 32)
    name = one.of("provider", "acme", "ann")
    assert name == other.of("provider", "acme", "ann")
    assert len(name) == 32
    others = {
        one.of("audit", "acme", "ann"),
        one.of("provider", "globex", "ann"),
        one.of("provider", "acme", "bob"),
        one.of("provider", "acme:ann", ""),
        one.of("provider", "acm", "e:ann"),
        one.of("provider", "a", "cme:ann"),
        Pseudonyms(key=b"x" * 32).of("provider", "acme", "ann"),
    }
    assert name not in others
    assert len(others) == 7
    assert one.of("provider", "acme", "") == ""
