"""An environment that sends all HTTP and gRPC traffic to a proxy which does not answer."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "grpc_proxy")
EXCEPTIONS = ("no_proxy", "NO_PROXY", "no_grpc_proxy")


@contextmanager
def dead_proxy() -> Iterator[Mapping[str, str]]:
    """The variables of the environment. Connections to the proxy are refused while this is entered."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        yield proxied_by(f"http://127.0.0.1:{taken.getsockname()[1]}")


def proxied_by(url: str) -> Mapping[str, str]:
    """The variables of the environment that name this proxy, for all hosts."""
    return dict.fromkeys(PROXIES, url) | dict.fromkeys(EXCEPTIONS, "")
