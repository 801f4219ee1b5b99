"""The embedded store: one SQLite file, one process, one writer thread with group commit, one reader thread. What
one short query answers is read at once."""

import asyncio
import fcntl
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from famulus_server.ports import Clock, Transaction
from famulus_server.store import queries, schema
from famulus_server.store.errors import StoreInUse
from famulus_server.store.key_cache import KeyCache
from famulus_server.store.lanes import Lane, Outcome, Unit
from famulus_server.store.refusals import unavailable
from famulus_server.store.session import Stats
from famulus_server.store.sqlite_glance import Glance, OneQuery
from famulus_server.store.sqlite_session import SqliteSession, drive, translate
from famulus_server.store.transaction import SqlTransaction

T = TypeVar("T")

_log = logging.getLogger(__name__)

_WRITES_PER_COMMIT = 256
_READS_PER_WAKE_UP = 32
_CACHED_STATEMENTS = 200


class SqliteStore:
    """See `ports.Store`. `clock` is the database's clock.

    `patience` is how many seconds a transaction waits for a lock that a foreign tool holds on the file. With `keys`
    what is said is encrypted.
    """

    def __init__(self, *, path: Path, clock: Clock, patience: float = 2.0, keys: KeyCache | None = None) -> None:
        self._path = path
        self._keys = keys
        statements = queries.load("sqlite")
        writing, reading = partial(self._connect, patience), partial(self._connect_to_read, patience)
        # In the event loop no lock is waited for.
        glancing = partial(self._connect_to_read, 0)
        self._writer = _Writer(SqliteSession(connect=writing, queries=statements, clock=clock), keys)
        self._reader = _Reader(SqliteSession(connect=reading, queries=statements, clock=clock), keys)
        self._glance = Glance(OneQuery(connect=glancing, queries=statements, clock=clock), keys)
        self._lock: int | None = None
        self._writes: Lane | None = None
        self._reads: Lane | None = None

    async def open(self) -> None:
        """Creates the database or migrates it if need be, and keeps other processes out.

        Raises StoreUnusable (see store/errors.py) or OSError with a text for the operator.
        """
        await asyncio.to_thread(self._prepare)
        self._writes = Lane(name="store-writer", execute=self._writer.execute, batch=_WRITES_PER_COMMIT)
        self._reads = Lane(name="store-reader", execute=self._reader.execute, batch=_READS_PER_WAKE_UP)
        # Nobody else can have the file open: runs of an earlier process need not wait for their leases to run out.
        await self._writes.submit(lambda _: self._writer.session.run("runs_release_all"))

    async def close(self) -> None:
        """Finishes what was begun, then lets go of the file. Later reads and writes raise Unavailable."""
        for lane in (self._writes, self._reads):
            if lane is not None:
                await lane.close()
        await asyncio.to_thread(self._release)

    async def read(self, unit: Callable[[Transaction], Awaitable[T]]) -> T:
        if self._reads is None or not self._reads.open:
            raise unavailable()
        outcome = self._glance.attempt(unit)
        if outcome is not None and outcome.error is not None:
            raise outcome.error
        value: T = await self._reads.submit(unit) if outcome is None else outcome.value
        return value

    async def write(self, unit: Callable[[Transaction], Awaitable[T]]) -> T:
        if self._writes is None:
            raise unavailable()
        value: T = await self._writes.submit(unit)
        return value

    async def wipe(self) -> None:
        """Moves the log into the file and empties it: what was deleted is then in neither, unless somebody read it for
        too long."""
        await self.write(self._writer.empty_log)

    async def ping(self) -> None:
        """Returns if the database answers; raises Unavailable otherwise."""
        if self._reads is None:
            raise unavailable()
        await self._reads.submit(lambda _: self._reader.session.one("ping"))

    @property
    def stats(self) -> Stats:
        """What was done so far."""
        sessions = self._writer.session, self._reader.session, self._glance.session
        return Stats(sum(session.statements for session in sessions), self._writer.commits)

    def _prepare(self) -> None:
        self._lock = _lock(self._path)
        try:
            # Conversations are nobody else's to read; SQLite gives its other files the same permissions.
            self._path.touch(mode=0o600)
            schema.upgrade_file(self._path)
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        self._writer.session.close()
        self._reader.session.close()
        self._glance.session.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _connect(self, patience: float) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            timeout=patience,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=_CACHED_STATEMENTS,
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # The copies that SQLite makes to undo a statement are not worth a file.
        connection.execute("PRAGMA temp_store = MEMORY")
        # What is deleted is overwritten, keys among it: erasing the data of a user is more than forgetting where it is.
        connection.execute("PRAGMA secure_delete = ON")
        return connection

    def _connect_to_read(self, patience: float) -> sqlite3.Connection:
        connection = self._connect(patience)
        connection.execute("PRAGMA query_only = ON")
        return connection


class _Writer:
    """Executes a batch of units in one transaction; one that fails does not undo its neighbours.

    That takes a savepoint around each, for which SQLite copies every page that it is about to change: more work than
    most units are. So a batch does without, until one of its units fails and has changed something: then all is undone,
    and done again with savepoints.
    """

    def __init__(self, session: SqliteSession, keys: KeyCache | None) -> None:
        self.session = session
        self.commits = 0
        self._transaction = SqlTransaction(session, keys)
        self._log_is_to_go = False

    async def empty_log(self, _: Transaction) -> None:
        """A unit of work, behind whose transaction the log is emptied."""
        self._log_is_to_go = True

    def execute(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        try:
            outcomes = self._execute_trusting(units) or self._execute_guarding(units)
        except (sqlite3.Error, _TransactionLost) as error:
            _log.warning("a batch of %d writes was lost", len(units), exc_info=error)
            self.session.recover()
            self._transaction.keys.settle(committed=False)
            return [Outcome(error=unavailable()) for _ in units]
        if self._log_is_to_go:
            self._log_is_to_go = False
            self._checkpoint()
        return outcomes

    def _execute_trusting(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        """Nothing, and nothing is changed, where some must be kept and others undone."""
        self.session.command("BEGIN IMMEDIATE")
        outcomes: list[Outcome] = []
        for unit in units:
            changes = self.session.changes
            outcome = self._attempt(unit)
            outcomes.append(outcome)
            if outcome.error is not None and self.session.changes != changes:
                self.session.command("ROLLBACK")
                return outcomes if len(units) == 1 else []
        self._commit()
        return outcomes

    def _execute_guarding(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        self.session.command("BEGIN IMMEDIATE")
        outcomes: list[Outcome] = []
        for unit in units:
            self.session.command("SAVEPOINT unit")
            outcome = self._attempt(unit)
            outcomes.append(outcome)
            if outcome.error is not None:
                self.session.command("ROLLBACK TO unit")
            self.session.command("RELEASE unit")
        self._commit()
        return outcomes

    def _attempt(self, unit: Unit) -> Outcome:
        try:
            outcome = Outcome(value=drive(unit(self._transaction)))
        except BaseException as error:  # noqa: BLE001 - it reaches whoever waits for this unit
            outcome = Outcome(error=translate(error))
            self._transaction.keys.settle(committed=False)
        if not self.session.in_transaction:
            raise _TransactionLost from outcome.error
        return outcome

    def _commit(self) -> None:
        self.session.command("COMMIT")
        self._transaction.keys.settle(committed=True)
        self.commits += 1

    def _checkpoint(self) -> None:
        try:
            told = self.session.command("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            # The units before it are stored all the same.
            _log.warning("the log cannot be emptied", exc_info=error)
        else:
            if told is not None and told[0]:
                _log.warning(
                    "the log cannot be emptied: somebody else reads the file, and what was deleted is still there"
                )


class _TransactionLost(Exception):
    """SQLite rolled back more than one unit, as it does when the disk is full."""


class _Reader:
    """Executes each unit on its own snapshot."""

    def __init__(self, session: SqliteSession, keys: KeyCache | None) -> None:
        self.session = session
        self._transaction = SqlTransaction(session, keys)

    def execute(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        return [self._attempt(unit) for unit in units]

    def _attempt(self, unit: Unit) -> Outcome:
        try:
            self.session.command("BEGIN")
            value = drive(unit(self._transaction))
            self.session.command("COMMIT")
        except BaseException as error:  # noqa: BLE001 - it reaches whoever waits for this unit
            self.session.recover()
            self._transaction.keys.settle(committed=False)
            return Outcome(error=translate(error))
        self._transaction.keys.settle(committed=True)
        return Outcome(value=value)


def _lock(path: Path) -> int:
    """A lock that ends with this process at the latest. Raises StoreInUse."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StoreInUse(f"{path} is open in another process: an SQLite store serves one process only") from None
    return lock
