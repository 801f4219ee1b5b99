"""`famulus-server doctor`."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from famulus_server.cli.configuration import Configuration

if TYPE_CHECKING:
    from famulus_server.cli.diagnosis.examination import Result

_CLEAR_LINE = "\r\x1b[K"


@click.command(short_help="Look at all that a server needs, and say what to fix.")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Settings, as TOML.  [default: those of famulus-server --config]",
)
@click.option("--ask", is_flag=True, help="Have each model say a word as well, which costs some tokens.")
@click.option(
    "--timeout",
    "seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long each check may take; one that asks a model has at least a minute.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
@click.pass_obj
def doctor(configuration: Configuration, file: Path | None, ask: bool, seconds: float, as_json: bool) -> None:
    """Look at all that a server with these settings needs, and say what to fix.

    It looks at the settings, the database and its schema, Redis, each model's provider, clocks, certificates, keys,
    open files, permissions, and the addresses to listen on: all side by side, so that one that hangs holds up no
    other. Nothing is changed, no tokens are spent without --ask, and neither keys nor passwords are shown. Call it
    where the server runs or is to run, as the same user, with the same environment.

    Each line begins with OK, WARN (a server runs with it, but not as well as it could) or FAIL (it does not start, or
    does not do its work). The exit code is 0 where nothing failed, warnings or not, and 1 otherwise.

    \b
    Examples:
      famulus-server doctor
      famulus-server --config famulus.toml doctor --ask
      famulus-server doctor --json | jq '.findings[] | select(.verdict != "ok")'
    """
    from famulus_server.cli.diagnosis.report import failed, show_json, show_text  # here, because `--help` needs none

    with asyncio.Runner() as runner:
        results = runner.run(_examine(Configuration(file=file) if file else configuration, seconds=seconds, ask=ask))
        # Before the runner waits for threads whose checks were given up: a `key_command` has 30 s.
        (show_json if as_json else show_text)(results)
    sys.exit(1 if failed(results) else 0)


async def _examine(configuration: Configuration, *, seconds: float, ask: bool) -> list[Result]:
    # Here, as above.
    from famulus_server.cli.diagnosis.checks import all_checks
    from famulus_server.cli.diagnosis.examination import Result, examine
    from famulus_server.cli.diagnosis.settings import refused
    from famulus_server.config import ConfigError
    from famulus_server.models.connection import load_sdk
    from famulus_server.telemetry.logs import configure_logs

    try:
        settings = configuration.load()
    except ConfigError as error:
        return [Result(check="settings", findings=[refused(str(error))])]
    # What the server's own parts would log is told as findings, and standard output is for these alone.
    configure_logs(level="error", json=None, secrets=[model.api_key for model in settings.models])
    if settings.models:
        # Before all else: it keeps the interpreter busy for a second, which would count as latency elsewhere.
        await load_sdk()
    return await examine(list(all_checks(configuration, settings, seconds=seconds, ask=ask)), waiting=_tell)


def _tell(waiting: Sequence[str]) -> None:
    """Which checks are still under way, on one line of a terminal."""
    if sys.stderr.isatty():
        text = f"looking at {', '.join(waiting)}" if waiting else ""
        click.echo(f"{_CLEAR_LINE}{text[: shutil.get_terminal_size().columns - 1]}", err=True, nl=False)
