"""Brings a PostgreSQL database to the schema that this version of the server knows; several may try at once."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import asyncpg

from famulus_server.store import schema
from famulus_server.store.errors import NotAStore, StoreUnreachable
from famulus_server.store.postgres_tenants import EVERYBODY, show

if TYPE_CHECKING:
    from sqlalchemy import Connection

_OLDEST_VERSION = 15
_CONNECT_SECONDS = 10.0
# Whoever migrates holds it. The number only has to be the same in all replicas.
_MIGRATION_LOCK = int.from_bytes(b"famulus")


async def upgrade_database(url: str) -> str:
    """Creates or migrates the schema, if need be, while others wait; returns the revision that was found, '' for none.

    Raises StoreUnusable. A database that is up to date costs a few queries: Alembic is not even imported.
    """
    async with connected(url) as connection:
        found = await revision_of(connection, shown(url))
    with operator_errors(url):
        if schema.is_outdated(found, shown(url)):
            await _migrate(url)
    return found


@asynccontextmanager
async def connected(url: str) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    """A connection for a few queries. Raises StoreUnreachable."""
    with operator_errors(url):
        connection = await asyncpg.connect(url, timeout=_CONNECT_SECONDS, command_timeout=_CONNECT_SECONDS)
        try:
            yield connection
        finally:
            await connection.close(timeout=_CONNECT_SECONDS)


@contextmanager
def operator_errors(url: str) -> Iterator[None]:
    """Raises what connecting may raise as StoreUnreachable, with a text for the operator."""
    try:
        yield
    except TimeoutError as error:
        raise StoreUnreachable(f"{shown(url)}: no answer in {_CONNECT_SECONDS:g} s") from error
    except (ConnectionRefusedError, FileNotFoundError) as error:
        raise StoreUnreachable(f"{shown(url)}: no PostgreSQL server answers there") from error
    except (ValueError, asyncpg.InterfaceError):
        # Its text may hold parts of a password.
        reason = "the URL cannot be read: characters such as / # ? [ in a password must be written as %2F %23 %3F %5B"
        raise StoreUnreachable(f"{shown(url)}: {reason}") from None
    except (OSError, asyncpg.InternalClientError) as error:
        raise StoreUnreachable(f"{shown(url)}: {error}") from error
    except asyncpg.PostgresError as error:
        raise StoreUnreachable(f"{shown(url)}: the server says: {error}") from error


def shown(url: str) -> str:
    """The URL as it may be shown: without the password, and without parameters."""
    scheme, separator, rest = url.partition("://")
    who, at, where = rest.rpartition("@")
    return scheme + separator + who.partition(":")[0] + at + where.partition("?")[0]


async def revision_of(connection: "asyncpg.Connection[asyncpg.Record]", where: str) -> str:
    """The revision of the schema, '' for none. Raises NotAStore."""
    version = connection.get_server_version().major
    if version < _OLDEST_VERSION:
        raise NotAStore(f"{where}: PostgreSQL {version} is too old, at least {_OLDEST_VERSION} is needed")
    encoding = connection.get_settings().server_encoding
    if encoding != "UTF8":
        raise NotAStore(f"{where}: the database's encoding is {encoding}, not UTF8")
    rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
    tables = {name for (name,) in rows}
    if "alembic_version" in tables:
        return str(await connection.fetchval("SELECT version_num FROM alembic_version") or "")
    if tables:
        raise NotAStore(f"{where}: the database has tables of something else")
    return ""


async def _migrate(url: str) -> None:
    # Imported here to keep start-up short: rarely needed, and half a second to load.
    from sqlalchemy import text
    from sqlalchemy.exc import ProgrammingError
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: asyncpg.connect(url, timeout=_CONNECT_SECONDS),
        poolclass=NullPool,
    )

    def upgrade(connection: "Connection") -> None:
        # Whoever held the lock before may have done it.
        if schema.is_outdated(schema.revision_of(connection), shown(url)):
            schema.upgrade(connection)

    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            # A migration that changes rows means those of all.
            await connection.execute(text(show(EVERYBODY)))
            await connection.run_sync(upgrade)
    except ProgrammingError as error:
        refusal = error.orig and error.orig.__cause__
        if not isinstance(refusal, asyncpg.InsufficientPrivilegeError):
            raise
        reason = f"the server says: {refusal}. The role must own the database, or may create tables in its schema"
        raise StoreUnreachable(f"{shown(url)}: {reason}") from error
    finally:
        await engine.dispose()
