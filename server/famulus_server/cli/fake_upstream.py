"""`famulus-server fake-upstream`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from famulus_server.cli.console import note
from famulus_server.cli.signals import StopSignals


@click.command(short_help="Run the scripted OpenAI-compatible server, for tests.")
@click.option(
    "--script", type=click.Path(path_type=Path), metavar="FILE", help="What to play.  [default: the built-in script]"
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=0,
    show_default=True,
    help="On which port; 0 takes a free one.",
)
@click.option("--allow-remote", is_flag=True, help="Listen on other than loopback addresses: it asks for no password.")
def fake_upstream(script: Path | None, host: str, port: int, allow_remote: bool) -> None:
    """Run the scripted upstream: an OpenAI-compatible server that answers from a script, faults included.

    It prints its base URL and serves until Ctrl-C or SIGTERM. docs/scripted-upstream.md describes scripts.

    \b
    Examples:
      famulus-server fake-upstream
      famulus-server fake-upstream --script weather.toml --port 8089
    """
    asyncio.run(_serve(script, host, port, allow_remote))


async def _serve(script: Path | None, host: str, port: int, allow_remote: bool) -> None:
    from famulus_server.embedded.upstream import ScriptedUpstream, load_script  # here, because aiohttp takes long

    upstream = ScriptedUpstream(script=load_script(script) if script else None)
    with StopSignals() as signals:
        try:
            click.echo(await upstream.start(host, port, allow_remote=allow_remote))
            await signals.wait()
            note(f"{len(upstream.requests)} requests were answered")
        except ValueError as error:
            raise click.UsageError(f"{error}: say --allow-remote if that is what you want") from None
        finally:
            await upstream.close()
