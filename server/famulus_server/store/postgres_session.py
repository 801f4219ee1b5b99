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
# What is posted and run together: each combination is a statement of its own, which connections keep prepared.
_MOST_TOGETHER = 8
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
    _together: dict[tuple[str, ...], str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "locking", queries.locking(self.plain))

    def changing(self, name: str) -> str:
        """The text of a query that changes rows: it locks those that it looks at."""
        return self.locking.get(name) or self.plain[name]

    def together(self, names: tuple[str, ...]) -> str:
        """The text of several such queries that are executed as one."""
        if names not in self._together:
            self._together[names] = queries.together([self.changing(name) for name in names])
        return self._together[names]


@dataclass(frozen=True, slots=True)
class _Posted:
    """A query that is to be run, and the error where it changes no row."""

    name: str
    args: Sequence[object]
    otherwise: Exception | None


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
        self._posted: list[_Posted] = []
        # An attribute of TenantConnection, which the pool's proxy passes on.
        self._visible: Visible = connection.visible  # type: ignore[attr-defined]
        self._tenant: str = self._visible.tenant

    def now(self) -> datetime:
        return self._clock.now()

    async def one(self, name: str, *args: object, lock: bool = False, ahead: bool = False) -> Row | None:
        if not ahead:
            await self.flush()
        return await self._query(self._connection.fetchrow, name, self._text(name, lock), *args)

    async def all(self, name: str, *args: object, lock: bool = False) -> Sequence[Row]:
        await self.flush()
        return await self._query(self._connection.fetch, name, self._text(name, lock), *args)

    async def hold(self, name: str, *args: object) -> None:
        await self.run(name, *args)

    async def run(self, name: str, *args: object) -> int:
        await self.flush()
        # For example "INSERT 0 1".
        told = await self._query(self._connection.execute, name, self._statements.changing(name), *args)
        return int(told.rpartition(" ")[2])

    async def run_many(self, name: str, rows: Iterable[Sequence[object]]) -> None:
        listed = list(rows)
        if listed:
            await self.flush()
            # Rows of another tenant than the first one's are refused or not found, by the database itself.
            await self._enter(name, self._statements.plain[name], listed[0])
            await self._call(self._connection.executemany, self._statements.plain[name], listed)

    async def post(self, name: str, rows: Sequence[Sequence[object]], *, otherwise: Exception | None = None) -> None:
        if not self._begin:
            raise NotAlone
        if len(rows) > _MOST_TOGETHER:
            await self.run_many(name, rows)
            return
        if rows and not self._goes_along(name, rows):
            await self.flush()
        self._posted += [_Posted(name, row, otherwise) for row in rows]

    async def flush(self) -> None:
        """Runs what was posted, by one round trip."""
        if not self._posted:
            return
        posted, self._posted = self._posted, []
        text = self._statements.together(tuple(one.name for one in posted))
        args = [arg for one in posted for arg in one.args]
        counts = await self._query(self._connection.fetchrow, posted[0].name, text, *args)
        for one, changed in zip(posted, counts or (), strict=True):
            if not changed and one.otherwise is not None:
                raise one.otherwise

    async def commit(self) -> None:
        """Ends the transaction, if a statement has begun one. What was posted must have been run (`flush`). Raises
        RuntimeError where it was undone instead."""
        if not self._used:
            return
        if await self.command("COMMIT") != "COMMIT":
            raise RuntimeError("a unit went on after a statement had failed, so it was undone")
        # A transaction that is undone takes the setting back to what it was before.
        self._visible.tenant = self._tenant

    async def command(self, statement: str) -> str:
        """Runs BEGIN, COMMIT and their kin; returns what they say of themselves."""
        return await self._call(self._connection.execute, statement)

    def _goes_along(self, name: str, rows: Sequence[Sequence[object]]) -> bool:
        """Whether a query can be run together with those that were posted: one of the same name may be about the same
        row, which one statement cannot change twice."""
        shown = {self._wanted(one.name, one.args) for one in self._posted}
        return (
            len(self._posted) + len(rows) <= _MOST_TOGETHER
            and name not in {one.name for one in self._posted}
            and shown <= {self._wanted(name, row) for row in rows}
        )

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
