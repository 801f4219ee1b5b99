"""A second port for probes that speak no TLS, as the kubelet's do."""

from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2_grpc

from famulus_server.api.addresses import ListenError, taken, with_port
from famulus_server.api.health import Health
from famulus_server.api.pipeline import Layer, Pipeline

_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", 100),
    # Names of services are short.
    ("grpc.max_receive_message_length", 4 * 1024),
)


class ProbeServer:
    """Serves grpc.health.v1 and nothing else, to anybody."""

    def __init__(self, *, address: str, health: Health, layers: Sequence[Layer]) -> None:
        self._address = address
        self._server = grpc.aio.server(interceptors=[Pipeline(layers)], options=_OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(health, self._server)

    async def start(self) -> str:
        """Listens; returns the address, with the port that the system chose where 0 was asked for. Raises ListenError
        where the address is taken."""
        try:
            port = self._server.add_insecure_port(self._address)
        except RuntimeError:
            raise ListenError(taken(self._address)) from None
        await self._server.start()
        return with_port(self._address, port)

    async def stop(self, grace_seconds: float) -> None:
        """Ends as the health service does when the server drains."""
        await self._server.stop(grace_seconds)
