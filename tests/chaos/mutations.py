"""Replicas with one safety less each. A harness that does not notice is worth nothing."""

import asyncio
import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

import asyncpg

from famulus.v1.run_pb2 import Run
from famulus_server.engine import lifecycle
from famulus_server.engine.ledger import Ledger, Settled
from famulus_server.errors import LeaseLost
from famulus_server.ports import Transaction
from postgres import EVERYBODY

# Between the facts and the commit they run ahead of: long enough for a kill to fall in.
_AHEAD_SECONDS = 0.3
# What watchers see does not fit together, or does not fit what is stored.
_STREAMS = frozenset(
    {
        "a stream ended OK before the run did",
        "a stream is not valid",
        "a stream tells otherwise than what is stored",
        "a stream's end is not the run's",
        "events that were seen are behind the end",
        "two events at one place",
    }
)


class Mutation(ABC):
    """A safety that is missing. `stories` and `faults` are the mix in which it shows soon; one of the rules in `shows`
    must be seen broken: others may break for other reasons."""

    stories: Mapping[str, float]
    faults: Mapping[str, float]
    shows: Collection[str]

    @abstractmethod
    def apply(self) -> None:
        """Takes the safety out of this process, a replica that is about to start."""

    async def prepare(self, database: str) -> None:  # noqa: B027 - few have to
        """Takes it out of the database, which has its schema."""


class AttemptCheck(Mutation):
    """Late workers are not fenced: what they write is taken, whoever has the run now (contract 8)."""

    stories = MappingProxyType({"unhurried": 1})
    faults = MappingProxyType({"freeze": 1})
    shows = _STREAMS | {"a message is stored twice", "a completed run wrote something else", "an attempt went back"}

    def apply(self) -> None:
        """No attempt is compared any more."""
        _change_query("runs_replace", "AND attempt = $3", "AND $3::bigint IS NOT NULL")

        async def hold(tx: Transaction, tenant: str, run: Run, *, now: datetime, messages: int = 0) -> tuple[Run, int]:
            stored, first = await tx.runs.hold(tenant, run, now, messages=messages)
            if stored.state not in lifecycle.OWNED:
                raise LeaseLost(run.id)
            return stored, first

        _replace("famulus_server.engine.settlement", "hold", hold)


class UniqueIndex(Mutation):
    """The database no longer enforces one active run per thread (contract 6)."""

    stories = MappingProxyType({"crowd": 1, "square": 1})
    faults = MappingProxyType[str, float]({})
    shows = frozenset({"two active runs on a thread"})

    def apply(self) -> None:
        """A second active run is inserted like any other."""
        _change_query("runs_insert", "ON CONFLICT (tenant, thread_id) WHERE active DO NOTHING", "")

    async def prepare(self, database: str) -> None:
        """Drops the index."""
        connection = await asyncpg.connect(database, server_settings=EVERYBODY)
        try:
            await connection.execute("DROP INDEX IF EXISTS runs_active")
        finally:
            await connection.close()


class FactsBeforeCommit(Mutation):
    """Facts are told before they are stored (contract 3)."""

    stories = MappingProxyType({"solo": 1, "tools": 1, "streamed": 1})
    faults = MappingProxyType({"kill": 1})
    shows = _STREAMS

    def apply(self) -> None:
        """Publishes inside the transaction, whose commit comes a little later."""

        async def write(self: Ledger, run_id: str, unit: Callable[[Transaction], Awaitable[Settled]]) -> Settled:
            async def told_first(tx: Transaction) -> Settled:
                settled = await unit(tx)
                self.announce(settled)
                await asyncio.sleep(_AHEAD_SECONDS)
                return settled

            async with self._feed.order(run_id):
                return await self._store.write(told_first)

        Ledger.write = write  # type: ignore[method-assign]


MUTATIONS: Mapping[str, Mutation] = {
    "attempt-check": AttemptCheck(),
    "unique-index": UniqueIndex(),
    "facts-before-commit": FactsBeforeCommit(),
}


def _replace(module: str, name: str, by: Any) -> None:
    """Replaces a function wherever the server has imported it."""
    importlib.import_module("famulus_server.wiring.server")
    original = getattr(sys.modules[module], name)
    for other in list(sys.modules.values()):
        if other.__name__.startswith("famulus_server") and getattr(other, name, None) is original:
            setattr(other, name, by)


def _change_query(name: str, old: str, new: str) -> None:
    """Changes the text of one query, which must have the old part."""
    queries = importlib.import_module("famulus_server.store.queries")
    load = queries.load

    def changed(engine: Any, text: str | None = None) -> Mapping[str, str]:
        statements = dict(load(engine, text))
        if old not in statements[name]:
            raise RuntimeError(f"{name} has no {old!r}: the mutation mutates nothing")
        statements[name] = statements[name].replace(old, new)
        return statements

    _replace("famulus_server.store.queries", "load", changed)
