"""A connection to SQLite as the repositories see it, and units of work driven on it."""

import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

from famulus_server.ports import Clock
from famulus_server.store.refusals import unavailable
from famulus_server.store.session import Row, RunAgain

T = TypeVar("T")

# What the machine does to us, not what we do wrong: full disk, broken file, locks of others.
_ENVIRONMENT = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PROTOCOL,
    }
)


class SqliteSession:
    """See `session.Session`. Its coroutines never suspend: whoever drives them runs them to their end at once.

    Not thread-safe. Opens its connection when it is first used, and again after `recover` had to drop it.
    """

    def __init__(self, *, connect: Callable[[], sqlite3.Connection], queries: Mapping[str, str], clock: Clock) -> None:
        self._connect = connect
        self._queries = queries
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self.statements = 0

    def now(self) -> datetime:
        return self._clock.now()

    async def one(self, name: str, *args: object, lock: bool = False, ahead: bool = False) -> Row | None:  # noqa: ARG002 - nothing waits
        rows = self._query(name, args).fetchall()
        return rows[0] if rows else None

    async def all(self, name: str, *args: object, lock: bool = False) -> Sequence[Row]:  # noqa: ARG002 - one writer
        return self._query(name, args).fetchall()

    async def hold(self, name: str, *args: object) -> None:
        """There is one writer."""

    async def run(self, name: str, *args: object) -> int:
        return self._query(name, args).rowcount

    async def run_many(self, name: str, rows: Iterable[Sequence[object]]) -> None:
        for row in rows:
            self._query(name, row)

    async def post(self, name: str, rows: Sequence[Sequence[object]], *, otherwise: Exception | None = None) -> None:
        for row in rows:
            if not self._query(name, row).rowcount and otherwise is not None:
                raise otherwise

    def command(self, statement: str) -> Row | None:
        """Runs BEGIN, COMMIT and their kin; returns what they say of themselves, if they do."""
        told: Row | None = self._execute(statement, {}).fetchone()
        return told

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open. SQLite ends one by itself after grave errors."""
        return self._connection is not None and self._connection.in_transaction

    @property
    def changes(self) -> int:
        """How many rows were changed since it was opened, those included that were changed back."""
        return 0 if self._connection is None else self._connection.total_changes

    def recover(self) -> None:
        """Ends what is left of a failed transaction, if need be together with the connection."""
        try:
            if self.in_transaction:
                self.command("ROLLBACK")
        except sqlite3.Error:
            self.close()

    def close(self) -> None:
        """Closes the connection, if there is one."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _query(self, name: str, args: Iterable[object]) -> sqlite3.Cursor:
        return self._execute(self._queries[name], _bound(args))

    def _execute(self, statement: str, parameters: Mapping[str, object]) -> sqlite3.Cursor:
        if self._connection is None:
            self._connection = self._connect()
        self.statements += 1
        return self._connection.execute(statement, parameters)


def drive(work: Awaitable[T]) -> T:
    """Runs a unit of work to its end. Raises RuntimeError where it waits for something that is not its transaction."""
    steps = work.__await__()
    try:
        steps.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    steps.close()
    raise RuntimeError("a unit of work awaited something other than its transaction")


def translate(error: BaseException) -> BaseException:
    """The error for those who wait: Unavailable where the machine is at fault."""
    if isinstance(error, RunAgain):
        # There is one writer: whoever it met has been seen already.
        return error.otherwise
    if isinstance(error, sqlite3.Error) and _primary_code(error) in _ENVIRONMENT:
        told = unavailable()
        told.__cause__ = error
        return told
    return error


def _primary_code(error: sqlite3.Error) -> int:
    code: Any = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else 0


def _bound(args: Iterable[object]) -> Mapping[str, object]:
    return {str(number): value for number, value in enumerate(args, 1)}
