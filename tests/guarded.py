"""A server that asks callers who they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_service_pb2_grpc import ThreadServiceStub
from famulus_server.identity.settings import AuthSettings
from famulus_server.wiring.server import RunningServer
from serving import ServerThread, Stubs


@dataclass(frozen=True)
class Guarded:
    """A server with authentication."""

    running: RunningServer
    thread: ServerThread

    @property
    def address(self) -> str:
        return self.running.address

    @contextmanager
    def calling(self, credentials: grpc.ChannelCredentials | None = None) -> Iterator[Stubs]:
        """The stubs on a connection of their own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        opened = (
            grpc.secure_channel(self.address, credentials, options)
            if credentials
            else grpc.insecure_channel(self.address, options)
        )
        with opened as channel:
            yield Stubs(AssistantServiceStub(channel), ThreadServiceStub(channel), RunServiceStub(channel))

    def admit(self, auth: AuthSettings) -> None:
        """As SIGHUP does, on the server's own loop; returns when it is done."""
        admit = self.running.admit
        assert admit is not None
        self.thread.do(lambda: admit(auth))
