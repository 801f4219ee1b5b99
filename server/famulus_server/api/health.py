"""grpc.health.v1, as probes and load balancers ask for it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import grpc
import structlog
from grpc.aio import ServicerContext
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from famulus_server.api.draining import Drain

_log = structlog.get_logger()

_SERVING = HealthCheckResponse.SERVING
_NOT_SERVING = HealthCheckResponse.NOT_SERVING
_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


class Health(HealthServicer):  # type: ignore[misc]
    """What serves, by name.

    `startup`     once the server listens
    `liveness`    as long as the event loop turns: a database that is away is no reason to kill the process
    `readiness`, the empty name and each service: while the store answers, and until the server drains
    """

    def __init__(
        self,
        *,
        services: Sequence[str],
        ping: Callable[[], Awaitable[object]],
        drain: Drain,
        interval_seconds: float,
    ) -> None:
        """`ping` asks the store for an answer and raises where it gives none; each may take one interval."""
        self._always = frozenset({"startup", "liveness"})
        self._following = frozenset({"", "readiness", *services})
        self._ping = ping
        self._drain = drain
        self._interval_seconds = interval_seconds
        self._ready = False
        self._changed = asyncio.Event()

    async def Check(
        self, request: HealthCheckRequest, context: ServicerContext[HealthCheckRequest, HealthCheckResponse]
    ) -> HealthCheckResponse:
        status = self._status(request.service)
        if status == _UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return HealthCheckResponse(status=status)

    async def Watch(self, request: HealthCheckRequest, _: object) -> AsyncIterator[HealthCheckResponse]:
        """Ends when the server drains: an open stream would hold up its stop for the whole grace."""
        told = None
        while True:
            changed, status, last = self._changed, self._status(request.service), self._drain.started
            if status != told:
                yield HealthCheckResponse(status=status)
                told = status
            if last:
                return
            await changed.wait()

    async def look(self) -> None:
        """Asks the store once, for at most one interval."""
        self._set_ready(await self._answers())

    async def follow_store(self) -> None:
        """Asks the store after each interval, for ever."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            await self.look()

    @property
    def ready(self) -> bool:
        """Whether `readiness` is SERVING."""
        return self._ready and not self._drain.started

    def drain(self) -> None:
        """Tells everybody who watches that the server has begun to drain."""
        self._tell()

    def _status(self, service: str) -> int:
        if service in self._always:
            return int(_SERVING)
        if service in self._following:
            return int(_SERVING if self.ready else _NOT_SERVING)
        return int(_UNKNOWN)

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(self._interval_seconds):
                await self._ping()
        except Exception as error:  # noqa: BLE001 - every kind of failure means the same here
            if self._ready:
                _log.warning("store does not answer", exception=type(error).__name__)
            return False
        return True

    def _set_ready(self, ready: bool) -> None:
        if ready != self._ready:
            self._ready = ready
            _log.info("readiness", ready=ready)
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
