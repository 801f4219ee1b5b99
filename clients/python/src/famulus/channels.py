"""How channels to famulus are set up."""

from collections.abc import Sequence
from typing import Any

import grpc

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


def channel_options(own: Options) -> list[tuple[str, Any]]:
    """The options of a channel; the caller's own ones win."""
    return list({**DEFAULTS, **dict(own)}.items())


def channel_credentials(
    credentials: grpc.ChannelCredentials | None, token: str | None
) -> grpc.ChannelCredentials | None:
    """Credentials with which every call carries the token. Raises ValueError for a token without encryption."""
    if token is None:
        return credentials
    if credentials is None:
        raise ValueError("a token is only sent over an encrypted channel: pass credentials, too")
    return grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
