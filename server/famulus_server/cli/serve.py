"""`famulus-server serve`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import click

from famulus_server.cli.configuration import Changes, Configuration
from famulus_server.cli.console import note, start_logs
from famulus_server.cli.options import data_dir_option, listen_option, log_level_option
from famulus_server.cli.serving import serving
from famulus_server.cli.signals import Hangups, Stopped

if TYPE_CHECKING:
    from famulus_server.config import Settings


@click.command(short_help="Start the server and run it until it is told to stop.")
@click.option(
    "--role",
    type=click.Choice(["all", "api", "worker"]),
    help="api answers calls, worker executes runs, all does both. One without the other needs PostgreSQL.  "
    "[default: all]",
)
@listen_option
@data_dir_option
@log_level_option
@click.pass_obj
def serve(
    configuration: Configuration, role: str | None, listen: str | None, data_dir: str | None, log_level: str | None
) -> None:
    """Start the server and run it until it is told to stop.

    Without settings it brings all it needs: a database, a Valkey server and a small language model. Once it accepts
    calls it prints one line, with its address.

    SIGTERM or Ctrl-C stops it: runs at work may end or are given back, streams are told where to resume. A second
    signal exits at once.

    SIGHUP has it read its file again: limits, tiers, tenants, routes, prices and callers then hold as they stand there,
    and no run is disturbed. The log says what was done, and what else needs a restart.

    \b
    Examples:
      famulus-server serve
      famulus-server serve --listen 127.0.0.1:9000 --data-dir /var/lib/famulus
      FAMULUS_STORE_URL=postgresql://... famulus-server serve --role worker
      FAMULUS_LOG_LEVEL=debug famulus-server --config famulus.toml serve
    """
    changes = {"server": {"role": role, "listen": listen, "data_dir": data_dir}, "log": {"level": log_level}}
    settings = configuration.load_to_serve(changes)
    configuration.check_certificates(settings)
    start_logs(settings)
    with contextlib.suppress(Stopped):
        asyncio.run(_serve(configuration, changes, settings))


async def _serve(configuration: Configuration, changes: Changes, settings: Settings) -> None:
    with Hangups() as hangups:
        async with serving(settings) as (server, signals):
            from famulus_server.cli.reloading import Reloading  # here, because it imports everything

            reloading = Reloading(configuration=configuration, changes=changes, settings=settings, server=server)
            with hangups.calling(reloading.reload):
                click.echo(f"famulus serves {server.address} with the models {', '.join(server.models)}")
                await signals.wait()
            note(f"Draining, for up to {settings.server.drain_seconds:g} s; another signal exits at once.")
