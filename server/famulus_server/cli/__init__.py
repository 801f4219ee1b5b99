"""The command line.

The modules here import little but click at their top, and what is heavy (grpc, aiohttp, the wiring) inside their
commands: `--help` and wrong settings must not wait for it.
"""

from __future__ import annotations

from pathlib import Path

import click

from famulus_server.cli.audit import audit
from famulus_server.cli.auth import auth
from famulus_server.cli.chat import chat
from famulus_server.cli.config import config
from famulus_server.cli.configuration import Configuration
from famulus_server.cli.demo import demo
from famulus_server.cli.doctor import doctor
from famulus_server.cli.failures import Cli
from famulus_server.cli.fake_upstream import fake_upstream
from famulus_server.cli.healthcheck import healthcheck
from famulus_server.cli.keys import keys
from famulus_server.cli.migrate import migrate
from famulus_server.cli.models import models
from famulus_server.cli.serve import serve
from famulus_server.cli.top import top

__all__ = ["main"]


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    envvar="FAMULUS_CONFIG",
    show_envvar=True,
    metavar="FILE",
    help="Settings, as TOML. Without it the defaults hold.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="famulus-server", message="famulus-server %(version)s")
@click.pass_context
def main(context: click.Context, file: Path | None, debug: bool) -> None:
    """Famulus owns AI assistants, threads and runs, and streams what happens in a run over gRPC.

    Each setting is also read from the environment: `[server] listen` is FAMULUS_SERVER_LISTEN.

    \b
    Examples:
      famulus-server serve                             start the server with all it needs
      famulus-server --config famulus.toml serve       ... with your own settings and models
      famulus-server config check famulus.toml         see whether they are right, and what they mean
      famulus-server chat                              talk to it
      famulus-server chat --thread thread_...          go on where you left off
      famulus-server demo                              see what it does; nothing is kept
      famulus-server healthcheck && echo ready         for probes and scripts
      famulus-server doctor                            find out what is wrong, and what to do
      famulus-server top                               watch what the replicas do
    """
    del debug  # for Cli
    context.obj = Configuration(file=file)


for command in (serve, demo, chat, config, auth, audit, migrate, keys, models, healthcheck, doctor, top, fake_upstream):
    main.add_command(command)
