"""The gRPC server: its options, the layers of every call, its services, its start and its stop."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from famulus.v1 import (
    assistant_service_pb2,
    assistant_service_pb2_grpc,
    run_service_pb2,
    run_service_pb2_grpc,
    thread_service_pb2,
    thread_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
    user_data_service_pb2,
    user_data_service_pb2_grpc,
)
from famulus_server.api.access_log import AccessLog
from famulus_server.api.addresses import ListenError, check_reachable, taken, with_port
from famulus_server.api.assistants import AssistantServicer
from famulus_server.api.audit import Audit
from famulus_server.api.callers import Callers, OneCaller
from famulus_server.api.calls import Caller
from famulus_server.api.deadlines import Deadlines
from famulus_server.api.draining import Admission, Drain
from famulus_server.api.errands import Errands
from famulus_server.api.errors import Errors
from famulus_server.api.health import Health
from famulus_server.api.metrics import CallMetrics
from famulus_server.api.pages import Pages
from famulus_server.api.pipeline import Layer, Pipeline
from famulus_server.api.probes import ProbeServer
from famulus_server.api.roles import INCLUDED, REFLECTION, Roles
from famulus_server.api.runs import RunServicer
from famulus_server.api.threads import ThreadServicer
from famulus_server.api.tls import ServerCertificates
from famulus_server.api.traces import Traces
from famulus_server.api.usage import UsageServicer
from famulus_server.api.user_data import UserDataServicer
from famulus_server.engine.assistants import AssistantDesk
from famulus_server.engine.export import Export
from famulus_server.engine.messages import MessageDesk
from famulus_server.engine.runs import RunDesk
from famulus_server.engine.threads import ThreadDesk
from famulus_server.engine.usage import UsageDesk
from famulus_server.engine.user_data import UserDataDesk
from famulus_server.engine.watch import Watch
from famulus_server.ports import UNTRACED, Authenticator, Clock, Ids, Metrics, Tracer

_OPTIONS: Sequence[tuple[str, Any]] = (
    # A second server on the same port is a mistake that must show, not half of the calls going elsewhere.
    ("grpc.so_reuseport", 0),
    # A client that froze is noticed in half a minute, and idle streams stay open through gateways.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    # Clients may ping as well, also between calls, but not flood.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Per connection: a client that opens and cancels calls in a loop must not starve others.
    ("grpc.max_concurrent_streams", 100),
    # Calls that nobody has looked at yet. Of more than 1,000, as when the streams of a lost replica come all at once,
    # gRPC would drop some by itself, with CANCELLED, which tells a caller nothing.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
    # Clients reconnect now and then, so that new replicas get their share; streams have time to end or resume.
    ("grpc.max_connection_age_ms", 30 * 60 * 1_000),
    ("grpc.max_connection_age_grace_ms", 10 * 60 * 1_000),
    # Larger requests are refused with RESOURCE_EXHAUSTED before they are read, unpacked size counted.
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
)
_RUNS = "/famulus.v1.RunService/"
_STARTING_WORK = (_RUNS + "CreateRun", _RUNS + "StreamRun")
_PATIENT = (_RUNS + "WaitRun",)
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_SERVICES = tuple(
    service.full_name
    for file in (
        assistant_service_pb2,
        thread_service_pb2,
        run_service_pb2,
        usage_service_pb2,
        user_data_service_pb2,
    )
    for service in file.DESCRIPTOR.services_by_name.values()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desks:
    """What the services of the API hand their calls to."""

    assistants: AssistantDesk
    threads: ThreadDesk
    messages: MessageDesk
    runs: RunDesk
    watch: Watch
    usage: UsageDesk
    user_data: UserDataDesk
    export: Export


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How callers come in. Without an `authenticator` all of them are one, who may do everything.

    With `certificates` they come over TLS; `plaintext` allows tokens to come over a network without it. On
    `health_address`, unless it is empty, there is a second port, without TLS, for health alone.
    """

    authenticator: Authenticator | None
    open_reflection: bool
    plaintext: bool
    certificates: ServerCertificates | None
    health_address: str


class _Services:
    """The server, as generated code adds services to it: it adds each of them twice, as a whole, and then its methods
    by their names. For those gRPC would wait one by one: some forty waits to set up and take down at each call."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, methods: object) -> None:
        """Leaves it at the whole."""


class ApiServer:
    """Serves the API on one address. Make it, `start` it and `stop` it inside one event loop."""

    def __init__(
        self,
        *,
        address: str,
        desks: Desks | None,
        clock: Clock,
        ids: Ids,
        metrics: Metrics,
        page_key: bytes,
        access: Access,
        ping: Callable[[], Awaitable[object]],
        ping_seconds: float = 1.0,
        unary_seconds: float = 60.0,
        slow_seconds: float = 30.0,
        audit: Audit | None = None,
        tracer: Tracer = UNTRACED,
    ) -> None:
        """Without `desks` only health is served, and without `audit` no call is noted. `page_key` signs page tokens and
        is the same on all replicas; `ping` raises unless the store answers, and is called each `ping_seconds`; unary
        calls but WaitRun end after `unary_seconds`, and streams whose reader takes `slow_seconds` for a response.
        Raises ListenError where the address is one that others reach, and `access` is not made for that."""
        check_reachable(
            address,
            authenticated=access.authenticator is not None,
            encrypted=access.certificates is not None or access.plaintext,
        )
        self._address = address
        self._certificates = access.certificates
        self._drain = Drain()
        self._errands = Errands()
        self._metrics = metrics
        services = _SERVICES if desks else ()
        self._health = Health(services=services, ping=ping, drain=self._drain, interval_seconds=ping_seconds)
        self._follower: asyncio.Task[None] | None = None
        knowing: Sequence[Layer] = (OneCaller(Caller(tenant="default", roles=frozenset(INCLUDED))),)
        self._callers: Callers | None = None
        if access.authenticator is not None:
            self._callers = Callers(
                authenticator=access.authenticator,
                clock=clock,
                open_services=(_HEALTH, REFLECTION) if access.open_reflection else (_HEALTH,),
                patient=_PATIENT,
            )
            knowing = (self._callers, Roles())
        # Every call passes these, the outermost first.
        outer: Sequence[Layer] = (
            *([Traces(tracer=tracer)] if tracer.on else []),
            AccessLog(ids=ids),
            CallMetrics(metrics=metrics),
            *([audit] if audit else []),
            Errors(ids=ids),
            Deadlines(unary_seconds=unary_seconds, patient=_PATIENT),
        )
        layers = (*outer, *knowing, Admission(drain=self._drain, methods=_STARTING_WORK))
        self._server = grpc.aio.server(interceptors=[Pipeline(layers, slow_seconds=slow_seconds)], options=_OPTIONS)
        server: Any = _Services(self._server)
        if desks:
            self._offer(server, desks, Pages(key=page_key))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*services, _HEALTH, REFLECTION), self._server)
        self.health_address = ""  # of the second port, once it listens
        self._probes: ProbeServer | None = None
        if access.health_address:
            self._probes = ProbeServer(address=access.health_address, health=self._health, layers=outer)

    def _offer(self, server: Any, desks: Desks, pages: Pages) -> None:
        assistant_service_pb2_grpc.add_AssistantServiceServicer_to_server(
            AssistantServicer(assistants=desks.assistants, pages=pages), server
        )
        thread_service_pb2_grpc.add_ThreadServiceServicer_to_server(
            ThreadServicer(threads=desks.threads, messages=desks.messages, pages=pages, errands=self._errands),
            server,
        )
        run_service_pb2_grpc.add_RunServiceServicer_to_server(
            RunServicer(
                runs=desks.runs,
                watch=desks.watch,
                pages=pages,
                drain=self._drain,
                errands=self._errands,
                metrics=self._metrics,
            ),
            server,
        )
        usage_service_pb2_grpc.add_UsageServiceServicer_to_server(UsageServicer(usage=desks.usage, pages=pages), server)
        user_data_service_pb2_grpc.add_UserDataServiceServicer_to_server(
            UserDataServicer(user_data=desks.user_data, export=desks.export, drain=self._drain, errands=self._errands),
            server,
        )

    async def start(self) -> str:
        """Listens; returns the address, with the port that the system chose where 0 was asked for. Raises ListenError
        where the address is taken."""
        try:
            port = (
                self._server.add_secure_port(self._address, self._certificates.credentials())
                if self._certificates
                else self._server.add_insecure_port(self._address)
            )
        except RuntimeError:
            raise ListenError(taken(self._address)) from None
        if self._probes is not None:
            self.health_address = await self._probes.start()
        # First, so that a server which has started is ready, if it can be.
        await self._health.look()
        self._follower = asyncio.create_task(self._health.follow_store())
        await self._server.start()
        return with_port(self._address, port)

    @property
    def ready(self) -> bool:
        """Whether this server is to be called."""
        return self._health.ready

    @property
    def draining(self) -> bool:
        """Whether this server is going away."""
        return self._drain.started

    def drain(self) -> None:
        """From now on new runs are refused, open streams end with SERVER_DRAINING, and no name is ready but
        `liveness` and `startup`. Other calls are still served."""
        self._drain.start()
        self._health.drain()

    def look_again_at_callers(self) -> None:
        """Who is known, and as whom, may have changed: ends the streams of those who are not known any more."""
        if self._callers is not None:
            self._errands.start(self._callers.look_again())

    async def stop(self, *, grace_seconds: float) -> None:
        """Drains, then lets calls end for at most `grace_seconds` and cancels those that have not. Run it once."""
        self.drain()
        await self._server.stop(grace_seconds)
        if self._probes is not None:
            await self._probes.stop(grace_seconds)
        await self._errands.finish(seconds=grace_seconds)
        if self._follower is not None:
            self._follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._follower

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self._server.wait_for_termination()
