"""Points at which a replica dies, or loses its connection to PostgreSQL: exactly there and nowhere else.

A point lies at a transaction, named by who writes it: `Executor._settle` is whatever that method gives to the store.
"""

import os
import signal
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from famulus_server.ports import Transaction
from famulus_server.store.postgres import PostgresStore
from famulus_server.store.postgres_session import PostgresSession, terminate

T = TypeVar("T")
Unit = Callable[[Transaction], Awaitable[T]]


class Moment(StrEnum):
    """What happens at a transaction, and when."""

    BEFORE = "before"  # everything is written, nothing committed: the process dies
    AFTER = "after"  # it is committed, and nobody has been told: the process dies
    UNSENT = "unsent"  # the connection breaks before COMMIT reaches the server
    UNHEARD = "unheard"  # the connection breaks before the server's answer to COMMIT is read


@dataclass(frozen=True)
class CrashPoint:
    """The transaction number `number` of a writer in this process, and what happens there."""

    writer: str
    moment: Moment
    number: int = 1


@dataclass
class Armed:
    """A point that lies ahead, or behind."""

    point: CrashPoint
    met: int = 0

    @property
    def passed(self) -> bool:
        """Whether it was reached, and survived."""
        return self.met >= self.point.number


def arm(point: CrashPoint, change: Callable[[object, str, Any], None] = setattr) -> Armed:
    """Lets it happen in this process; `change` sets attributes of the store's classes."""
    write, command = PostgresStore.write, PostgresSession.command
    cut = ContextVar("cut", default=False)
    armed = Armed(point)

    async def watched(self: PostgresStore, unit: Unit[T]) -> T:
        if _writer(unit) != point.writer:
            return await write(self, unit)
        armed.met += 1
        if armed.met != point.number:
            return await write(self, unit)
        if point.moment is Moment.BEFORE:
            return await write(self, _fatal(unit))
        # The task in which the store does it inherits this.
        token = cut.set(point.moment in (Moment.UNSENT, Moment.UNHEARD))
        try:
            value = await write(self, unit)
        finally:
            cut.reset(token)
        if point.moment is Moment.AFTER:
            _die()
        return value

    async def cutting(self: PostgresSession, statement: str) -> str:
        if statement == "COMMIT" and cut.get():
            if point.moment is Moment.UNHEARD:
                await command(self, statement)
            terminate(self._connection)
        return await command(self, statement)

    change(PostgresStore, "write", watched)
    change(PostgresSession, "command", cutting)
    return armed


def _writer(unit: Unit[Any]) -> str:
    return unit.__qualname__.partition(".<locals>")[0]


def _fatal(unit: Unit[T]) -> Unit[T]:
    async def fatal(tx: Transaction) -> T:
        value = await unit(tx)
        _die()
        return value

    return fatal


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
