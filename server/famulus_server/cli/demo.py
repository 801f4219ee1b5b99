"""`famulus-server demo`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from famulus_server.cli.configuration import Changes, Configuration
from famulus_server.cli.console import note, start_logs
from famulus_server.cli.options import data_dir_option, listen_option, log_level_option
from famulus_server.cli.signals import Stopped, StopSignals

if TYPE_CHECKING:
    from famulus_server.config import Settings
    from famulus_server.wiring import RunningServer

_PATIENCE_SECONDS = 120.0
_INTERRUPTED = 130


@click.command(short_help="Start a server, show runs on it, and stop.")
@click.option("--keep-serving", is_flag=True, help="Show one run, then serve as `serve` does.")
@listen_option
@data_dir_option
@log_level_option
@click.pass_obj
def demo(
    configuration: Configuration, keep_serving: bool, listen: str | None, data_dir: str | None, log_level: str | None
) -> None:
    """Start a server, show runs on it, and stop.

    Shown are a run of the local model, a run whose connection breaks half way and is resumed, and a run that calls
    functions. Nothing is kept and no running server disturbed. The last line is JSON: what was measured. The exit code
    is 0 if all was as it should be.

    With --keep-serving it is one run on the server that the settings describe, which then goes on serving.

    \b
    Examples:
      famulus-server demo
      famulus-server demo --keep-serving
      famulus-server demo 2>/dev/null | tail -1 | python3 -m json.tool
    """
    started = time.perf_counter()
    given: Changes = {
        "server": {"listen": listen, "data_dir": data_dir},
        "log": {"level": log_level or "warning"},  # else the log would get between the lines of the runs
    }
    with contextlib.ExitStack() as stack:
        if not keep_serving:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="famulus-demo-"))
            given = _apart(given, folder)
        settings = configuration.load_to_serve(given)
        start_logs(settings)
        try:
            exit_code = asyncio.run(_keep_serving(settings, started) if keep_serving else _show_all(settings, started))
        except Stopped:
            exit_code = 0 if keep_serving else _INTERRUPTED
    sys.exit(exit_code)


def _apart(given: Changes, folder: str) -> Changes:
    """Settings under which nothing is shared with a server that runs, or ever ran, here."""
    server = given["server"]
    return {
        **given,
        "server": {"listen": server["listen"] or "127.0.0.1:0", "data_dir": server["data_dir"] or folder},
        "store": {"path": ""},
        "redis": {"url": ""},
        "embedded": {"scripted_model": "on", "script": ""},
    }


async def _show_all(settings: Settings, started: float) -> int:
    from famulus_server.cli.demonstration import Demonstration  # here, because it loads grpc

    async with _stage(settings, started) as (signals, server, demonstration):
        with signals.interrupting():
            async with asyncio.timeout(_PATIENCE_SECONDS):
                pass
