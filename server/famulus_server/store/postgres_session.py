"""A connection to PostgreSQL as the repositories see it, and what its errors mean."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import asyncpg

from famulus_server.ports import Clock
from famulus_server.store import queries
from famulus_server.store.postgres_tenants import EVERYBODY, Visible, alone, show
from famulus_server.store.queries import Scope
from famulus_server.store.session import Row

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

# Generic for the type checker only.
Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

T = TypeVar("T")

# Whatever the driver may raise.
DRIVER_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
# The server goes down, comes up, or cut us off: another connection may do.
_LOST = (
    OSError,  # a timeout is one of these
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InternalClientError,  # the server said farewell while nobody listened: nothing can be sent any more
)
# What the machine or its operator does to us, not what we do wrong.
_ENVIRONMENT = (
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby, after a fail-over
)
# Somebody else was in the way, or migrated the schema: the same again may well succeed.
_CONFLICTS = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.InvalidCachedStatementError)


class ConnectionLost(Exception):
    """The connection broke; whatever it did in an open transaction is undone."""


class Refused(Exception):
    """The database works, but not for us now."""


class Conflict(Exception):
    """The transaction was undone in favour of another one."""


class NotAlone(Exception):
    """More than one statement: they need a transaction, so as to see one moment."""


@dataclass(slots=True)
class Tally:
    """What was done so far."""

    statements: int = 0
    commits: int = 0
    conflicts: int = 0


@dataclass(frozen=True, slots=True)
class Statements:
    """The texts of all queries, of those that lock with their locks, and whose rows they are about."""

    plain: Mapping[str, str] = field(default_factory=lambda: queries.load("postgres"))
    locking: Mapping[str, str] = field(init=False)
    scopes: Mapping[str, Scope] = field(default_factory=lambda: queries.scopes("postgres"))

    def __post_init__(self) -> None:
        object.__setattr__(self, "locking", queries.locking(self.plain))


class PostgresSession:
    """See `session.Session`. Raises ConnectionLost, Refused or Conflict where the database does not let it do its work.

    The first statement begins a transaction, by the command `begin`. Where there is none, one statement that reads is
    allowed, outside any transaction; a second one raises NotAlone.
    """

    def __init__(
        self, *, connection: "Connection", statements: Statements, clock: Clock, tally: Tally, begin: str = ""
    ) -> None:
        self._connection = connection
        self._statements = statements
        self._clock = clock
        self._tally = tally
        self._begin = begin
        self._used = False
        # An attribute of TenantConnection, which the pool's proxy passes on.
        self._visible: Visible = connection.visible  # type: ignore[attr-defined]
        self._tenant: str = self._visible.tenant

    def now(self) -> datetime:
        return self._clock.now()

    async def one(self, name: str, *args: object, lock: bool = False) -> Row | None:
        return await self._query(self._connection.fetchrow, name, self._text(name, lock), *args)

    async def all(self, name: str, *args: object, lock: bool = False) -> Sequence[Row]:
        return await self._query(self._connection.fetch, name, self._text(name, lock), *args)

    async def hold(self, name: str, *args: object) -> None:
        text = self._statements.locking.get(name) or self._statements.plain[name]
        await self._query(self._connection.execute, name, text, *args)

    async def run(self, name: str, *args: object) -> int:
        text = self._statements.locking.get(name) or self._statements.plain[name]
        # For example "INSERT 0 1".
        return int((await self._query(self._connection.execute, name, text, *args)).rpartition(" ")[2])

    async def run_many(self, name: str, rows: Iterable[Sequence[object]]) -> None:
        listed = list(rows)
        if listed:
            # Rows of another tenant than the first one's are refused or not found, by the database itself.
            await self._enter(name, self._statements.plain[name], listed[0])
            await self._call(self._connection.executemany, self._statements.plain[name], listed)

    async def commit(self) -> None:
        """Ends the transaction, if a statement has begun one. Raises RuntimeError where it was undone instead."""
        if not self._used:
            return
        if await self.command("COMMIT") != "COMMIT":
            raise RuntimeError("a unit went on after a statement had failed, so it was undone")
        # A transaction that is undone takes the setting back to what it was before.
        self._visible.tenant = self._tenant

    async def command(self, statement: str) -> str:
        """Runs BEGIN, COMMIT and their kin; returns what they say of themselves."""
        return await self._call(self._connection.execute, statement)

    def _text(self, name: str, lock: bool) -> str:
        return self._statements.locking[name] if lock else self._statements.plain[name]

    async def _query(self, method: Callable[..., Awaitable[T]], name: str, text: str, *args: object) -> T:
        await self._enter(name, text, args)
        return await self._call(method, text, *args)

    async def _enter(self, name: str, text: str, args: Sequence[object]) -> None:
        """Begins the transaction if that is still to be done, and shows the rows that the query is about if others are
        shown: by one round trip for both."""
        if not self._begin and (self._used or not text.startswith("SELECT")):
            raise NotAlone
        commands = [] if self._used or not self._begin else [self._begin]
        tenant = self._wanted(name, args)
        if tenant != self._tenant:
            commands.append(show(tenant))
        if commands:
            await self.command("; ".join(commands))
        self._used = True
        self._tenant = tenant
        if not self._begin:
            self._visible.tenant = tenant

    def _wanted(self, name: str, args: Sequence[object]) -> str:
        """Whose rows a query is about: where it is nobody's, whoever's are shown already."""
        match self._statements.scopes[name]:
            case Scope.TENANT:
                return alone(str(args[0]))
            case Scope.ACROSS:
                return EVERYBODY
            case Scope.NONE:
                return self._tenant

    async def _call(self, method: Callable[..., Awaitable[T]], text: str, *args: Any) -> T:
        self._tally.statements += 1
        try:
            return await method(text, *args)
        except DRIVER_ERRORS as error:
            told = translate(error, closed=is_closed(self._connection))
            if told is error:
                raise
            raise told from error


def is_closed(connection: Connection) -> bool:
    """Whether it is of no use any more."""
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        # The pool has taken it away.
        return True


def terminate(connection: Connection) -> None:
    """Closes it at once, and leaves its place in the pool to another."""
    if not is_closed(connection):
        connection.terminate()


def translate(error: Exception, *, closed: bool = False) -> Exception:
    """What an error of the driver means; itself where it is a fault of ours."""
    if isinstance(error, _LOST) or (closed and isinstance(error, asyncpg.InterfaceError)):
        return ConnectionLost(str(error))
    if isinstance(error, _ENVIRONMENT):
        return Refused(str(error))
    if isinstance(error, _CONFLICTS):
        return Conflict(str(error))
    return error
