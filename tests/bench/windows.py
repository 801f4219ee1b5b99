"""W6: what the start of a run costs on a thread of any length, with a window of the last messages, and with automatic
truncation."""

import asyncio
import statistics
from itertools import islice

import grpc

from bench.accounting import accounted
from bench.asking import CHANNEL_OPTIONS, METADATA, Runs, connected
from bench.plan import Plan
from bench.processes import Program
from bench.results import Chart, Results
from bench.servers import CONTEXT_WINDOW, MODEL
from bench.stage import OURS, Stage, parts_of
from famulus.v1.run_pb2 import TruncationStrategy
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import CreateMessageRequest, CreateThreadRequest
from famulus.v1.thread_service_pb2_grpc import ThreadServiceStub
from serving import said

_LAST = 10
_STRATEGIES = {"": TruncationStrategy(last_messages=_LAST), "auto_": TruncationStrategy()}
_TEXT = "as it was said before " * 11
_AT_A_TIME = 50
# Short threads must stay short, though each run adds two messages.
_RUNS_PER_SHORT_THREAD = 2


async def measure(stage: Stage, plan: Plan) -> Results:
    """Messages have 240 characters; times are from the call to the first text."""
    results = Results()
    program = await stage.program()
    lines: dict[str, list[float | None]] = {}
    async with connected(program.address, MODEL) as runs:
        for prefix, strategy in _STRATEGIES.items():
            times, cpu = await _of(strategy, program, runs, plan)
            first = plan.sizes[0]
            results.figures |= {f"w6_{prefix}{size}_ms": times[size] for size in plan.sizes}
            results.figures |= {f"w6_{prefix}growth_{size}": times[size] / times[first] for size in plan.sizes[1:]}
            results.figures |= {f"w6_{prefix}{size}_cpu_ms": cpu[size] for size in plan.sizes}
            name = f"the whole, cut to {CONTEXT_WINDOW} tokens" if prefix else f"the last {_LAST} messages"
            lines[name] = [times[size] for size in plan.sizes]
    results.charts.append(
        Chart(
            name="w6",
            title="W6: time to the first delta on a thread with messages",
            x="messages",
            y="ms, p50",
            steps=[str(size) for size in plan.sizes],
            lines=lines,
        )
    )
    return results


async def _of(
    strategy: TruncationStrategy, program: Program, runs: Runs, plan: Plan
) -> tuple[dict[int, float], dict[int, float]]:
    """For each size, by turns: milliseconds to the first text, and of processors for a run."""
    short, *long = plan.sizes
    shorts = plan.window_runs // _RUNS_PER_SHORT_THREAD
    threads = {short: [await _thread(program.address, short) for _ in range(shorts)]}
    threads |= {size: [await _thread(program.address, size)] for size in long}
    for found in threads.values():
        for thread_id in found:
            await runs.ask("and now?", thread_id=thread_id, strategy=strategy)
    taken: dict[int, list[float]] = {size: [] for size in plan.sizes}
    spent = dict.fromkeys(plan.sizes, 0.0)
    for number in range(plan.window_runs):
        for size, found in threads.items():
            with accounted(parts_of(program)) as one:
                heard = await runs.ask("and now?", thread_id=found[number % len(found)], strategy=strategy)
            taken[size].append(heard.first)
            spent[size] += one.of(OURS)
    return (
        {size: statistics.median(times) * 1e3 for size, times in taken.items()},
        {size: seconds / plan.window_runs * 1e3 for size, seconds in spent.items()},
    )


async def _thread(address: str, size: int) -> str:
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        threads = ThreadServiceStub(channel)
        messages = iter([said(f"{number} {_TEXT}") for number in range(size)])
        first = CreateThreadRequest(thread=Thread(user_id="user-0"), messages=islice(messages, 10))
        thread_id = (await threads.CreateThread(first, metadata=METADATA)).thread.id
        while some := list(islice(messages, _AT_A_TIME)):
            requests = [CreateMessageRequest(thread_id=thread_id, message=message) for message in some]
            await asyncio.gather(*(threads.CreateMessage(request, metadata=METADATA) for request in requests))
        return thread_id
