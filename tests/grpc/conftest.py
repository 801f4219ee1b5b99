"""pytest-grpc's channels and stubs on top of the whole server.

pytest-grpc knows synchronous servers only, so its server fixtures are replaced; its `grpc_create_channel`,
`grpc_channel` and `grpc_stub` are used as they are.
"""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_service_pb2_grpc import ThreadServiceStub
from famulus_server.wiring.server import RunningServer
from serving import ServerThread, Stubs, settings_in

_SCRIPT = Path(__file__).with_name("script.toml")


@pytest.fixture(scope="session")
def _grpc_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    thread = ServerThread(settings_in(tmp_path_factory.mktemp("server"), script=_SCRIPT))
    running = thread.start()
    yield running
    thread.stop()


@pytest.fixture(scope="session")
def grpc_server(_grpc_server: RunningServer) -> RunningServer:
    return _grpc_server


@pytest.fixture(scope="session")
def grpc_addr(_grpc_server: RunningServer) -> str:
    return _grpc_server.address


@pytest.fixture(scope="module")
def stubs(grpc_channel: grpc.Channel) -> Stubs:
    return Stubs(AssistantServiceStub(grpc_channel), ThreadServiceStub(grpc_channel), RunServiceStub(grpc_channel))
