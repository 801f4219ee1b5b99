"""`famulus-server keys`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from famulus_server.cli.configuration import Configuration
from famulus_server.cli.console import note
from famulus_server.cli.failures import WrongSettings
from famulus_server.cli.options import data_dir_option

if TYPE_CHECKING:
    from famulus_server.config import Settings


@click.group(short_help="The keys of encryption at rest: make, list and rotate them.")
def keys() -> None:
    """The keys of encryption at rest: make, list and rotate them."""


@keys.command(short_help="Print a new key.")
def new() -> None:
    """Print a new key for [encryption] key_file: 32 random bytes as base64.

    Whoever loses it has lost what is encrypted: keep a copy apart from the backups of the database.

    \b
    Examples:
      (umask 077; famulus-server keys new > famulus.key)
    """
    from famulus_server.encryption.key_sources import new_key  # here, because `--help` needs none

    click.echo(new_key())


@keys.command("list", short_help="Show which keys are in use.")
@data_dir_option
@click.pass_obj
def list_keys(configuration: Configuration, data_dir: str | None) -> None:
    """Show how many data keys each of your keys wraps, by its id, and how many rows are not encrypted yet.

    It reads all rows, so it takes a while where there are many. No server may have an SQLite file open meanwhile.

    \b
    Examples:
      famulus-server keys list
      famulus-server --config famulus.toml keys list
    """
    asyncio.run(_list(_settings(configuration, data_dir)))


@keys.command(short_help="Exchange keys.")
@click.option("--data", is_flag=True, help="Exchange the data keys: all that is stored is encrypted with new ones.")
@data_dir_option
@click.pass_obj
def rotate(configuration: Configuration, data: bool, data_dir: str | None) -> None:
    """Have all data keys wrapped by the configured key, so that those in old_key_files are needed no more.

    With --data, encrypt all rows with new data keys instead, also those that are not encrypted yet: after encryption
    was switched on, after `scope` has changed, or when a data key has been in use for long enough. On PostgreSQL the
    old ones are kept for 15 minutes, because servers may still use them; call it again then.

    Servers may go on meanwhile; only an SQLite file must not be open elsewhere. Broken off, it can be called again.

    \b
    Examples:
      famulus-server keys rotate
      famulus-server --config famulus.toml keys rotate --data
    """
    settings = _settings(configuration, data_dir)
    if not settings.encryption.is_on:
        raise WrongSettings("[encryption]: there is no key: give key_file or key_command")
    asyncio.run(_renew(settings) if data else _rewrap(settings))


def _settings(configuration: Configuration, data_dir: str | None) -> Settings:
    return configuration.load({"server": {"data_dir": data_dir}})


async def _list(settings: Settings) -> None:
    from famulus_server.wiring.stores import open_store  # here, because it imports everything

    async with open_store(settings, progress=note) as store:
        wrappings = await store.read(lambda tx: tx.keys.wrappings())
        plain = await store.read(lambda tx: tx.sealed.count_plain())
    for kek_id, number in wrappings.items():
        click.echo(f"{kek_id} wraps {number:,} data keys")
    if not wrappings:
        click.echo("no data keys")
    for table, number in plain.items():
        click.echo(f"{table}: {number:,} rows not encrypted")


async def _rewrap(settings: Settings) -> None:
    from famulus_server.engine.key_rotation import rewrap
    from famulus_server.wiring.stores import open_store

    async with open_store(settings, progress=note) as store:
        done = await rewrap(store, progress=note)
    click.echo(f"{done:,} data keys were wrapped by another key; now the configured one wraps all")


async def _renew(settings: Settings) -> None:
    from famulus_server.engine.key_rotation import GRACE_SECONDS, renew
    from famulus_server.wiring.stores import open_store

    # Whoever has a file open is alone with it.
    grace = GRACE_SECONDS if settings.store.url else 0.0
    async with open_store(settings, progress=note) as store:
        left = await renew(store, grace=grace, progress=note)
    if left:
        click.echo(f"all is encrypted with new keys; call this again in {left / 60:.0f} minutes to remove the old ones")
    else:
        click.echo("all is encrypted with new keys")
