"""`famulus-server healthcheck`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from famulus_server.cli.configuration import Configuration
from famulus_server.cli.options import address_option, address_to_call, ca_file_option

_NOT_SERVING = 1
_UNREACHABLE = 2


@click.command(short_help="Ask a server whether it serves.")
@address_option
@ca_file_option
@click.option("--service", default="readiness", show_default=True, help="startup, liveness, readiness, or a service.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the answer may take.",
)
@click.pass_obj
def healthcheck(
    configuration: Configuration, address: str | None, ca_file: Path | None, service: str, timeout: float
) -> None:
    """Ask a server whether it serves (grpc.health.v1).

    Anybody may ask; without --address it is asked where the settings have a port for that, `[server] health_listen`, if
    there is one. The exit code is 0 where it does, 1 where it does not, and 2 where no server answers in time.

    \b
    Examples:
      famulus-server healthcheck
      famulus-server healthcheck --address 127.0.0.1:9000 --service famulus.v1.RunService
    """
    target = address or _where(configuration, encrypted=ca_file is not None)
    # Here, because grpc takes a while to import.
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    from famulus.channels import channel_options
    from famulus_server.cli.credentials import channel_credentials

    credentials = channel_credentials(target, ca_file=ca_file, token=None)
    options = channel_options(target)
    opened = (
        grpc.secure_channel(target, credentials, options) if credentials else grpc.insecure_channel(target, options)
    )
    with opened as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=timeout)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                click.echo(f"{target}: no service {service!r}")
                sys.exit(_NOT_SERVING)
            click.echo(f"{target}: no answer ({error.code().name})")
            sys.exit(_UNREACHABLE)
    click.echo(f"{target}: {service or 'server'} {HealthCheckResponse.ServingStatus.Name(answer.status)}")
    sys.exit(0 if answer.status == HealthCheckResponse.SERVING else _NOT_SERVING)


def _where(configuration: Configuration, *, encrypted: bool) -> str:
    server = configuration.load().server
    return address_to_call(server.listen if encrypted or not server.health_listen else server.health_listen)
