"""`famulus-server top`."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import click

from famulus_server.cli.configuration import Configuration
from famulus_server.cli.options import address_to_call

if TYPE_CHECKING:
    from famulus_server.cli.monitor.replicas import Replicas, View

_ANSWER_SECONDS = 2.0
_WIDE = 200


@click.command(short_help="Watch runs, queue, limits and breakers of one or several replicas.")
@click.argument("addresses", metavar="[ADDRESS]...", nargs=-1)
@click.option(
    "--dns", "names", multiple=True, metavar="NAME", help="Watch all replicas that NAME, or NAME:PORT, stands for."
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
@click.option("--once", is_flag=True, help="Look twice, an interval apart, and print the tables.")
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON object, for machines.")
@click.pass_obj
def top(
    configuration: Configuration,
    addresses: tuple[str, ...],
    names: tuple[str, ...],
    interval: float,
    once: bool,
    as_json: bool,
) -> None:
    """Watch runs, queue, limits and breakers of one or several replicas.

    ADDRESS is where a replica gives its metrics, `[metrics] listen`: host, host:port or a URL. Without any it is the
    one in the settings. With --dns, the name is asked each time which replicas there are; on Kubernetes that of the
    Service famulus-metrics finds all pods. Rates are those since the look before, quantiles those of runs that ended
    meanwhile.

    q or Ctrl-C quits. Where the output is no terminal, --once is meant. The exit code of --once and --json is 1 where
    no replica answers, otherwise 0.

    \b
    Examples:
      famulus-server top
      famulus-server top 10.0.0.7 10.0.0.8:9464 https://far.example/metrics
      famulus-server top --dns famulus-metrics.famulus.svc.cluster.local
      famulus-server top --once --interval 10
      famulus-server top --json | jq .fleet.queue_runs
    """
    # Here, because `--help` needs none of it.
    from famulus_server.cli.monitor.replicas import Replicas, metrics_url

    given = addresses or (() if names else (_own_address(configuration),))
    for address in (*given, *names):
        try:
            metrics_url(address)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    replicas = Replicas(addresses=given, names=names, timeout=_ANSWER_SECONDS)
    if once or as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        view = asyncio.run(_look_twice(replicas, interval))
        _print_json(view) if as_json else _print(view)
        sys.exit(0 if view.fleet.reachable else 1)
    from famulus_server.cli.monitor.screen import show

    asyncio.run(show(replicas, interval=interval))


def _own_address(configuration: Configuration) -> str:
    listen = configuration.load().metrics.listen
    if not listen:
        raise click.UsageError("[metrics] listen is empty, so there is nothing to read: name an ADDRESS")
    return address_to_call(listen)


async def _look_twice(replicas: Replicas, interval: float) -> View:
    await replicas.look()
    await asyncio.sleep(interval)
    return await replicas.look()


def _print(view: View) -> None:
    from rich.console import Console

    from famulus_server.cli.monitor.tables import render

    # Where the output is no terminal it has no width, and lines must not be broken.
    Console(width=None if sys.stdout.isatty() else _WIDE).print(render(view))


def _print_json(view: View) -> None:
    import json
    from dataclasses import asdict

    click.echo(json.dumps(asdict(view)))
