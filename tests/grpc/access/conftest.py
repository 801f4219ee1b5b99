"""Servers that ask callers who they are."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import msgspec
import pytest

from credentials import AUDIENCE, ISSUER, Signer, jwks
from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_service_pb2_grpc import ThreadServiceStub
from famulus_server.config import Settings, TlsSettings
from famulus_server.identity.settings import AuthSettings, IssuerSettings
from famulus_server.wiring import RunningServer
from serving import ServerThread, Stubs, settings_in

_SCRIPT = Path(__file__).parents[1] / "script.toml"

Start = Callable[..., "Guarded"]


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


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts servers that are stopped after the module's tests."""
    with ExitStack() as stack:

        def started(auth: AuthSettings, tls: TlsSettings | None = None, *, health_listen: str = "") -> Guarded:
            settings: Settings = settings_in(tmp_path_factory.mktemp("server"), script=_SCRIPT)
            server = msgspec.structs.replace(settings.server, health_listen=health_listen)
            settings = msgspec.structs.replace(settings, auth=auth, tls=tls or TlsSettings(), server=server)
            thread = ServerThread(settings)
            running = thread.start()
            stack.callback(thread.stop)
            return Guarded(running, thread)

        yield started


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer.new("one")


@pytest.fixture(scope="module")
def issuer(signer: Signer, tmp_path_factory: pytest.TempPathFactory) -> IssuerSettings:
    """An issuer with one key, in a file."""
    file = tmp_path_factory.mktemp("issuer") / "keys.json"
    file.write_bytes(jwks(signer))
    return IssuerSettings(issuer=ISSUER, audience=AUDIENCE, jwks_file=str(file))
