"""What our own commands show a server, and by what they know it."""

from __future__ import annotations

import os
from pathlib import Path

import grpc

from famulus.channels import is_loopback
from famulus_server.cli.failures import Failure


def read_token(file: Path | None) -> str | None:
    """The token of a file, or else of the environment. Raises OSError."""
    return file.read_text().strip() if file else os.environ.get("FAMULUS_TOKEN")


def channel_credentials(address: str, *, ca_file: Path | None, token: str | None) -> grpc.ChannelCredentials | None:
    """Credentials of a channel; None: it is not encrypted. A token leaves this machine over TLS only. Raises
    OSError, and Failure for a file without certificates."""
    if ca_file:
        certificates = ca_file.read_bytes()
        if b"-----BEGIN CERTIFICATE-----" not in certificates:
            raise Failure(f"{ca_file}: holds no certificate (PEM)")
        return grpc.ssl_channel_credentials(certificates)
    if token is None:
        return None
    if address.startswith("unix:"):
        return grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
    # Otherwise the server's certificate must be one that everybody trusts.
    return grpc.local_channel_credentials() if is_loopback(address) else grpc.ssl_channel_credentials()
