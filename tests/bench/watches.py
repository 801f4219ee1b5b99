"""W4: thousands of idle watches: what each of them holds, and how long other calls take meanwhile."""

import asyncio
import contextlib
import resource
import statistics
import time
from collections.abc import AsyncIterator

import grpc

from bench.accounting import Spent, accounted, memory
from bench.asking import CHANNEL_OPTIONS, METADATA
from bench.http2 import Connection, Request
from bench.plan import Plan
from bench.results import Chart, Results
from bench.servers import TOOL_MODEL, server
from bench.stage import OURS, Stage, parts_of
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import EnsureAssistantRequest
from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2 import CreateRunRequest, GetRunRequest, WaitRunRequest, WatchRunRequest
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_pb2 import Thread
from famulus.v1.tool_pb2 import FunctionTool, Tool
from serving import said

_SERVICE = "/famulus.v1.RunService/"
_STREAMS_OF_A_CONNECTION = 100
# More at a time would be a flood, and measure how that is borne.
_OPENED_AT_ONCE = 50
_PAUSE_SECONDS = 0.01


async def measure(stage: Stage, plan: Plan) -> Results:
    """The runs wait for tool outputs, so nothing happens in them. The server is one of its own, whose memory nothing
    else has grown."""
    results = Results()
    kib: list[float | None] = []
    async with server(stage.folder / "watched", stage.around) as program:
        parts = parts_of(program)
        runs = await _waiting_runs(program.address, plan.watched_runs)
        quiet, _ = await _call_meanwhile(program.address, runs[0], min(4.0, plan.watch_seconds))
        before, opened = memory(parts), 0
        async with contextlib.AsyncExitStack() as stack:
            for wanted in plan.watches:
                await stack.enter_async_context(_watching(program.address, runs, opened, wanted))
                opened = wanted
                kib.append((memory(parts) - before) / opened / 1024)
            with accounted(parts) as spent:
                taken, calls = await _call_meanwhile(program.address, runs[0], plan.watch_seconds)
            held = memory(parts)
    results.figures = {
        "w4_watches": plan.watches[-1],
        "w4_kib_per_stream": (held - before) / opened / 1024,
        "w4_unary_p99_ms": taken,
        "w4_unary_p99_without_ms": quiet,
        "w4_unary_calls": calls,
        "w4_cpu_cores": _cores(spent),
        "w4_server_mib": held / 2**20,
    }
    results.cores = {f"W4 famulus, {opened} watches": spent.cores}
    results.charts.append(
        Chart(
            name="w4",
            title="W4: memory of the server for each idle watch",
            x="watches",
            y="KiB each",
            steps=[str(number) for number in plan.watches],
            lines={"famulus": kib},
        )
    )
    return results


async def _waiting_runs(address: str, number: int) -> list[str]:
    """Runs that wait for the outputs of a tool."""
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        runs = RunServiceStub(channel)
        tool = Tool(function=FunctionTool(name="wait", parameters_json='{"type": "object"}'))
        wanted = Assistant(name="waiting", model=TOOL_MODEL, tools=[tool])
        ensured = await AssistantServiceStub(channel).EnsureAssistant(
            EnsureAssistantRequest(assistant=wanted), metadata=METADATA
        )

        async def start() -> str:
            create = CreateRunRequest(
                assistant_id=ensured.assistant.id, new_thread=Thread(), additional_messages=[said("wait")]
            )
            run_id = (await runs.CreateRun(create, metadata=METADATA)).run.id
            run = (await runs.WaitRun(WaitRunRequest(run_id=run_id), metadata=METADATA)).run
            if run.state != RunState.RUN_STATE_REQUIRES_ACTION:
                raise RuntimeError(f"a run does not wait: {run}")
            return run_id

        found: list[str] = []
        while len(found) < number:
            found += await asyncio.gather(*(start() for _ in range(min(_OPENED_AT_ONCE, number - len(found)))))
        return found


@contextlib.asynccontextmanager
async def _watching(address: str, runs: list[str], opened: int, wanted: int) -> AsyncIterator[None]:
    """Opens watches until there are as many as wanted; returns when each was told something."""
    _allow_files(wanted)
    requests = [_request(address, "WatchRun", WatchRunRequest(run_id=run_id)) for run_id in runs]
    connections, told = [], asyncio.Semaphore(0)
    ended: list[asyncio.Future[None]] = []
    for number in range(opened, wanted):
        if (number - opened) % _STREAMS_OF_A_CONNECTION == 0:
            connections.append(await Connection.open(address))
        ended.append(connections[-1].start(requests[number % len(requests)], _First(told)))
        if number % _OPENED_AT_ONCE == 0:
            await asyncio.sleep(_PAUSE_SECONDS)
    for _ in range(wanted - opened):
        await told.acquire()
    try:
        yield
        if any(future.done() for future in ended):
            raise RuntimeError("a watch ended by itself")
    finally:
        for connection in connections:
            connection.close()


class _First:
    """Tells that a watch was told something."""

    def __init__(self, told: asyncio.Semaphore) -> None:
        self._told: asyncio.Semaphore | None = told

    def __call__(self, _: bytes) -> None:
        told, self._told = self._told, None
        if told is not None:
            told.release()


async def _call_meanwhile(address: str, run_id: str, seconds: float) -> tuple[float, int]:
    """The p99 of calls of GetRun, one after the other, in milliseconds, and their number."""
    connection, request = await Connection.open(address), _request(address, "GetRun", GetRunRequest(run_id=run_id))
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        await connection.ask(request)
        taken.append(time.perf_counter() - start)
        await asyncio.sleep(_PAUSE_SECONDS)
    connection.close()
    return statistics.quantiles(taken, n=100)[-1] * 1e3, len(taken)


def _request(address: str, method: str, message: "WatchRunRequest | GetRunRequest") -> Request:
    return Request(address, _SERVICE + method, message.SerializeToString())


def _allow_files(wanted: int) -> None:
    """As many open files as a connection for every hundred watches needs, where the machine allows that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 256 + wanted // _STREAMS_OF_A_CONNECTION
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))


def _cores(spent: Spent) -> float:
    return spent.of(OURS) / spent.seconds
