"""The audit log of both stores: a chain that only grows, and shows whoever touched it."""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest

from contract.samples import OTHER, START, TENANT, add_thread
from famulus_server.engine.audit_chain import NOTHING, Head, Verdict, verify
from famulus_server.ports import AuditEntry, Store
from famulus_server.store.postgres import PostgresStore
from postgres import execute

Change = Callable[[str], None]


@pytest.fixture
def change(made_store: Store, tmp_path: Path, request: pytest.FixtureRequest) -> Change:
    """Runs SQL past the store, as somebody with the password or the file would."""

    def run(statement: str) -> None:
        if isinstance(made_store, PostgresStore):
            execute(request.getfixturevalue("empty_database"), statement)
        else:
            with closing(sqlite3.connect(tmp_path / "famulus.db")) as connection:
                connection.execute(statement)
                connection.commit()

    return run


@pytest.fixture
def tamper(made_store: Store, change: Change) -> Change:
    """The same by somebody who takes the triggers away first."""

    def run(statement: str) -> None:
        if isinstance(made_store, PostgresStore):
            off, on = (f"ALTER TABLE audit_log {done} TRIGGER USER" for done in ("DISABLE", "ENABLE"))
            change(f"{off}; {statement}; {on}")
        else:
            for trigger in ("update", "delete"):
                change(f"DROP TRIGGER IF EXISTS audit_log_no_{trigger}")
            change(statement)

    return run


def entries(*ids: str, tenant: str = TENANT) -> list[AuditEntry]:
    return [
        AuditEntry(
            id=each,
            time=START,
            tenant=tenant,
            actor="billing",
            method="ThreadService.DeleteThread",
            resources={"thread_id": f"thread of {each}", "x_id": "\u2603\x00'"},
            code="OK",
            peer="ipv4:127.0.0.1:5",
            request_id="req_1",
        )
        for each in ids
    ]


async def append(store: Store, *given: Sequence[AuditEntry]) -> None:
    for batch in given:
        await store.write(lambda tx, batch=batch: tx.audit.append(batch))  # type: ignore[misc]


async def five(store: Store) -> None:
    await append(store, entries("a", "b"), entries("c"), entries("d", "e"))


def broken(verdict: Verdict) -> int | None:
    assert bool(verdict.problem) == (verdict.broken_at is not None)
    return verdict.broken_at


async def test_rows_are_numbered_without_gaps_and_verified(store: Store) -> None:
    assert await store.read(lambda tx: tx.audit.head()) is None
    assert await verify(store) == Verdict(0, NOTHING)
    await five(store)
    rows = await store.read(lambda tx: tx.audit.page(after=0, limit=10))
    assert [(row.number, row.tenant, row.time, row.method) for row in rows] == [
        (number, TENANT, START, "ThreadService.DeleteThread") for number in range(1, 6)
    ]
    assert '"resources":{"thread_id":"thread of a","x_id":"\u2603\\u0000\'"}' in rows[0].body
    assert await verify(store) == Verdict(5, Head(5, rows[-1].hash))
    assert await store.read(lambda tx: tx.audit.head()) == rows[-1]


async def test_pages_are_bounded_and_of_one_tenant_where_asked(store: Store) -> None:
    await append(store, entries("a", "b"), entries("x", tenant=OTHER), entries("c"))
    shown = [
        [row.number for row in await store.read(lambda tx, which=which: tx.audit.page(**which))]  # type: ignore[misc]
        for which in (
            {"after": 1, "limit": 2},
            {"after": 0, "limit": 2, "tenant": TENANT},
            {"after": 2, "limit": 9, "tenant": TENANT},
            {"after": 0, "limit": 9, "tenant": OTHER},
        )
    ]
    assert shown == [[2, 3], [1, 2], [4], [3]]


async def test_batch_whose_commit_was_not_answered_is_stored_once(store: Store) -> None:
    await append(store, entries("a", "b"), entries("a", "b"), entries("c"))
    assert (await verify(store)).checked == 3


@pytest.mark.parametrize("statement", ["UPDATE audit_log SET method = 'x'", "DELETE FROM audit_log WHERE number = 2"])
async def test_database_refuses_to_change_or_remove_rows(store: Store, change: Change, statement: str) -> None:
    await five(store)
    with pytest.raises((sqlite3.IntegrityError, asyncpg.RaiseError), match="can only grow"):
        change(statement)
    assert (await verify(store)).checked == 5


@pytest.mark.parametrize(
    ("statement", "at"),
    [
        ("UPDATE audit_log SET body = replace(body, 'billing', 'nobody') WHERE number = 3", 3),
        ("UPDATE audit_log SET tenant = 'globex' WHERE number = 4", 4),
        ("UPDATE audit_log SET method = 'x' WHERE number = 1", 1),
        ("UPDATE audit_log SET time = time + 1 WHERE number = 5", 5),
        ("UPDATE audit_log SET hash = (SELECT hash FROM audit_log WHERE number = 1) WHERE number = 2", 2),
        ("DELETE FROM audit_log WHERE number = 2", 2),
        ("DELETE FROM audit_log WHERE number = 1", 1),
    ],
)
async def test_first_row_that_was_tampered_with_is_found(store: Store, tamper: Change, statement: str, at: int) -> None:
    await five(store)
    tamper(statement)
    assert broken(await verify(store)) == at


async def test_two_rows_that_were_swapped_are_found(store: Store, tamper: Change) -> None:
    await five(store)
    for old, new in ((2, 20), (3, 2), (20, 3)):
        tamper(f"UPDATE audit_log SET number = {new} WHERE number = {old}")
    assert broken(await verify(store)) == 2


async def test_end_that_is_gone_shows_by_a_head_that_was_noted(store: Store, tamper: Change) -> None:
    await five(store)
    noted = (await verify(store)).head
    assert broken(await verify(store, noted=noted)) is None
    tamper("DELETE FROM audit_log WHERE number >= 4")
    assert broken(await verify(store)) is None
    assert broken(await verify(store, noted=noted)) == 4
    # Another end in its place is found as well.
    await append(store, entries("f", "g", "h"))
    assert broken(await verify(store)) is None
    assert broken(await verify(store, noted=noted)) == 5


async def test_check_can_begin_at_a_row_that_is_taken_for_right(store: Store, tamper: Change) -> None:
    await five(store)
    tamper("UPDATE audit_log SET method = 'x' WHERE number = 2")
    whole = await verify(store, start=2)
    assert (whole.checked, broken(whole)) == (3, None)
    assert broken(await verify(store, start=1)) == 2
    assert broken(await verify(store, start=2, noted=Head(2, bytes(32)))) == 2
    assert broken(await verify(store, start=9)) == 9


async def test_long_log_is_checked_in_pages_and_tells_how_far_it_is(store: Store) -> None:
    await append(store, entries(*map(str, range(2_500))))
    seen: list[int] = []
    assert (await verify(store, progress=seen.append)).checked == 2_500
    assert seen == [1_000, 2_000, 2_500]


async def test_unit_that_fails_adds_nothing(store: Store) -> None:
    async def unit(tx: object) -> None:
        await tx.audit.append(entries("a"))  # type: ignore[attr-defined]
        raise LookupError

    with pytest.raises(LookupError):
        await store.write(unit)
    await add_thread(store, "thread_1")
    assert await store.read(lambda tx: tx.audit.head()) is None


@pytest.mark.parametrize("text", ["", "5", "5:zz", "x:" + "00" * 32, "5:" + "00" * 31, "-1:" + "00" * 32])
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Head.parse(text)


def test_head_is_read_as_it_is_written() -> None:
    head = Head(12, bytes(range(32)))
    assert Head.parse(str(head)) == head
