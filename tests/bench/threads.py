"""How a run's start grows with its thread: the server and the scripted upstream as processes of their own.

Prints a table, and as its last line one line of JSON. Only ratios taken in one run mean something on a shared machine.

W6  seconds from the call to the first text, on threads of 10, 1,000 and 10,000 messages of 240 characters; with a
    window of the last 10 messages, and with automatic truncation to a context of 8,192 tokens
"""

import asyncio
import json
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import grpc

from bench.processes import started
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import EnsureAssistantRequest
from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.message_pb2 import Message, MessagePart, MessageRole, TextPart
from famulus.v1.run_pb2 import TruncationStrategy
from famulus.v1.run_service_pb2 import CreateRunRequest, StreamRunRequest
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import CreateMessageRequest, CreateThreadRequest
from famulus.v1.thread_service_pb2_grpc import ThreadServiceStub

_SCRIPT = '[[scene]]\ntext = "one"\n'
_SIZES = (10, 1_000, 10_000)
_STRATEGIES = {"last_messages": TruncationStrategy(last_messages=10), "auto": TruncationStrategy()}
_TEXT = "as it was said before " * 11
_AT_A_TIME = 50
_ROUNDS = 100
# Short threads must stay short, though each run adds two messages.
_RUNS_PER_SHORT_THREAD = 2


async def main() -> None:
    """Measures, and prints what came out."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            started(Path(folder), _SCRIPT, context_window=8_192) as (_, address, _server),
            grpc.aio.insecure_channel(address) as channel,
        ):
            bench = _Bench(channel)
            await bench.prepare()
            figures: dict[str, float] = {}
            for name, strategy in _STRATEGIES.items():
                figures |= await bench.measure(name, strategy)
    for name, figure in figures.items():
        print(f"{name:40}{figure:10,.2f}")
    print(json.dumps({name: round(figure, 3) for name, figure in figures.items()}))


class _Bench:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._assistants = AssistantServiceStub(channel)
        self._threads = ThreadServiceStub(channel)
        self._runs = RunServiceStub(channel)
        self._assistant_id = ""

    async def prepare(self) -> None:
        """Makes the assistant, and warms everything up."""
        wanted = EnsureAssistantRequest(assistant=Assistant(name="bench", model="bench"))
        self._assistant_id = (await self._assistants.EnsureAssistant(wanted)).assistant.id
        thread_id = await self._thread(10)
        for _ in range(50):
            await self._start(thread_id, TruncationStrategy(last_messages=10))

    async def measure(self, name: str, strategy: TruncationStrategy) -> dict[str, float]:
        """W6 with one kind of window: milliseconds for each size, by turns, and the growth."""
        shorts = [await self._thread(_SIZES[0]) for _ in range(_ROUNDS // _RUNS_PER_SHORT_THREAD)]
        longs = {size: await self._thread(size) for size in _SIZES[1:]}
        for thread_id in (*shorts, *longs.values()):
            await self._start(thread_id, strategy)
        taken: dict[int, list[float]] = {size: [] for size in _SIZES}
        for number in range(_ROUNDS):
            for size, thread_id in ((_SIZES[0], shorts[number % len(shorts)]), *longs.items()):
                taken[size].append(await self._start(thread_id, strategy))
        medians = {size: statistics.median(times) * 1e3 for size, times in taken.items()}
        return {
            **{f"w6_{name}_{size}_ms": median for size, median in medians.items()},
            **{f"w6_{name}_growth_{size}": medians[size] / medians[_SIZES[0]] for size in _SIZES[1:]},
        }

    async def _thread(self, size: int) -> str:
        texts = iter([_said(f"{number} {_TEXT}") for number in range(size)])
        first = CreateThreadRequest(thread=Thread(), messages=islice(texts, 10))
        thread_id = (await self._threads.CreateThread(first)).thread.id
        while some := list(islice(texts, _AT_A_TIME)):
            requests = [CreateMessageRequest(thread_id=thread_id, message=message) for message in some]
            await asyncio.gather(*map(self._threads.CreateMessage, requests))
        return thread_id

    async def _start(self, thread_id: str, strategy: TruncationStrategy) -> float:
        """Seconds to the first text of a run, which is then heard to its end."""
        create = CreateRunRequest(
            thread_id=thread_id,
            assistant_id=self._assistant_id,
            additional_messages=[_said("and now?")],
            truncation_strategy=strategy,
        )
        start, first = time.perf_counter(), 0.0
        async for response in self._runs.StreamRun(StreamRunRequest(create=create)):
            if not first and any(event.HasField("text_delta") for event in response.events):
                first = time.perf_counter() - start
        return first


def _said(text: str) -> Message:
    return Message(role=MessageRole.MESSAGE_ROLE_USER, content=[MessagePart(text=TextPart(text=text))])


if __name__ == "__main__":
    asyncio.run(main())
