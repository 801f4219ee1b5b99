"""The whole server, as a process would run it, for tests that call it over a socket."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import Message as ProtoMessage
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import CreateAssistantRequest
from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.message_pb2 import Message, MessagePart, MessageRole, TextPart
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import CreateThreadRequest
from famulus.v1.thread_service_pb2_grpc import ThreadServiceStub
from famulus_server.config import SCRIPTED_MODEL, EmbeddedSettings, MetricsSettings, ServerSettings, Settings
from famulus_server.wiring.server import RunningServer, open_server


def settings_in(folder: Path, *, script: Path | None = None) -> Settings:
    """Settings of a server with a scripted model only, on a free port."""
    return Settings(
        server=ServerSettings(listen="127.0.0.1:0", data_dir=str(folder), drain_seconds=2.0),
        metrics=MetricsSettings(listen="127.0.0.1:0"),
        embedded=EmbeddedSettings(local_model="off", scripted_model="on", script=str(script) if script else ""),
    )


class ServerThread:
    """Runs a server on an event loop of its own, in a thread, until told to stop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._running: RunningServer | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="server")

    def start(self) -> RunningServer:
        """Returns once the server accepts calls."""
        self._thread.start()
        self._ready.wait()
        if self._running is None:
            raise RuntimeError("the server did not start") from self._failure
        return self._running

    def do(self, act: Callable[[], object]) -> None:
        """Calls `act` on the server's event loop, and returns when it has."""
        done = threading.Event()

        def call() -> None:
            try:
                act()
            finally:
                done.set()

        self._loop.call_soon_threadsafe(call)
        done.wait()

    def stop(self) -> None:
        """Stops the server as SIGTERM would, and waits for that."""
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
        async with open_server(self._settings, progress=lambda _: None) as self._running:
            self._ready.set()
            await self._stop.wait()


@dataclass(frozen=True)
class Stubs:
    """The blocking stubs of all services on one channel, with what most tests begin with."""

    assistants: AssistantServiceStub
    threads: ThreadServiceStub
    runs: RunServiceStub

    def new_assistant(self, **fields: object) -> Assistant:
        """An assistant of the scripted model."""
        assistant = Assistant(**{"model": SCRIPTED_MODEL, **fields})  # type: ignore[arg-type]
        return self.assistants.CreateAssistant(CreateAssistantRequest(assistant=assistant)).assistant

    def new_thread(self, messages: Sequence[Message] = (), **fields: object) -> Thread:
        """A thread with messages."""
        thread = Thread(**fields)  # type: ignore[arg-type]
        return self.threads.CreateThread(CreateThreadRequest(thread=thread, messages=messages)).thread


def said(text: str) -> Message:
    """A user's message."""
    return Message(role=MessageRole.MESSAGE_ROLE_USER, content=[MessagePart(text=TextPart(text=text))])


@dataclass(frozen=True)
class Refusal:
    """A failed call as a client sees it: code, text, and the google.rpc details by their names."""

    code: grpc.StatusCode
    message: str
    raw: bytes
    details: dict[str, ProtoMessage]

    @property
    def reason(self) -> str:
        """The reason of the ErrorInfo."""
        return str(self._info.reason)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the ErrorInfo."""
        return dict(self._info.metadata)

    @property
    def fields(self) -> list[str]:
        """The fields that the BadRequest names."""
        found = self.details.get("BadRequest", error_details_pb2.BadRequest())
        return [violation.field for violation in found.field_violations]

    @property
    def _info(self) -> error_details_pb2.ErrorInfo:
        return self.details.get("ErrorInfo", error_details_pb2.ErrorInfo())


def refusal(error: Any) -> Refusal:
    """What a failed call, blocking or not, tells."""
    trailers = dict(error.trailing_metadata() or ())
    raw = trailers.get("grpc-status-details-bin", b"")
    details = [_unpacked(detail) for detail in Status.FromString(raw).details]
    return Refusal(error.code(), error.details(), raw, {detail.DESCRIPTOR.name: detail for detail in details})


def _unpacked(detail: Packed) -> ProtoMessage:
    message: ProtoMessage = getattr(error_details_pb2, detail.TypeName().rpartition(".")[2])()
    detail.Unpack(message)
    return message
