"""Brings a database to the schema that this version of the server knows: what both engines share, and SQLite."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from famulus_server.store.errors import NotAStore, SchemaTooNew, StoreUnreachable

if TYPE_CHECKING:
    from sqlalchemy import Connection

# The newest migration in migrations/versions.
HEAD = "0011"

_OF_THE_DISK = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
_MIGRATIONS = Path(__file__).with_name("migrations")


def upgrade_file(path: Path) -> None:
    """Creates or migrates an SQLite database that nobody else has open.

    Raises SchemaTooNew, NotAStore or StoreUnreachable. A database that is up to date costs one query: Alembic is not
    even imported.
    """
    if is_outdated(revision(path), str(path)):
        migrate_file(path)


def migrate_file(path: Path) -> None:
    """Brings an SQLite database to HEAD, in one transaction. Raises StoreUnreachable for a full disk."""
    # Imported here to keep start-up short: rarely needed, and half a second to load.
    from sqlalchemy import URL, Connection, create_engine, event
    from sqlalchemy.exc import OperationalError
    from sqlalchemy.pool import NullPool

    engine = create_engine(URL.create("sqlite", database=str(path)), poolclass=NullPool)

    # The driver begins no transaction before schema changes by itself.
    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    try:
        with engine.begin() as connection:
            upgrade(connection)
    except OperationalError as error:
        if not _is_of_the_disk(error.orig):
            raise
        raise StoreUnreachable(f"{path} cannot be written: {error.orig}") from error
    finally:
        engine.dispose()


def is_outdated(found: str, where: str) -> bool:
    """Whether a database with this revision must be migrated. Raises SchemaTooNew; `where` is for its text."""
    if found > HEAD:
        raise SchemaTooNew(
            f"{where} has schema {found}, this version of the server knows {HEAD}: start the newer version"
        )
    return found < HEAD


def upgrade(connection: "Connection", revision: str = HEAD) -> None:
    """Migrates within the connection's transaction, whichever engine it is."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def revision_of(connection: "Connection") -> str:
    """The revision that a connection sees, '' for none."""
    from alembic.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision() or ""


def revision(path: Path) -> str:
    """The revision of a database's schema, '' for a new one. Raises NotAStore or StoreUnreachable."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "alembic_version" in tables:
                rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
                return str(rows[0][0]) if rows else ""
    except sqlite3.DatabaseError as error:
        if _is_of_the_disk(error):
            raise StoreUnreachable(f"{path} cannot be opened: {error}. Is the disk full?") from error
        raise NotAStore(f"{path} cannot be read as an SQLite database: {error}") from error
    if tables:
        raise NotAStore(f"{path} is an SQLite database with tables of something else")
    return ""


def _is_of_the_disk(error: BaseException | None) -> bool:
    # The lower byte says what kind of error it is.
    return isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF in _OF_THE_DISK
