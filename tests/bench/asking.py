"""How the systems are asked for an answer, and what is noted of it."""

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc
import openai

from bench.servers import KEY, MODEL
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import EnsureAssistantRequest
from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.run_pb2 import RunState, TruncationStrategy
from famulus.v1.run_service_pb2 import CreateRunRequest, StreamRunRequest
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_pb2 import Thread
from famulus_server.models.sse import SseDecoder
from serving import said

Ask = Callable[[str], Awaitable["Heard"]]
METADATA = (("authorization", f"Bearer {KEY}"),)
_USERS = 64
_LONGEST_LINE = 1_000_000
# A connection of its own for each channel.
CHANNEL_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]


@dataclass(slots=True)
class Heard:
    """What came of one question: deltas of text, and when. Times are in seconds."""

    started: float = field(default_factory=time.perf_counter)
    deltas: int = 0
    first: float = 0.0
    """From the question to the first delta."""

    def count(self, deltas: int) -> None:
        """So many more deltas came, now."""
        if deltas and not self.deltas:
            self.first = time.perf_counter() - self.started
        self.deltas += deltas


class Runs:
    """Asks famulus, or the bare prototype, which has the same method, by `StreamRun`."""

    def __init__(self, channel: grpc.aio.Channel, assistant_id: str) -> None:
        self.assistant_id = assistant_id
        self._stub = RunServiceStub(channel)
        self._asked = 0

    async def ask(
        self, text: str, *, thread_id: str = "", strategy: TruncationStrategy | None = None, whole: bool = True
    ) -> Heard:
        """On a new thread unless one is named. Raises RuntimeError if a whole run does not end as completed."""
        self._asked += 1
        create = CreateRunRequest(assistant_id=self.assistant_id, additional_messages=[said(text)])
        if thread_id:
            create.thread_id = thread_id
        else:
            create.new_thread.CopyFrom(Thread(user_id=f"user-{self._asked % _USERS}"))
        if strategy is not None:
            create.truncation_strategy.CopyFrom(strategy)
        heard, last = Heard(), None
        call: Any = self._stub.StreamRun(StreamRunRequest(create=create), metadata=METADATA)
        async for response in call:
            heard.count(sum(event.HasField("text_delta") for event in response.events))
            if response.events:
                last = response.events[-1]
        if whole and (last is None or last.run_state_changed.run.state != RunState.RUN_STATE_COMPLETED):
            raise RuntimeError(f"a run did not complete: {last}")
        return heard

    async def ask_bare(self, text: str) -> Heard:
        """The prototype tells deltas alone."""
        return await self.ask(text, whole=False)


@contextlib.asynccontextmanager
async def connected(address: str, model: str) -> AsyncIterator[Runs]:
    """Asks famulus at an address, with an assistant of this model."""
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        wanted = EnsureAssistantRequest(assistant=Assistant(name=f"of {model}", model=model))
        ensured = await AssistantServiceStub(channel).EnsureAssistant(wanted, metadata=METADATA)
        yield Runs(channel, ensured.assistant.id)


@contextlib.asynccontextmanager
async def connected_bare(address: str) -> AsyncIterator[Runs]:
    """Asks the bare prototype."""
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        yield Runs(channel, "")


class Direct:
    """Asks the upstream by the SDK, as its documentation shows."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client

    async def ask(self, text: str) -> Heard:
        """The events are typed."""
        heard = Heard()
        async for event in await self._client.responses.create(model=MODEL, input=text, stream=True):
            heard.count(event.type == "response.output_text.delta")
        return heard


class Proxy:
    """Asks LiteLLM by Chat Completions, what it is asked most. Frames are counted and not parsed, so that the client
    is not what is measured."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self._session = session
        self._url = f"{url}/v1/chat/completions"
        self._headers = {"authorization": f"Bearer {key}"}

    async def ask(self, text: str) -> Heard:
        """Raises RuntimeError if it is refused."""
        heard, decoder = Heard(), SseDecoder(max_line_bytes=_LONGEST_LINE)
        body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": text}]}
        async with self._session.post(self._url, json=body, headers=self._headers) as response:
            if response.status != 200:
                raise RuntimeError(await response.text())
            async for chunk in response.content.iter_any():
                frames = decoder.feed(chunk)
                heard.count(sum(b'"content":"' in frame and b'"content":""' not in frame for frame in frames))
        return heard
