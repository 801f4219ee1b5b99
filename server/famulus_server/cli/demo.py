"""`famulus-server demo`."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from famulus_server.cli.configuration import Changes, Configuration
from famulus_server.cli.console import note, start_logs
from famulus_server.cli.failures import Failure
from famulus_server.cli.options import data_dir_option, listen_option, log_level_option
from famulus_server.cli.serving import serving
from famulus_server.cli.signals import Stopped

if TYPE_CHECKING:
    from famulus_server.cli.findings import Findings
    from famulus_server.config import Settings
    from famulus_server.wiring.server import RunningServer

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

    With --keep-serving it is one run, on the server that the settings describe; that server then goes on serving.

    \b
    Examples:
      famulus-server demo
      famulus-server demo --keep-serving
      famulus-server demo | tail -1 | python3 -m json.tool
    """
    started = time.perf_counter()
    log = {"level": log_level or "warning"}  # more would get between the lines of the runs
    if keep_serving:
        settings = configuration.load_to_serve({"server": {"listen": listen, "data_dir": data_dir}, "log": log})
        if settings.auth.configured or settings.tls.cert_file:
            raise click.UsageError("--keep-serving shows a run without credentials and TLS: use `serve` and `chat`")
        start_logs(settings)
        with contextlib.suppress(Stopped):
            asyncio.run(_show_and_serve(settings, started))
        return
    if listen or data_dir:
        raise click.UsageError("--listen and --data-dir go with --keep-serving")
    with tempfile.TemporaryDirectory(prefix="famulus-demo-") as folder:
        settings = configuration.load({**_apart(folder), "log": log})
        start_logs(settings)
        try:
            findings = asyncio.run(_show_all(settings, started))
        except Stopped:
            raise click.exceptions.Exit(_INTERRUPTED) from None
    # After all else, since it is the last line.
    click.echo(findings.to_json())
    if not findings.ok:
        raise Failure("; ".join(findings.problems))


def _apart(folder: str) -> Changes:
    """Settings under which nothing is shared with a server that runs, or ever ran, here."""
    return {
        "server": {"listen": "127.0.0.1:0", "data_dir": folder, "health_listen": ""},
        "auth": {"issuers": (), "keys": (), "certificates": ()},
        "tls": {"cert_file": "", "key_file": "", "client_ca_file": ""},
        "store": {"path": ""},
        "redis": {"url": ""},
        "metrics": {"listen": ""},
        "embedded": {"scripted_model": "on", "script": ""},
    }


async def _show_all(settings: Settings, started: float) -> Findings:
    # Here, because these load grpc.
    import grpc

    from famulus import FamulusClient, FamulusError
    from famulus_server.cli.demonstration import Demonstration

    async with serving(settings) as (server, signals):
        findings = _introduce(server, started)
        with signals.interrupting():
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS), FamulusClient(server.address) as client:
                    demonstration = Demonstration(address=server.address, client=client, findings=findings)
                    await demonstration.converse()
                    await demonstration.cut_and_resume(scripted=server.default_model == server.scripted_model)
                    await demonstration.call_tools(server.scripted_model or server.default_model)
            except (FamulusError, grpc.RpcError, TimeoutError) as error:
                findings.check(False, f"it broke off: {error!r}")
    return findings


async def _show_and_serve(settings: Settings, started: float) -> None:
    from famulus import FamulusClient  # here, because it loads grpc
    from famulus_server.cli.demonstration import Demonstration

    async with serving(settings) as (server, signals):
        findings = _introduce(server, started)
        with signals.interrupting():
            async with asyncio.timeout(_PATIENCE_SECONDS), FamulusClient(server.address) as client:
                demonstration = Demonstration(address=server.address, client=client, findings=findings)
                await demonstration.converse()
        for problem in findings.problems:
            note(f"error: {problem}")
        _tell_how_to_call(server.address, demonstration.thread_id)
        await signals.wait()
        note(f"Draining, for up to {settings.server.drain_seconds:g} s; another Ctrl-C exits at once.")


def _introduce(server: RunningServer, started: float) -> Findings:
    from famulus_server.cli.findings import Findings

    findings = Findings(model=server.default_model, ready_ms=round((time.perf_counter() - started) * 1_000))
    click.echo(f"famulus serves {server.address} and was ready after {findings.ready_ms:.0f} ms")
    if server.default_model == server.scripted_model:
        click.echo("The answers come from a script: there is no local model here.")
    else:
        click.echo(f"The answers come from {server.default_model}.")
    return findings


def _tell_how_to_call(address: str, thread_id: str) -> None:
    program = Path(sys.argv[0])
    buf = program.with_name("buf")
    request = (
        f'{{"create": {{"thread_id": "{thread_id}", "max_completion_tokens": 200, "additional_messages": '
        '[{"role": "MESSAGE_ROLE_USER", "content": [{"text": {"text": "Write one sentence about the moon."}}]}]}}'
    )
    click.echo(
        f"\nCall it from another terminal:\n"
        f"  {shlex.quote(str(program))} chat --address {address} --thread {thread_id}\n"
        f"  {shlex.quote(str(buf)) if buf.exists() else 'buf'} curl --protocol grpc --http2-prior-knowledge "
        f"--data {shlex.quote(request)} http://{address}/famulus.v1.RunService/StreamRun\n"
        "\nCtrl-C stops the server."
    )
