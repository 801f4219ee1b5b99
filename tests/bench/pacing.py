"""W3: many runs whose deltas come one each 50 ms: how late they are, and what that costs.

All runs have been started before the first delta comes: what a start costs is told by W2.
"""

import asyncio
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from bench.accounting import Parts, Spent, accounted
from bench.asking import connected
from bench.http2 import Connection, Request
from bench.paced import PACE_SECONDS
from bench.plan import Plan
from bench.results import Chart, Results
from bench.servers import PACED_MODEL
from bench.stage import OURS, Stage, parts_of
from famulus.v1.run_service_pb2 import CreateRunRequest, StreamRunRequest, StreamRunResponse
from famulus.v1.thread_pb2 import Thread
from serving import said

_METHOD = "/famulus.v1.RunService/StreamRun"
_STREAMS_OF_A_CONNECTION = 50


@dataclass
class _Paced:
    """What was heard in all rounds: seconds from where a delta was written to here."""

    delays: list[float] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)

    @property
    def p99_ms(self) -> float:
        return statistics.quantiles(self.delays, n=100)[-1] * 1e3


async def measure(stage: Stage, plan: Plan) -> Results:
    """The client is one that costs little; what it costs is told."""
    results = Results()
    program = await stage.program()
    await stage.bare_paced()
    async with connected(program.address, PACED_MODEL) as runs:
        assistant_id = runs.assistant_id
    systems: dict[str, tuple[str, Parts]] = {
        "famulus": (program.address, parts_of(program)),
        "bare": stage.where_bare(stage.around.paced),
    }
    heard = {(name, runs): _Paced() for name in systems for runs in plan.paced}
    for _ in range(plan.paced_rounds):
        for number in plan.paced:
            for name, (address, parts) in systems.items():
                await _round(address, assistant_id, parts, stage.paced, number, plan, heard[name, number])
    ours, bare = heard["famulus", plan.paced[-1]], heard["bare", plan.paced[-1]]
    results.figures = {
        "w3_p99_delay_ms": ours.p99_ms,
        "w3_p50_delay_ms": statistics.median(ours.delays) * 1e3,
        "w3_cpu_cores": ours.spent.of(OURS) / ours.spent.seconds,
        "w3_cpu_us_per_event": ours.spent.of(OURS) / len(ours.delays) * 1e6,
        "w3_bare_p99_delay_ms": bare.p99_ms,
        "w3_bare_cpu_cores": bare.spent.of(OURS) / bare.spent.seconds,
    }
    results.cores = {f"W3 {name}": heard[name, plan.paced[-1]].spent.cores for name in systems}
    results.charts.append(
        Chart(
            name="w3",
            title=f"W3: delay of a delta, one each {PACE_SECONDS * 1e3:.0f} ms in each run",
            x="runs at once",
            y="ms, p99",
            steps=[str(number) for number in plan.paced],
            lines={name: [heard[name, number].p99_ms for number in plan.paced] for name in systems},
        )
    )
    return results


async def _round(
    address: str, assistant_id: str, parts: Parts, upstream: Parts, number: int, plan: Plan, heard: _Paced
) -> None:
    """Starts runs, and hears them to their ends; what is spent counts from the first delta on."""
    create = CreateRunRequest(assistant_id=assistant_id, additional_messages=[said(str(number))], new_thread=Thread())
    request = Request(address, _METHOD, StreamRunRequest(create=create).SerializeToString())
    connections = [await Connection.open(address) for _ in range(-(-number // _STREAMS_OF_A_CONNECTION))]
    delays, begun = list[float](), asyncio.Event()
    calls = [connections[one % len(connections)].start(request, _hearing(delays, begun)) for one in range(number)]
    await begun.wait()
    with accounted(parts, upstream) as spent:
        await asyncio.gather(*calls)
    for connection in connections:
        connection.close()
    if len(delays) != number * plan.paced_deltas:
        raise RuntimeError(f"{len(delays)} of {number * plan.paced_deltas} deltas came")
    heard.delays += delays
    heard.spent.add(spent)


def _hearing(delays: list[float], begun: asyncio.Event) -> Callable[[bytes], None]:
    def hear(message: bytes) -> None:
        now = monotonic()
        events = StreamRunResponse.FromString(message).events
        delays.extend(now - float(event.text_delta.text) for event in events if event.HasField("text_delta"))
        if delays:
            begun.set()

    return hear
