"""Options that several commands have."""

from __future__ import annotations

import re
from pathlib import Path

import click

_EVERYWHERE = re.compile(r"0\.0\.0\.0|\[[0:]+\]")

listen_option = click.option("--listen", metavar="HOST:PORT", help="Where to listen; port 0 takes a free one.")
data_dir_option = click.option("--data-dir", metavar="DIR", help="Where the database and all other files are kept.")
log_level_option = click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="What to log, on standard error."
)
address_option = click.option(
    "--address", metavar="HOST:PORT", help="The server to call.  [default: where the settings say it listens]"
)
ca_file_option = click.option(
    "--ca-file",
    type=click.Path(path_type=Path),
    envvar="FAMULUS_CA_FILE",
    show_envvar=True,
    metavar="FILE",
    help="Call over TLS, and trust a server whose certificate this CA (PEM) has signed.",
)
token_file_option = click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    envvar="FAMULUS_TOKEN_FILE",
    show_envvar=True,
    metavar="FILE",
    help="Show the server the token or key in this file.  [default: the variable FAMULUS_TOKEN]",
)


def address_to_call(listen: str) -> str:
    """Where a server of this machine is called that listens there: the addresses that stand for all of its own are
    nobody's name, and in no certificate."""
    host, colon, port = listen.rpartition(":")
    return f"localhost{colon}{port}" if _EVERYWHERE.fullmatch(host) else listen
