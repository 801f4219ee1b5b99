"""`famulus-server migrate`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from famulus_server.cli.configuration import Configuration
from famulus_server.cli.options import data_dir_option

if TYPE_CHECKING:
    from famulus_server.config import Settings


@click.command(short_help="Bring the database to the newest version.")
@data_dir_option
@click.pass_obj
def migrate(configuration: Configuration, data_dir: str | None) -> None:
    """Bring the database to the newest version, or make it where there is none.

    The server does the same when it starts. Of several that try at once on PostgreSQL, one does it and the others wait;
    no server may have an SQLite file open meanwhile. A migration that fails leaves nothing behind.

    \b
    Examples:
      famulus-server migrate
      famulus-server migrate --data-dir /var/lib/famulus
      FAMULUS_STORE_URL=postgresql://famulus@db/famulus famulus-server migrate
    """
    asyncio.run(_migrate(configuration.load({"server": {"data_dir": data_dir}})))


async def _migrate(settings: Settings) -> None:
    # Here, because it loads an SQL driver.
    from famulus_server.store.schema import HEAD

    migrate_store = _migrate_postgres if settings.store.url else _migrate_sqlite
    where, before = await migrate_store(settings)
    if before != HEAD:
        click.echo(f"{before or 'nothing'} -> {HEAD}")
    click.echo(f"{where}: {'already' if before == HEAD else 'now'} at version {HEAD}")


async def _migrate_postgres(settings: Settings) -> tuple[str, str]:
    """What was migrated, and the version it had."""
    from famulus_server.store.postgres_schema import shown, upgrade_database

    return shown(settings.store.url), await upgrade_database(settings.store.url)


async def _migrate_sqlite(settings: Settings) -> tuple[str, str]:
    """The same."""
    from famulus_server.engine.clock import SystemClock
    from famulus_server.store.schema import revision
    from famulus_server.store.sqlite import SqliteStore

    settings.database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    before = revision(settings.database)
    # Opening migrates, and keeps every other process out meanwhile.
    store = SqliteStore(path=settings.database, clock=SystemClock())
    await store.open()
    await store.close()
    return str(settings.database), before
