"""`famulus-server config`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from famulus_server.cli.configuration import Configuration


@click.group(short_help="The settings: check and explain them.")
def config() -> None:
    """The settings: check and explain them."""


@config.command(short_help="Check the settings and say what they mean.")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.pass_obj
def check(configuration: Configuration, file: Path | None) -> None:
    """Check the settings of FILE and the environment as `serve` does, and say in plain words what they mean.

    FILE is that of --config unless it is named here; without either, the defaults are explained. Nothing is started,
    connected to or changed. Keys and passwords are never shown. Warnings are about settings that are allowed, but
    perhaps not meant.

    The exit code is 0 if a server can start with these settings, warnings or not, and 2 if it refuses them: then
    standard error names the file, the key and the fault. After a change, SIGHUP has a running server read its file
    again.

    \b
    Examples:
      famulus-server config check famulus.toml
      famulus-server --config famulus.toml config check
      famulus-server config check famulus.toml && kill -HUP "$pid"
    """
    # Here, because `--help` needs no settings.
    from famulus_server.cli.config_explanation import explain
    from famulus_server.cli.config_warnings import find_warnings
    from famulus_server.config import variables

    path = file or configuration.file
    checked = Configuration(file=path)
    settings = checked.load_to_serve({})
    if settings.with_scripted_model and settings.embedded.script:
        from famulus_server.embedded.upstream import load_script  # here, because aiohttp takes long

        load_script(Path(settings.embedded.script))
    checked.check_certificates(settings)
    click.echo(f"{path or 'No file'}: a server can start with this. It means:")
    for title, lines in explain(settings, variables(path, os.environ)):
        _show(title, lines)
    _show("Warnings", list(find_warnings(settings, os.environ)) or ["none"])


def _show(title: str, lines: list[str]) -> None:
    click.echo(f"\n{title}")
    for line in lines:
        click.echo(f"  {line}")
