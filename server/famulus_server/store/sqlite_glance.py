"""Reading a little at once, in the event loop."""

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial

from famulus_server.ports import Clock
from famulus_server.store.key_cache import KeyCache
from famulus_server.store.lanes import Outcome, Unit
from famulus_server.store.session import Row
from famulus_server.store.sqlite_session import SqliteSession, drive, translate
from famulus_server.store.transaction import SqlTransaction

# How many steps of SQLite's machine a query may take: about a tenth of a millisecond, a row of a list takes 20 to 50.
# They are counted by so many.
_STEPS = 250
_MOST_COUNTS = 4
# What all rows may hold, in bytes or characters: it is decrypted and parsed in the event loop.
_MOST_HELD = 64 * 1024


class Glance:
    """Executes units that read a little by one query, which takes some microseconds: to wake the reader's thread takes
    longer. One query needs no transaction to see one moment.

    The session's connection must wait for no lock. What is left to wait for is the disk, for pages that nobody has in
    memory.
    """

    def __init__(self, session: "OneQuery", keys: KeyCache | None) -> None:
        self.session = session
        self._transaction = SqlTransaction(session, keys)

    def attempt(self, unit: Unit) -> Outcome | None:
        """How the unit ended; None where it is for the reader's thread."""
        self.session.asked = False
        try:
            outcome = Outcome(value=drive(unit(self._transaction)))
        except (_More, sqlite3.Error):
            outcome = None
        except Exception as error:  # noqa: BLE001 - it reaches whoever asked
            outcome = Outcome(error=translate(error))
        self._transaction.keys.settle(committed=outcome is not None and outcome.error is None)
        return outcome


class _More(Exception):
    """More than one query was asked, or more was found than is a little."""


class OneQuery(SqliteSession):
    """Runs one query, as long as that is short: raises sqlite3.Error where it is not. `asked` says whether it has run
    one."""

    asked = False

    def __init__(self, *, connect: Callable[[], sqlite3.Connection], queries: Mapping[str, str], clock: Clock) -> None:
        super().__init__(connect=partial(self._watched, connect), queries=queries, clock=clock)
        self._counts = 0

    async def all(self, name: str, *args: object, lock: bool = False) -> Sequence[Row]:  # noqa: ARG002 - nothing waits
        rows: list[Row] = []
        held = 0
        with closing(self._query(name, args)) as cursor:
            for row in cursor:
                rows.append(row)
                held += sum(len(value) for value in row if isinstance(value, bytes | str))
                if held > _MOST_HELD:
                    raise _More
        return rows

    def _query(self, name: str, args: Iterable[object]) -> sqlite3.Cursor:
        if self.asked:
            raise _More
        self.asked = True
        self._counts = 0
        return super()._query(name, args)

    def _watched(self, connect: Callable[[], sqlite3.Connection]) -> sqlite3.Connection:
        connection = connect()
        connection.set_progress_handler(self._is_long, _STEPS)
        return connection

    def _is_long(self) -> bool:
        self._counts += 1
        return self._counts > _MOST_COUNTS
