"""A whole server on a scripted upstream, in the test's own event loop: for tests of what runs do."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import CreateAssistantRequest
from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.message_pb2 import Message
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run
from famulus.v1.run_service_pb2 import (
    CancelRunRequest,
    CreateRunRequest,
    GetRunRequest,
    ListRunStepsRequest,
    StreamRunRequest,
    SubmitToolOutputsRequest,
    WaitRunRequest,
    WatchRunRequest,
)
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.run_step_pb2 import RunStep
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import (
    CreateMessageRequest,
    CreateThreadRequest,
    GetThreadRequest,
    ListMessagesRequest,
    ListOrder,
)
from famulus.v1.thread_service_pb2_grpc import ThreadServiceStub
from famulus.v1.tool_pb2 import FunctionTool, Tool, ToolOutput
from famulus_server.config import (
    MetricsSettings,
    RedisSettings,
    RetentionSettings,
    ServerSettings,
    Settings,
    StoreSettings,
    WorkerSettings,
)
from famulus_server.embedded.upstream import ReceivedRequest, Scene, Script, ScriptedUpstream
from famulus_server.engine.policy import Policy
from famulus_server.models.settings import BreakerSettings, ModelSettings, RetrySettings
from famulus_server.wiring.server import open_server
from serving import Refusal, refusal, said
from validator import validate_final, validate_stream

if TYPE_CHECKING:
    # The stubs have these as types only.
    from famulus.v1.assistant_service_pb2_grpc import AssistantServiceAsyncStub
    from famulus.v1.run_service_pb2_grpc import RunServiceAsyncStub
    from famulus.v1.thread_service_pb2_grpc import ThreadServiceAsyncStub

# Retries at once, and as many as a test likes.
QUICK = RetrySettings(base_delay=0.01, max_delay=0.05, jitter=0.0, budget=1.0, reserve=1_000)
# What one test's model does is not to suspend that of the next.
PATIENT = BreakerSettings(min_calls=1_000_000)
TOOLS = [
    Tool(function=FunctionTool(name=name, parameters_json='{"type":"object","properties":{}}'))
    for name in ("get_weather", "get_time")
]


@dataclass(frozen=True)
class Story:
    """A run that ended, as its watcher and the store tell it; both agree."""

    run: Run
    events: list[RunEvent]
    messages: list[Message]

    @property
    def kinds(self) -> list[str]:
        """The kinds of the events."""
        return [str(event.WhichOneof("event")) for event in self.events]

    @property
    def states(self) -> list[int]:
        """The states that were told."""
        return [event.run_state_changed.run.state for event in self.events if event.HasField("run_state_changed")]

    @property
    def text(self) -> str:
        """All that the run wrote."""
        return "".join(map(text_of, self.messages))

    def all(self, kind: str) -> list[Any]:
        """The events of one kind, without their envelopes."""
        return [getattr(event, kind) for event in self.events if event.HasField(kind)]  # type: ignore[arg-type]


@dataclass
class Stage:
    """A server, its upstream, and stubs on a channel between them."""

    upstream: ScriptedUpstream
    address: str
    assistants: "AssistantServiceAsyncStub"
    threads: "ThreadServiceAsyncStub"
    runs: "RunServiceAsyncStub"
    metrics_address: str = ""
    _assistant: Assistant = field(default_factory=Assistant)
    _asked_before: int = 0

    def play(self, *scenes: Scene) -> None:
        """The model's part from now on; requests are counted from 1 again."""
        self.upstream.replace(Script(scenes=scenes))
        self._asked_before = self.upstream.requests[-1].number if self.upstream.requests else 0

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The bodies of what the model was asked since `play`."""
        return [request.body for request in self.upstream.requests if request.number > self._asked_before]

    async def request(self, number: int = 1) -> ReceivedRequest:
        """The model's request of this number, once it is there."""
        return await self.upstream.wait_for_request(self._asked_before + number)

    async def request_ended(self, number: int = 1) -> ReceivedRequest:
        """The same, once it is over."""
        return await self.upstream.wait_for_end(self._asked_before + number)

    async def assistant(self, **fields: Any) -> Assistant:
        """A new assistant."""
        given = Assistant(**({"model": "scripted"} | fields))
        return (await self.assistants.CreateAssistant(CreateAssistantRequest(assistant=given))).assistant

    async def thread(self, *texts: str, **fields: Any) -> Thread:
        """A new thread in which the user said these."""
        request = CreateThreadRequest(thread=Thread(**fields), messages=[said(text) for text in texts])
        return (await self.threads.CreateThread(request)).thread

    async def say(self, thread_id: str, text: str) -> Message:
        """Appends a user's message."""
        request = CreateMessageRequest(thread_id=thread_id, message=said(text))
        return (await self.threads.CreateMessage(request)).message

    async def wanted(self, text: str = "hello", **fields: Any) -> CreateRunRequest:
        """A request for a run: on a new thread and by a plain assistant, unless the fields say otherwise."""
        if not self._assistant.id:
            self._assistant = await self.assistant()
        if "thread_id" not in fields:
            fields.setdefault("new_thread", Thread())
        fields.setdefault("assistant_id", self._assistant.id)
        return CreateRunRequest(additional_messages=[said(text)] if text else [], **fields)

    async def start(self, text: str = "hello", **fields: Any) -> Run:
        """Creates a run."""
        return (await self.runs.CreateRun(await self.wanted(text, **fields))).run

    async def get(self, run_id: str) -> Run:
        return (await self.runs.GetRun(GetRunRequest(run_id=run_id))).run

    async def wait(self, run_id: str) -> Run:
        """The run once it has ended or needs action."""
        return (await self.runs.WaitRun(WaitRunRequest(run_id=run_id))).run

    async def cancel(self, run_id: str) -> Run:
        return (await self.runs.CancelRun(CancelRunRequest(run_id=run_id))).run

    async def submit(self, run_id: str, *outputs: tuple[str, str] | ToolOutput) -> Run:
        """Submits outputs, given as (call id, text) where no more is to be said."""
        given = [one if isinstance(one, ToolOutput) else ToolOutput(call_id=one[0], output=one[1]) for one in outputs]
        return (await self.runs.SubmitToolOutputs(SubmitToolOutputsRequest(run_id=run_id, tool_outputs=given))).run

    async def watch(self, run_id: str, after: int = 0) -> list[RunEvent]:
        """All events behind a sequence, to the end of the run."""
        request = WatchRunRequest(run_id=run_id, after_sequence=after)
        return [event async for response in self.runs.WatchRun(request) for event in response.events]

    async def stream(self, create: CreateRunRequest, after: int = 0) -> list[RunEvent]:
        """Starts or resumes a run, and watches it to its end."""
        request = StreamRunRequest(create=create, after_sequence=after)
        return [event async for response in self.runs.StreamRun(request) for event in response.events]

    async def until(self, run_id: str, kind: str, *, after: int = 0) -> list[RunEvent]:
        """The events behind a sequence up to the first of this kind; then goes away."""
        return await self._until(run_id, after, lambda event: event.WhichOneof("event") == kind)

    async def until_text(self, run_id: str, text: str) -> list[RunEvent]:
        """The events up to the delta that is this text, or a Snapshot that ends with it; then goes away."""

        def shows(event: RunEvent) -> bool:
            shown = [text_of(message) for message in event.snapshot.messages]
            return event.text_delta.text == text or any(whole.endswith(text) for whole in shown)

        return await self._until(run_id, 0, shows)

    async def _until(self, run_id: str, after: int, wanted: Callable[[RunEvent], bool]) -> list[RunEvent]:
        seen: list[RunEvent] = []
        call = self.runs.WatchRun(WatchRunRequest(run_id=run_id, after_sequence=after))
        async for response in call:
            for event in response.events:
                seen.append(event)
                if wanted(event):
                    call.cancel()
                    return seen
        raise AssertionError("the run ended before")

    async def messages(self, thread_id: str, run_id: str = "") -> list[Message]:
        """What is in the thread, oldest first."""
        request = ListMessagesRequest(
            thread_id=thread_id, run_id=run_id, page_size=100, order=ListOrder.LIST_ORDER_ASCENDING
        )
        return list((await self.threads.ListMessages(request)).messages)

    async def texts(self, thread_id: str) -> list[str]:
        return [text_of(message) for message in await self.messages(thread_id)]

    async def steps(self, run_id: str) -> list[RunStep]:
        return list((await self.runs.ListRunSteps(ListRunStepsRequest(run_id=run_id, page_size=100))).steps)

    async def active_run(self, thread_id: str) -> str:
        return (await self.threads.GetThread(GetThreadRequest(thread_id=thread_id))).thread.active_run_id

    async def tell(self, run_id: str) -> Story:
        """Watches a run from its first event to its end, and compares what was told with what is stored."""
        events = await self.watch(run_id)
        run = await self.get(run_id)
        messages = await self.messages(run.thread_id, run_id)
        validate_stream(events)
        validate_final(events, run, messages)
        return Story(run, events, messages)

    async def play_out(self, text: str = "hello", **fields: Any) -> Story:
        """Starts a run and tells it to its end."""
        return await self.tell((await self.start(text, **fields)).id)


def text_of(message: Message) -> str:
    return "".join(part.text.text for part in message.content)


async def refused(call: Any) -> Refusal:
    """How an awaited call is refused; it must be."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return refusal(error)
    raise AssertionError(f"not refused: {answer}")


def stage_settings(
    folder: Path,
    base_url: str,
    *,
    server: dict[str, Any] | None = None,
    worker: dict[str, Any] | None = None,
    redis_url: str = "",
    database_url: str = "",
    policy: Policy | None = None,
    retention: RetentionSettings | None = None,
) -> Settings:
    """Settings with models on one upstream: `scripted` and `chat` by their APIs, `impatient`, and `roomy`."""
    model: dict[str, Any] = {"base_url": base_url, "retry": QUICK, "breaker": PATIENT}
    given: dict[str, Any] = {"listen": "127.0.0.1:0", "data_dir": str(folder), "drain_seconds": 0.1} | (server or {})
    return Settings(
        server=ServerSettings(**given),
        store=StoreSettings(url=database_url, pool=4),
        worker=WorkerSettings(**(worker or {})),
        redis=RedisSettings(url=redis_url),
        metrics=MetricsSettings(listen="127.0.0.1:0"),
        policy=policy or Policy(),
        retention=retention or RetentionSettings(),
        models=(
            ModelSettings(name="scripted", backend="responses", reasoning=True, **model),
            ModelSettings(name="chat", backend="chat", **model),
            ModelSettings(name="impatient", backend="responses", first_event_timeout=0.1, idle_timeout=0.1, **model),
            ModelSettings(name="roomy", backend="responses", context_window=1_000_000, **model),
        ),
    )


@asynccontextmanager
async def open_stage(
    settings: Settings, upstream: ScriptedUpstream, scenes: Sequence[Scene] = ()
) -> AsyncIterator[Stage]:
    """Opens a server with these settings, and stubs on it."""
    async with (
        open_server(settings, progress=lambda _: None) as running,
        stage_on(running.address, upstream) as stage,
    ):
        stage.metrics_address = running.metrics_address
        if scenes:
            stage.play(*scenes)
        yield stage


@asynccontextmanager
async def stage_on(address: str, upstream: ScriptedUpstream) -> AsyncIterator[Stage]:
    """Stubs on a server that runs elsewhere."""
    # No channel shares its connection with another test's.
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield Stage(
            upstream, address, AssistantServiceStub(channel), ThreadServiceStub(channel), RunServiceStub(channel)
        )
