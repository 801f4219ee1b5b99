"""W7: one replica and two on PostgreSQL and Valkey, beside the embedded server."""

import asyncio
import contextlib
import itertools
import statistics
from collections.abc import AsyncIterator, Callable

import psutil

from bench.accounting import Parts, Spent, accounted
from bench.asking import Ask, Heard, connected
from bench.calls import get_run_request
from bench.http2 import Connection, Request
from bench.load import Load, System, in_batches, in_turn, rate
from bench.plan import Plan
from bench.processes import Program
from bench.results import Chart, Results
from bench.servers import MODEL, Surroundings, server
from bench.stage import OURS, Stage
from famulus_server.embedded.valkey import EmbeddedValkey
from postgres import PostgresMissing, PostgresServer

_STREAMS, _STARTS, _CALLS = 8, 16, 16
_WHAT = {"events": "deltas per second", "starts": "runs per second", "calls": "calls per second"}


class _Deployment:
    """Some servers, and what was measured of them."""

    def __init__(self, name: str, asks: list[Ask], parts: Parts, requests: list[tuple[str, Request]]) -> None:
        self._turns = itertools.cycle(asks)
        self._requests = requests
        self.system = System(name, self._ask, parts, OURS)
        self.streams, self.starts, self.calls = Load(), Load(), list[float]()
        self.called = Spent()

    async def _ask(self, text: str) -> Heard:
        return await next(self._turns)(text)

    async def round(self, stage: Stage, plan: Plan) -> None:
        """One more round of everything."""
        seconds = plan.seconds
        await in_batches(self.system, stage.upstream, "many", at_once=_STREAMS, seconds=seconds, load=self.streams)
        await in_turn(self.system, stage.upstream, "one", at_once=_STARTS, seconds=seconds, load=self.starts)
        async with contextlib.AsyncExitStack() as stack:
            opened = []
            for address, request in self._requests:
                connection = await Connection.open(address)
                stack.callback(connection.close)
                opened.append((connection, request))
            turns = itertools.cycle(opened)

            async def call() -> None:
                connection, request = next(turns)
                await connection.ask(request)

            with accounted(self.system.parts) as spent:
                found, _ = await rate(call, at_once=_CALLS, seconds=seconds)
        self.calls.append(found)
        self.called.add(spent)

    @property
    def rates(self) -> dict[str, float]:
        """Everything that is counted per second."""
        return {"events": self.streams.rate, "starts": self.starts.pace, "calls": statistics.median(self.calls)}


async def measure(stage: Stage, plan: Plan) -> Results:
    """Streams of 500 deltas, 8 at once; runs of one delta, 16 at once; and GetRun, 16 at once. Replicas are asked by
    turns."""
    results = Results()
    async with contextlib.AsyncExitStack() as stack:
        try:
            around, shared = await stack.enter_async_context(_backends(stage))
        except PostgresMissing as missing:
            results.skipped.append(f"W7, replicas on PostgreSQL, was NOT measured: {missing}")
            return results
        first = await stack.enter_async_context(server(stage.folder / "replica-1", around))
        embedded = await stage.program()
        deployments = [
            await _deployment(stack, "embedded", [embedded], lambda: {"Valkey": embedded.children}),
            await _deployment(stack, "one replica", [first], shared),
        ]
        await _rounds(deployments, stage, plan)
        # A second replica that does nothing would still claim and renew: it comes when the first was measured alone.
        second = await stack.enter_async_context(server(stage.folder / "replica-2", around))
        two = await _deployment(stack, "two replicas", [first, second], shared)
        alone = await _deployment(stack, "one of two", [first], shared)
        await _rounds([two, alone], stage, plan)
        deployments.append(two)
    rates = {deployment.system.name: deployment.rates for deployment in deployments}
    for name, measured in rates.items():
        results.figures |= {f"w7_{name.replace(' ', '_')}_{what}_per_s": found for what, found in measured.items()}
    ours, base, pair = rates["one replica"], rates["embedded"], rates["two replicas"]
    single = alone.rates
    results.figures |= {
        "w7_two_vs_one": pair["starts"] / single["starts"],
        "w7_two_vs_one_events": pair["events"] / single["events"],
        "w7_two_vs_one_calls": pair["calls"] / single["calls"],
        "w7_vs_embedded": min(ours[what] / base[what] for what in _WHAT),
        **{f"w7_vs_embedded_{what}": ours[what] / base[what] for what in _WHAT},
        "w7_ttfe_16_vs_embedded": deployments[0].starts.first_ms / deployments[1].starts.first_ms,
        "w7_cpu_ms_per_run": deployments[1].starts.spent.of(OURS) / deployments[1].starts.runs * 1e3,
    }
    for deployment in deployments:
        results.cores[f"W7 {deployment.system.name}, streams"] = deployment.streams.spent.cores
        results.cores[f"W7 {deployment.system.name}, starts"] = deployment.starts.spent.cores
    results.charts.append(
        Chart(
            name="w7",
            title="W7: beside the embedded server, which is 1",
            x="",
            y="times as many per second",
            steps=list(_WHAT.values()),
            lines={name: [measured[what] / base[what] for what in _WHAT] for name, measured in rates.items()},
            bars=True,
        )
    )
    return results


async def _rounds(deployments: list[_Deployment], stage: Stage, plan: Plan) -> None:
    for deployment in deployments:
        await asyncio.gather(*(deployment.system.ask("one") for _ in range(2 * _STARTS)))
    for _ in range(plan.rounds):
        for deployment in deployments:
            await deployment.round(stage, plan)


@contextlib.asynccontextmanager
async def _backends(stage: Stage) -> AsyncIterator[tuple[Surroundings, Parts]]:
    """PostgreSQL and Valkey, which servers share, and their processes."""
    postgres = await asyncio.to_thread(PostgresServer)
    folder = stage.folder / "valkey"
    folder.mkdir()
    valkey = EmbeddedValkey(data_dir=folder)
    try:
        await asyncio.to_thread(postgres.start)
        database = await asyncio.to_thread(postgres.create_database)
        known = set(psutil.Process().children(recursive=True))
        redis = await valkey.start()
        started = [process for process in psutil.Process().children(recursive=True) if process not in known]
        around = Surroundings(upstream=stage.around.upstream, paced=stage.around.paced, database=database, redis=redis)

        def parts() -> dict[str, list[psutil.Process]]:
            first = postgres.postmaster
            return {"PostgreSQL": [first, *first.children(recursive=True)], "Valkey": started}

        yield around, parts
    finally:
        await valkey.close()
        await asyncio.to_thread(postgres.close)


async def _deployment(stack: contextlib.AsyncExitStack, name: str, programs: list[Program], rest: Parts) -> _Deployment:
    asks: list[Ask] = []
    requests = []
    for program in programs:
        runs = await stack.enter_async_context(connected(program.address, MODEL))
        asks.append(runs.ask)
        requests.append((program.address, await get_run_request(program.address)))
    return _Deployment(name, asks, _with_servers(programs, rest), requests)


def _with_servers(programs: list[Program], rest: Parts) -> Callable[[], dict[str, list[psutil.Process]]]:
    return lambda: {"server": [program.process for program in programs], **{k: list(v) for k, v in rest().items()}}
