"""What can be seen of a PostgreSQL database from outside, for whoever looks for what is wrong. Changes nothing."""

import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from famulus_server.store import queries
from famulus_server.store.postgres_schema import connected, revision_of, shown
from famulus_server.store.postgres_tenants import EVERYBODY, show, unbound_role

if TYPE_CHECKING:
    import asyncpg

_PINGS = 9
# Everybody may read this one, unlike who is connected.
_CONNECTIONS = "SELECT sum(numbackends)::int FROM pg_stat_database"
_RESERVED = "superuser_reserved_connections", "reserved_connections"


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresSight:
    """`statement_seconds` is what the median of a few trivial statements took, `seconds_ahead` how far the database's
    clock is ahead of this machine's."""

    version: str
    revision: str  # of the schema; empty: there is none yet
    unbound_role: str | None  # whom row-level security does not bind
    read_only: bool
    connections: int
    max_connections: int  # that ordinary roles may have
    statement_seconds: float
    seconds_ahead: float


async def inspect_postgres(url: str) -> PostgresSight:
    """What is there. Raises StoreUnusable."""
    async with connected(url) as connection:
        revision = await revision_of(connection, shown(url))
        statement_seconds, seconds_ahead = await _measure(connection)
        limit = await _setting(connection, "max_connections")
        return PostgresSight(
            version=(await connection.fetchval("SHOW server_version")).partition(" ")[0],
            revision=revision,
            unbound_role=await unbound_role(connection),
            read_only=await connection.fetchval("SHOW transaction_read_only") == "on",
            connections=await connection.fetchval(_CONNECTIONS),
            max_connections=limit - sum([await _setting(connection, name) for name in _RESERVED]),
            statement_seconds=statement_seconds,
            seconds_ahead=seconds_ahead,
        )


async def key_ids(url: str) -> list[str]:
    """The operator's keys that data keys are wrapped by, by their ids. Raises StoreUnusable."""
    async with connected(url) as connection:
        if not await revision_of(connection, shown(url)):
            return []
        await connection.execute(show(EVERYBODY))
        rows = await connection.fetch(queries.load("postgres")["data_keys_wrappings"])
        return [row[0] for row in rows]


async def _measure(connection: "asyncpg.Connection[asyncpg.Record]") -> tuple[float, float]:
    """Seconds that a statement takes, and by how many the database's clock is ahead by the quickest of them."""
    took, ahead = [], []
    for _ in range(_PINGS):
        wall, started = datetime.now(UTC), time.perf_counter()
        told = await connection.fetchval("SELECT clock_timestamp()")
        took.append(time.perf_counter() - started)
        ahead.append((told - wall).total_seconds() - took[-1] / 2)
    return statistics.median(took), ahead[took.index(min(took))]


async def _setting(connection: "asyncpg.Connection[asyncpg.Record]", name: str) -> int:
    """A number among the server's settings; 0 where its version has no such one."""
    return int(await connection.fetchval("SELECT current_setting($1, true)", name) or 0)
