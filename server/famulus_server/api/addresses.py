"""Where the server may listen."""

import ipaddress
import re
import socket

_HOST_AND_PORT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>\d{1,5})")


class ListenError(Exception):
    """The server cannot, or must not, listen where it was told to. The text is for whoever starts it."""


def check_reachable(address: str, *, authenticated: bool, encrypted: bool) -> None:
    """Raises ListenError unless `address` (`host:port`, `[v6]:port` or `unix:path`) may be listened on: one that other
    machines reach only where callers are authenticated, and where what they show to be so is encrypted."""
    if address.startswith("unix:"):
        return
    match = _HOST_AND_PORT.fullmatch(address)
    if match is None or int(match["port"]) > 65_535:
        raise ListenError(f"{address!r} is no address to listen on: write host:port, [v6-address]:port or unix:path")
    host = match["v6"] or match["host"]
    if _is_loopback(host):
        return
    if not authenticated:
        raise ListenError(
            f"refusing to listen on {address!r}: this server has no authentication, so it listens on loopback only. "
            "Configure [auth]; or use 127.0.0.1, ::1, localhost or a unix: path, and put whatever authenticates "
            "callers in front of it"
        )
    if not encrypted:
        raise ListenError(
            f"refusing to listen on {address!r} without TLS, because tokens would be sent in the clear. Configure "
            "[tls]; or say plaintext = true in [auth], where a mesh encrypts all connections"
        )


def check_free(address: str) -> None:
    """Raises ListenError where another process listens on the address already: better known before anything starts
    than after. Takes nothing; the server still finds out by itself."""
    match = _HOST_AND_PORT.fullmatch(address)
    if match is None:
        return
    host, port = match["v6"] or match["host"], int(match["port"])
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # As gRPC does: a port whose last connections are still closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(target)
        except OSError:
            raise ListenError(taken(address)) from None


def taken(address: str) -> str:
    """What to say of an address that cannot be listened on."""
    return f"cannot listen on {address!r}: is another server running there?"


def with_port(address: str, port: int) -> str:
    """The address with the port that the system chose, where 0 was asked for."""
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
