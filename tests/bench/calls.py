"""W5: calls that read one thing, beside a method of grpc.aio that does nothing."""

import contextlib
import statistics
from collections.abc import AsyncIterator

import grpc

from bench.accounting import Parts, Spent, accounted
from bench.asking import CHANNEL_OPTIONS, METADATA, connected
from bench.http2 import Connection, Request
from bench.load import rate
from bench.plan import Plan
from bench.results import Chart, Results
from bench.servers import MODEL
from bench.stage import Stage, parts_of
from famulus.v1.run_service_pb2 import CreateRunRequest, GetRunRequest, WaitRunRequest
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import GetThreadRequest
from serving import said

_MANY = 16
_GET_THREAD = "/famulus.v1.ThreadService/GetThread"
_GET_RUN = "/famulus.v1.RunService/GetRun"


class _Calls:
    """How fast one method of one system is, for each number of callers."""

    def __init__(self, address: str, request: Request, parts: Parts) -> None:
        self.request = request
        self.address = address
        self.parts = parts
        self.rates: dict[int, list[float]] = {}
        self.spent = Spent()
        self.calls = 0

    async def round(self, callers: int, seconds: float) -> None:
        """One more round."""
        async with _opened(self.address) as connection:

            async def call() -> None:
                await connection.ask(self.request)

            await call()
            with accounted(self.parts) as spent:
                found, taken = await rate(call, at_once=callers, seconds=seconds)
        self.rates.setdefault(callers, []).append(found)
        if callers == _MANY:
            self.spent.add(spent)
            self.calls += len(taken)

    def median(self, callers: int) -> float:
        """Calls per second."""
        return statistics.median(self.rates[callers])

    @property
    def server_us(self) -> float:
        """Microseconds of the server's processor for a call."""
        return self.spent.of(["server"]) / self.calls * 1e6


async def measure(stage: Stage, plan: Plan) -> Results:
    """The client is one that costs a fraction of a call."""
    results = Results()
    program = await stage.program()
    await stage.bare()
    bare_address, bare_parts = stage.where_bare(stage.around.upstream)
    run_id, thread_id = await _run_and_thread(program.address)
    get_thread = GetThreadRequest(thread_id=thread_id).SerializeToString()
    methods = {
        "bare": _Calls(bare_address, Request(bare_address, _GET_THREAD, get_thread), bare_parts),
        "GetThread": _Calls(program.address, Request(program.address, _GET_THREAD, get_thread), parts_of(program)),
        "GetRun": _Calls(program.address, _get_run(program.address, run_id), parts_of(program)),
    }
    for _ in range(plan.rounds):
        for callers in plan.callers:
            for method in methods.values():
                await method.round(callers, plan.seconds)
    rates = {name: method.median(_MANY) for name, method in methods.items()}
    results.figures = {
        "w5_bare_per_s": rates["bare"],
        "w5_get_thread_per_s": rates["GetThread"],
        "w5_get_run_per_s": rates["GetRun"],
        "w5_bare_server_us": methods["bare"].server_us,
        "w5_get_thread_server_us": methods["GetThread"].server_us,
        "w5_get_run_server_us": methods["GetRun"].server_us,
        "w5_vs_bare": min(rates["GetThread"], rates["GetRun"]) / rates["bare"],
    }
    results.cores = {f"W5 {name}": method.spent.cores for name, method in methods.items()}
    results.charts.append(
        Chart(
            name="w5",
            title="W5: calls per second",
            x="callers at once",
            y="calls per second",
            steps=[str(callers) for callers in plan.callers],
            lines={name: [method.median(n) for n in plan.callers] for name, method in methods.items()},
        )
    )
    return results


async def get_run_request(address: str) -> Request:
    """GetRun of a run that has ended."""
    run_id, _ = await _run_and_thread(address)
    return _get_run(address, run_id)


def _get_run(address: str, run_id: str) -> Request:
    return Request(address, _GET_RUN, GetRunRequest(run_id=run_id).SerializeToString())


async def _run_and_thread(address: str) -> tuple[str, str]:
    """The ids of a run that has ended, and of its thread."""
    async with (
        connected(address, MODEL) as runs,
        grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel,
    ):
        stub = RunServiceStub(channel)
        create = CreateRunRequest(
            assistant_id=runs.assistant_id, new_thread=Thread(user_id="user-0"), additional_messages=[said("one")]
        )
        run = (await stub.CreateRun(create, metadata=METADATA)).run
        await stub.WaitRun(WaitRunRequest(run_id=run.id), metadata=METADATA)
        return run.id, run.thread_id


@contextlib.asynccontextmanager
async def _opened(address: str) -> AsyncIterator[Connection]:
    connection = await Connection.open(address)
    try:
        yield connection
    finally:
        connection.close()
