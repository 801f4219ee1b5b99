"""How fast runs stream: the server and the scripted upstream as processes of their own, one client here.

Prints a table, and as its last line one line of JSON. Only ratios taken in one run mean something on a shared machine.

W1  8 runs of 500 deltas at once, as fast as possible
W2  runs of one delta, one after another, beside the same request sent to the upstream directly
"""

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import grpc
import openai
import psutil

from bench.processes import started
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import EnsureAssistantRequest
from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.message_pb2 import Message, MessagePart, MessageRole, TextPart
from famulus.v1.run_service_pb2 import CreateRunRequest, StreamRunRequest
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_pb2 import Thread

_SCRIPT = """
[[scene]]
match = { user_contains = "many" }
deltas = 500

[[scene]]
text = "one"
"""
_RUNS = 8
_ROUNDS = 5
_SINGLES = 200


async def main() -> None:
    """Measures, and prints what came out."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            started(Path(folder), _SCRIPT) as (upstream, address, server),
            grpc.aio.insecure_channel(address) as channel,
            openai.AsyncOpenAI(base_url=upstream, api_key="none", max_retries=0) as direct,
        ):
            bench = _Bench(channel, direct, server)
            await bench.prepare()
            figures = {**await bench.many(), **await bench.single()}
    for name, figure in figures.items():
        print(f"{name:28}{figure:14,.2f}")
    print(json.dumps({name: round(figure, 3) for name, figure in figures.items()}))


class _Bench:
    def __init__(self, channel: grpc.aio.Channel, direct: openai.AsyncOpenAI, server: psutil.Process) -> None:
        self._assistants = AssistantServiceStub(channel)
        self._runs = RunServiceStub(channel)
        self._direct = direct
        self._server = server
        self._assistant_id = ""

    async def prepare(self) -> None:
        """Makes the assistant, and warms everything up."""
        wanted = EnsureAssistantRequest(assistant=Assistant(name="bench", model="bench"))
        self._assistant_id = (await self._assistants.EnsureAssistant(wanted)).assistant.id
        for _ in range(20):
            await self._run("one")
            await self._ask("one")

    async def many(self) -> dict[str, float]:
        """W1."""
        rates, costs = [], []
        for _ in range(_ROUNDS):
            start, before = time.perf_counter(), self._cpu()
            counts = await asyncio.gather(*(self._run("many") for _ in range(_RUNS)))
            events = sum(count for count, _ in counts)
            rates.append(events / (time.perf_counter() - start))
            costs.append((self._cpu() - before) / events * 1e6)
        return {"w1_events_per_s": statistics.median(rates), "w1_cpu_us_per_event": statistics.median(costs)}

    async def single(self) -> dict[str, float]:
        """W2, concurrency 1: through the server, then directly."""
        before = self._cpu()
        ours = [(await self._run("one"))[1] for _ in range(_SINGLES)]
        cpu = (self._cpu() - before) / _SINGLES
        theirs = [await self._ask("one") for _ in range(_SINGLES)]
        ttfe, reference = statistics.median(ours) * 1e3, statistics.median(theirs) * 1e3
        return {
            "w2_ttfe_ms": ttfe,
            "w2_direct_ms": reference,
            "w2_ttfe_over_direct_ms": ttfe - reference,
            "w2_cpu_ms_per_run": cpu * 1e3,
        }

    async def _run(self, text: str) -> tuple[int, float]:
        """Events of a run, and seconds to its first text."""
        message = Message(role=MessageRole.MESSAGE_ROLE_USER, content=[MessagePart(text=TextPart(text=text))])
        create = CreateRunRequest(new_thread=Thread(), assistant_id=self._assistant_id, additional_messages=[message])
        start, first, count = time.perf_counter(), 0.0, 0
        async for response in self._runs.StreamRun(StreamRunRequest(create=create)):
            count += len(response.events)
            if not first and any(event.HasField("text_delta") for event in response.events):
                first = time.perf_counter() - start
        return count, first

    async def _ask(self, text: str) -> float:
        """Seconds to the first text of the same answer without us."""
        start = time.perf_counter()
        stream = await self._direct.responses.create(model="bench", input=text, stream=True)
        first = 0.0
        async for event in stream:
            if not first and event.type == "response.output_text.delta":
                first = time.perf_counter() - start
        return first

    def _cpu(self) -> float:
        times = self._server.cpu_times()
        return float(times.user + times.system)


if __name__ == "__main__":
    asyncio.run(main())
