"""Reading one row at once, in the event loop."""

import sqlite3
from collections.abc import Iterable, Sequence

from famulus_server.store.key_cache import KeyCache
from famulus_server.store.lanes import Outcome, Unit
from famulus_server.store.session import Row
from famulus_server.store.sqlite_session import SqliteSession, drive, translate
from famulus_server.store.transaction import SqlTransaction


class Glance:
    """Executes units that read one row, which an index finds in some microseconds: to wake the reader's thread takes
    longer. One query needs no transaction to see one moment.

    The session's connection must wait for no lock. What is left to wait for is the disk, for pages that nobody has in
    memory.
    """

    def __init__(self, session: "OneRow", keys: KeyCache | None) -> None:
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
    """More than one row was asked for."""


class OneRow(SqliteSession):
    """Runs one query for one row. `asked` says whether it has."""

    asked = False

    async def all(self, name: str, *args: object, lock: bool = False) -> Sequence[Row]:  # noqa: ARG002 - never run
        raise _More

    def _query(self, name: str, args: Iterable[object]) -> sqlite3.Cursor:
        if self.asked:
            raise _More
        self.asked = True
        return super()._query(name, args)
