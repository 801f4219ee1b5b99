"""How channels to famulus are set up."""

import ipaddress
import re
from collections.abc import Sequence
from typing import Any

import grpc

from famulus.tokens import Bearer, CallCredentials

Options = Sequence[tuple[str, Any]]

DEFAULTS: dict[str, Any] = {
    # A dead connection is noticed after 20 + 10 seconds; the server allows pings 10 seconds apart.
    "grpc.keepalive_time_ms": 20_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.http2.max_pings_without_data": 0,
    # Back on the line soon after a restart; the waits between calls are this client's own.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2_000,
    "grpc.enable_retries": 0,
    # A Snapshot holds all messages of a run.
    "grpc.max_receive_message_length": 64 << 20,
    # Streams spread over all replicas that `dns:///name:port` finds.
    "grpc.service_config": '{"loadBalancingConfig": [{"round_robin": {}}]}',
}

# A proxy that the environment names would look for this machine's servers on its own machine.
NO_PROXY: dict[str, Any] = {"grpc.enable_http_proxy": 0}

# `host:port`, `[v6]:port`, or one of these behind a scheme of gRPC's, such as `dns:///`.
_TARGET = re.compile(r"(?:(?:dns|ipv4|ipv6):(?://[^/]*/)?)?(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:/]+))(?::\w+)?")


def channel_options(target: str, own: Options = ()) -> list[tuple[str, Any]]:
    """The options of a channel to `target`; the caller's own ones win. Raises ValueError for what is no target: gRPC
    would look for it in the DNS, again and again."""
    if not target.strip() or re.match(r"https?://", target, re.IGNORECASE):
        raise ValueError(f"the target is not host:port, nor a name such as dns:///host:port: {target!r}")
    return list({**DEFAULTS, **(NO_PROXY if is_loopback(target) else {}), **dict(own)}.items())


def is_loopback(target: str) -> bool:
    """Whether a target of gRPC's names this machine, as far as can be told without resolving names."""
    match = _TARGET.fullmatch(target)
    if match is None:
        return False
    host = match["v6"] or match["host"]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def channel_credentials(
    target: str, credentials: grpc.ChannelCredentials | None, bearer: Bearer | None, *, in_plaintext: bool
) -> grpc.ChannelCredentials | None:
    """Credentials with which every call carries the token; None for a channel in plaintext, where gRPC adds none.
    Raises ValueError for a token that would leave this machine without encryption, unless that is allowed."""
    if bearer is None or (credentials is None and in_plaintext):
        return credentials
    if credentials is None:
        if not is_loopback(target):
            raise ValueError(
                "a token is only sent over an encrypted channel: pass credentials, too, "
                "or token_in_plaintext=True where the way to the service is safe"
            )
        credentials = grpc.local_channel_credentials()  # not encrypted; gRPC refuses peers that are not on this machine
    calls = grpc.metadata_call_credentials(CallCredentials(bearer))
    return grpc.composite_channel_credentials(credentials, calls)
