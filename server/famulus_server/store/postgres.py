"""The store of many replicas: PostgreSQL, by a pool of connections."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from famulus_server.errors import Unavailable
from famulus_server.ports import Clock, Transaction
from famulus_server.store import postgres_schema
from famulus_server.store.key_cache import KeyCache
from famulus_server.store.postgres_clock import DatabaseClock
from famulus_server.store.postgres_session import (
    DRIVER_ERRORS,
    Conflict,
    Connection,
    ConnectionLost,
    NotAlone,
    PostgresSession,
    Refused,
    Statements,
    Tally,
    is_closed,
    terminate,
)
from famulus_server.store.postgres_tenants import TenantConnection, warn_of_unbound_role
from famulus_server.store.refusals import overloaded, unavailable
from famulus_server.store.session import RunAgain, Stats
from famulus_server.store.transaction import SqlTransaction

if TYPE_CHECKING:
    from asyncpg.pool import Pool

T = TypeVar("T")

_log = logging.getLogger(__name__)

_CLOCK_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
# How often a unit is run again that others were in the way of.
_RERUNS = 5
_PAUSE_SECONDS = 0.05
_QUIET_SECONDS = 1.0
# Units that wait: at some thousands a second, the last of them waits for seconds already.
_MAX_WAITING = 20_000
# The most a connection keeps prepared: all statements, with and without locks.
_CACHED_STATEMENTS = 300
_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED"


class PostgresStore:
    """See `ports.Store`. `url` is a `postgresql://` URL, `pool` the most connections.

    `clock` is the database's unless another one is given. `patience` is how many seconds a unit that the server cut off
    is tried again; `timeout`, how many one that waits for a connection or for one statement is waited for. Both end in
    Unavailable. What was cut off while it was being committed may be stored or not: it is not tried again. With `keys`
    what is said is encrypted.
    """

    def __init__(
        self,
        *,
        url: str,
        pool: int = 16,
        clock: Clock | None = None,
        patience: float = 2.0,
        timeout: float = 10.0,
        keys: KeyCache | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        database_clock = DatabaseClock()
        self._database_clock = database_clock if clock is None else None
        self.clock: Clock = clock or database_clock
        self._url = url
        self._size = pool
        self._patience = patience
        self._timeout = timeout
        self._keys = keys
        self._chance = chance
        self._statements = Statements()
        self._tally = Tally()
        self._pool: Pool[asyncpg.Record] | None = None
        self._open = False
        self._working: set[asyncio.Task[Any]] = set()
        self._timekeeper: asyncio.Task[None] | None = None
        self._quiet_until = 0.0

    async def open(self) -> None:
        """Connects, and creates or migrates the schema if need be.

        Raises StoreUnusable (see store/errors.py) with a text for the operator.
        """
        await postgres_schema.upgrade_database(self._url)
        with postgres_schema.operator_errors(self._url):
            pool = await asyncpg.create_pool(
                self._url,
                min_size=0,
                max_size=self._size,
                timeout=self._timeout,
                command_timeout=self._timeout,
                statement_cache_size=_CACHED_STATEMENTS,
                max_cached_statement_lifetime=0,
                reset=_keep_as_it_is,
                connection_class=TenantConnection,
                server_settings=self._session_settings(),
            )
            if self._database_clock is not None:
                try:
                    await self._read_clock(pool, self._database_clock)
                    # Here, so that one of a process's stores warns: the others are given the clock of the first.
                    async with pool.acquire(timeout=self._timeout) as connection:
                        await warn_of_unbound_role(connection)
                except BaseException:
                    pool.terminate()
                    raise
                keeping = self._keep_time(pool, self._database_clock)
                self._timekeeper = asyncio.create_task(keeping, name="store-clock")
        self._pool = pool
        self._open = True

    async def close(self) -> None:
        """Finishes what was begun, then disconnects. Later reads and writes raise Unavailable."""
        self._open = False
        if self._working:
            # Not for ever: the server may hang. What is left fails when it is disconnected.
            await asyncio.wait(self._working, timeout=_CLOSE_SECONDS)
        if self._timekeeper is not None:
            self._timekeeper.cancel()
            await asyncio.gather(self._timekeeper, return_exceptions=True)
        if self._pool is not None:
            pool, self._pool = self._pool, None
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await pool.close()
            except DRIVER_ERRORS:
                pool.terminate()
        await asyncio.gather(*self._working, return_exceptions=True)

    async def read(self, unit: Callable[[Transaction], Awaitable[T]]) -> T:
        return await self._submit(lambda connection: self._read(connection, unit))

    async def write(self, unit: Callable[[Transaction], Awaitable[T]]) -> T:
        return await self._submit(lambda connection: self._write(connection, unit))

    async def ping(self) -> None:
        """Returns if the database answers; raises Unavailable otherwise."""
        await self._submit(lambda connection: self._session(connection).one("ping"))

    @property
    def stats(self) -> Stats:
        """What was done so far."""
        return Stats(self._tally.statements, self._tally.commits, self._tally.conflicts)

    @property
    def connections(self) -> tuple[int, int]:
        """How many are busy, and how many idle."""
        if self._pool is None:
            return 0, 0
        idle = self._pool.get_idle_size()
        return self._pool.get_size() - idle, idle

    async def _submit(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """What the work returns or raises. It goes on where its caller no longer waits: breaking it off would cost the
        connection."""
        if not self._open:
            raise unavailable()
        if len(self._working) >= _MAX_WAITING:
            raise overloaded()
        task = asyncio.create_task(self._persist(work))
        self._working.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._working.discard(task)
        if not task.cancelled():
            # Looked at, or asyncio would complain of the failures of those whose caller has gone.
            task.exception()

    async def _persist(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Does the work again where that may help, each time from its start and on any connection."""
        give_up_at = time.monotonic() + self._patience
        reruns = _RERUNS
        while True:
            try:
                return await self._attempt(work)
            except ConnectionLost as lost:
                if time.monotonic() >= give_up_at:
                    raise self._told(lost) from lost
            except Refused as refused:
                raise self._told(refused) from refused
            except (Conflict, RunAgain) as conflict:
                self._tally.conflicts += 1
                if not reruns:
                    raise (conflict.otherwise if isinstance(conflict, RunAgain) else self._told(conflict)) from conflict
                reruns -= 1
            await asyncio.sleep(self._chance() * _PAUSE_SECONDS)

    async def _attempt(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Does the work on a connection; leaves no transaction open there."""
        if self._pool is None:
            raise unavailable()
        try:
            connection = await self._pool.acquire(timeout=self._timeout)
        except DRIVER_ERRORS as error:
            raise ConnectionLost(str(error) or "no connection in time") from error
        try:
            return await work(connection)
        except (ConnectionLost, Refused, asyncio.CancelledError):
            # Nobody knows what it is at.
            terminate(connection)
            raise
        finally:
            await _give_back(self._pool, connection)

    async def _read(self, connection: Connection, unit: Callable[[Transaction], Awaitable[T]]) -> T:
        try:
            # Most read with one statement. That needs no transaction, which costs two more round trips.
            return await unit(SqlTransaction(self._session(connection), self._keys))
        except NotAlone:
            session = self._session(connection, _READ)
            transaction = SqlTransaction(session, self._keys)
            value = await unit(transaction)
            await session.flush()
            await session.commit()
            transaction.keys.settle(committed=True)
            return value

    async def _write(self, connection: Connection, unit: Callable[[Transaction], Awaitable[T]]) -> T:
        session = self._session(connection, _WRITE)
        transaction = SqlTransaction(session, self._keys)
        value = await unit(transaction)
        await session.flush()
        try:
            await session.commit()
        except ConnectionLost as lost:
            raise Refused("the connection broke at the commit: it may be stored or not") from lost
        transaction.keys.settle(committed=True)
        self._tally.commits += 1
        return value

    def _session(self, connection: Connection, begin: str = "") -> PostgresSession:
        return PostgresSession(
            connection=connection, statements=self._statements, clock=self.clock, tally=self._tally, begin=begin
        )

    async def _keep_time(self, pool: "Pool[asyncpg.Record]", clock: DatabaseClock) -> None:
        while True:
            await asyncio.sleep(_CLOCK_SECONDS)
            # While the database is away, the time goes on from what it last said.
            with suppress(*DRIVER_ERRORS):
                await self._read_clock(pool, clock)

    async def _read_clock(self, pool: "Pool[asyncpg.Record]", clock: DatabaseClock) -> None:
        async with pool.acquire(timeout=self._timeout) as connection:
            await clock.read(lambda: connection.fetchval(self._statements.plain["database_time"]))

    def _told(self, error: Exception) -> Unavailable:
        # While the database is away, every caller comes by here.
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET_SECONDS
            _log.warning("the database cannot be used: %s", error)
        return unavailable()

    def _session_settings(self) -> dict[str, str]:
        return {
            "application_name": "famulus",
            # A replica that is frozen or cut off in the middle must not hold others up.
            "statement_timeout": str(round(self._timeout * 1_000)),
            "idle_in_transaction_session_timeout": str(round(self._timeout * 500)),
            # Compiling such small statements takes longer than they do.
            "jit": "off",
        }


async def _give_back(pool: "Pool[asyncpg.Record]", connection: Connection) -> None:
    try:
        if not is_closed(connection) and connection.is_in_transaction():
            await connection.execute("ROLLBACK")
        await pool.release(connection)
    except DRIVER_ERRORS:
        terminate(connection)


async def _keep_as_it_is(_: object) -> None:
    """What asyncpg does to a connection that comes back: nothing, as sessions know of the one setting they change."""
