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

    The server does the same when it starts. No server may have the database open meanwhile. A migration that fails
    leaves nothing behind.

    \b
    Examples:
      famulus-server migrate
      famulus-server migrate --data-dir /var/lib/famulus
    """
    asyncio.run(_migrate(configuration.load({"server": {"data_dir": data_dir}})))


async def _migrate(settings: Settings) -> None:
    # Here, because they load SQL drivers and protobuf.
    from famulus_server.engine.clock import SystemClock
    from famulus_server.store.schema import HEAD, revision
    from famulus_server.store.sqlite import SqliteStore

    settings.database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    before = revision(settings.database)
    # Opening migrates, and keeps every other process out meanwhile.
    store = SqliteStore(path=settings.database, clock=SystemClock())
    await store.open()
    await store.close()
    if before != HEAD:
        click.echo(f"{before or 'nothing'} -> {HEAD}")
    click.echo(f"{settings.database}: {'already' if before == HEAD else 'now'} at version {HEAD}")
