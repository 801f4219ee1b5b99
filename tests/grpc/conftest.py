"""The whole server, as a process would run it, on an event loop in a thread; pytest-grpc's channels and stubs on top.

pytest-grpc knows synchronous servers only, so its server fixtures are replaced; its `grpc_create_channel`,
`grpc_channel` and `grpc_stub` are used as they are.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import CreateAssistantRequest
from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.message_pb2 import Message, MessagePart, MessageRole, TextPart
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import CreateThreadRequest
from famulus.v1.thread_service_pb2_grpc import ThreadServiceStub

from famulus_server.config import EmbeddedSettings, ServerSettings, Settings
from famulus_server.wiring import SCRIPTED_MODEL, RunningServer, open_server


def settings_in(folder: Path, script: Path | None = None, **server: object) -> Settings:
    """Settings of a server with a scripted model only, on a free port."""
    return Settings(
        server=ServerSettings(listen="127.0.0.1:0", data_dir=str(folder), **server),  # type: ignore[arg-type]
        embedded=EmbeddedSettings(local_model="off", scripted_model="on", script=str(script) if script else ""),
    )


class ServerThread:
    """Runs a server on an event loop of its own until told to stop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="server")
        self.running: RunningServer | None = None

    def start(self) -> RunningServer:
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        assert self.running is not None
        return self.running

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except BaseException as failure:  # noqa: BLE001 - raised in the test's thread instead
            self._failure = failure
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        async with open_server(self._settings, progress=lambda _: None) as self.running:
            self._ready.set()
            await self._stop.wait()


@pytest.fixture(scope="session")
def _grpc_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    thread = ServerThread(settings_in(tmp_path_factory.mktemp("server")))
    running = thread.start()
    yield running
    thread.stop()


@pytest.fixture(scope="session")
def grpc_server(_grpc_server: RunningServer) -> RunningServer:
    return _grpc_server


@pytest.fixture(scope="session")
def grpc_addr(_grpc_server: RunningServer) -> str:
    return _grpc_server.address


@dataclass(frozen=True)
class Stubs:
    """The blocking stubs of all services, on one channel, with what most tests begin with."""

    assistants: AssistantServiceStub
    threads: ThreadServiceStub
    runs: RunServiceStub

    def new_assistant(self, **fields: object) -> Assistant:
        assistant = Assistant(**{"model": SCRIPTED_MODEL, **fields})  # type: ignore[arg-type]
        return self.assistants.CreateAssistant(CreateAssistantRequest(assistant=assistant)).assistant

    def new_thread(self, messages: Sequence[Message] = (), **fields: object) -> Thread:
        thread = Thread(**fields)  # type: ignore[arg-type]
        return self.threads.CreateThread(CreateThreadRequest(thread=thread, messages=messages)).thread


@pytest.fixture(scope="module")
def stubs(grpc_channel: grpc.Channel) -> Stubs:
    return Stubs(AssistantServiceStub(grpc_channel), ThreadServiceStub(grpc_channel), RunServiceStub(grpc_channel))


def said(text: str) -> Message:
    """A user's message."""
    return Message(role=MessageRole.MESSAGE_ROLE_USER, content=[MessagePart(text=TextPart(text=text))])
