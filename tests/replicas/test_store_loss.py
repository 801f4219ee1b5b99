"""PostgreSQL dies, restarts, hangs, or breaks off in the middle of a commit, under two replicas (contract 1, 4, 16)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc
import pytest
import pytest_asyncio
from google.rpc.error_details_pb2 import RetryInfo
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.run_service_pb2 import ListRunsRequest
from famulus_server.embedded.upstream import Match, Scene, ScriptedUpstream, ToolCall
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.store.postgres import PostgresStore
from famulus_server.wiring import stores
from postgres import PostgresServer
from replicas.conftest import OpenReplica
from run_stage import TOOLS, Stage, open_stage, refused, stage_settings
from serving import Refusal, refusal
from validator import validate_final

CALLING = Scene(match=Match(tool="get_time", tool_outputs=False), tool_calls=(ToolCall(name="get_time"),))
ANSWERING = Scene(match=Match(tool_outputs=True), deltas=6, hold_after=3)


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    """A server of this test's own: it does not survive it unharmed."""
    with PostgresServer() as server:
        yield server


@pytest_asyncio.fixture
async def shared(valkey: EmbeddedValkey, postgres: PostgresServer) -> AsyncIterator[dict[str, Any]]:
    yield {"redis_url": await valkey.start(), "database_url": postgres.create_database()}
    await valkey.close()


@pytest_asyncio.fixture
async def pair(open_replica: OpenReplica) -> AsyncIterator[tuple[Stage, Stage]]:
    async with open_replica() as here, open_replica() as there:
        yield here, there


def check_told(refusal: Refusal) -> None:
    """A caller is told that it is not his fault, and when to come back."""
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    retry = refusal.details["RetryInfo"]
    assert isinstance(retry, RetryInfo)
    assert retry.retry_delay.ToMilliseconds() > 0


async def create(stage: Stage, request_id: str, assistant_id: str) -> Run:
    """Creates a run as a careful client does: by the same request id until it is acknowledged."""
    while True:
        try:
            return await stage.start(request_id=request_id, assistant_id=assistant_id)
        except grpc.aio.AioRpcError as error:
            check_told(refusal(error))
            await asyncio.sleep(0.05)


async def begin(stages: tuple[Stage, ...], count: int) -> list[Run]:
    """Runs whose first turn is stored, and whose second is under way."""
    runs = []
    for number in range(count):
        stage = stages[number % len(stages)]
        run = await stage.start(assistant_id=(await stage.assistant(tools=TOOLS)).id)
        waiting = await stage.wait(run.id)
        await stage.submit(run.id, (waiting.required_action.tool_calls[0].id, "12:00"))
        await stage.until(run.id, "text_delta", after=waiting.last_sequence)
        runs.append(run)
    return runs


def release(stage: Stage) -> None:
    for request in stage.upstream.requests:
        request.released.set()


async def finish(stages: tuple[Stage, ...], runs: list[Run]) -> None:
    """All have succeeded, and each replica tells each of them in full."""
    for run in runs:
        for stage in stages:
            ended = await stage.wait(run.id)
            assert ended.state == RunState.RUN_STATE_COMPLETED
            validate_final(await stage.watch(run.id), ended, await stage.messages(run.thread_id, run.id))


@asynccontextmanager
async def readiness(stage: Stage) -> AsyncIterator[AsyncIterator[int]]:
    """What the health service of a replica tells of its readiness."""
    async with grpc.aio.insecure_channel(stage.address) as channel:
        call = HealthStub(channel).Watch(HealthCheckRequest(service="readiness"))
        yield (answer.status async for answer in call)
        call.cancel()


async def until_told(told: AsyncIterator[int], wanted: int) -> None:
    async for status in told:
        if status == wanted:
            return


async def is_alive(stage: Stage) -> bool:
    async with grpc.aio.insecure_channel(stage.address) as channel:
        answer = await HealthStub(channel).Check(HealthCheckRequest(service="liveness"))
        return bool(answer.status == HealthCheckResponse.SERVING)


async def test_killed_database_loses_no_acknowledged_run_and_repeats_no_turn(
    pair: tuple[Stage, Stage], postgres: PostgresServer
) -> None:
    here, _ = pair
    here.play(CALLING, ANSWERING, Scene(text="fine"))
    runs = await begin(pair, 6)
    asked = len(here.asked)
    plain = await here.assistant()
    acknowledged = [await stage.start(assistant_id=plain.id) for stage in pair for _ in range(5)]
    async with readiness(here) as told_here, readiness(pair[1]) as told_there:
        await asyncio.to_thread(postgres.kill)
        for told in (told_here, told_there):
            await until_told(told, HealthCheckResponse.NOT_SERVING)
        for stage in pair:
            calls: list[Awaitable[Any]] = [stage.start(), stage.get(runs[0].id), stage.texts(runs[0].thread_id)]
            for told_off in await asyncio.gather(*map(refused, calls)):
                check_told(told_off)
            assert await is_alive(stage)
        # Turns end while there is no database to store them.
        release(here)
        for number in range(1, asked + 1):
            await here.request_ended(number)
        creating = [asyncio.create_task(create(stage, f"request-{n}", plain.id)) for n in range(5) for stage in pair]
        await asyncio.to_thread(postgres.start)
        for told in (told_here, told_there):
            await until_told(told, HealthCheckResponse.SERVING)
    acknowledged += await asyncio.gather(*creating)
    # Both replicas were asked for each request id: it is one run.
    assert len({run.id for run in acknowledged}) == 10 + 5
    release(here)
    await finish(pair, runs)
    await finish(pair, acknowledged)
    assert len(here.asked) == asked + len({run.id for run in acknowledged}), "a turn was run twice"


async def test_restarted_database_costs_careful_callers_nothing(
    pair: tuple[Stage, Stage], postgres: PostgresServer
) -> None:
    here, _ = pair
    here.play(CALLING, ANSWERING, Scene(text="fine"))
    runs = await begin(pair, 4)
    asked = len(here.asked)
    plain = await here.assistant()
    restarted = asyncio.Event()

    async def keep_creating(stage: Stage, name: str) -> list[Run]:
        created: list[Run] = []
        while not restarted.is_set():
            created.append(await create(stage, f"{name}-{len(created)}", plain.id))
        return created

    creating = [asyncio.create_task(keep_creating(stage, f"request-{n}")) for n, stage in enumerate(pair)]
    await asyncio.to_thread(postgres.restart)
    restarted.set()
    acknowledged = [run for created in await asyncio.gather(*creating) for run in created]
    release(here)
    await finish(pair, runs)
    for run in acknowledged:
        assert (await here.wait(run.id)).state == RunState.RUN_STATE_COMPLETED
    assert len(here.asked) == asked + len(acknowledged), "a turn was run twice"


async def test_frozen_database_is_waited_for_by_runs_and_not_by_callers(
    open_replica: OpenReplica, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "PostgresStore", partial(PostgresStore, timeout=1.0))
    async with open_replica() as here, open_replica() as there:
        pair = here, there
        here.play(CALLING, ANSWERING, Scene(text="fine"))
        runs = await begin(pair, 4)
        asked = len(here.asked)
        plain = await here.assistant()
        async with readiness(here) as told_here, readiness(there) as told_there:
            postgres.freeze()
            try:
                for told in (told_here, told_there):
                    await until_told(told, HealthCheckResponse.NOT_SERVING)
                release(here)
                calls = [stage.start(assistant_id=plain.id, request_id="once") for stage in pair]
                for told_off in await asyncio.gather(*map(refused, calls)):
                    check_told(told_off)
            finally:
                postgres.thaw()
            for told in (told_here, told_there):
                await until_told(told, HealthCheckResponse.SERVING)
        # Whether what was refused is stored or not, there is one such run.
        created = [await create(stage, "once", plain.id) for stage in pair]
        assert created[0].id == created[1].id
        await finish(pair, [*runs, created[0]])
        assert len(here.asked) == asked + 1, "a turn was run twice"


class CommitCutter:
    """A proxy before PostgreSQL. Once it is `armed`, it passes on the next COMMIT and keeps the answer for itself."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._tasks: set[asyncio.Task[None]] = set()
        self.armed = False
        self.cut = asyncio.Event()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Gives the URL of the database behind the proxy."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            yield f"postgresql://{self._url.username}@127.0.0.1:{port}{self._url.path}?sslmode=disable"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        folder = parse_qs(self._url.query)["host"][0]
        inner_reader, inner_writer = await asyncio.open_unix_connection(Path(folder) / ".s.PGSQL.5432")
        answers = asyncio.create_task(_copy(inner_reader, writer))
        try:
            while data := await reader.read(65_536):
                if self.armed and b"COMMIT\0" in data:
                    self.armed = False
                    answers.cancel()
                    await asyncio.wait([answers])
                    inner_writer.write(data)
                    await inner_reader.read(1)
                    self.cut.set()
                    return
                inner_writer.write(data)
                await inner_writer.drain()
        except ConnectionError:
            pass
        finally:
            answers.cancel()
            for each in (writer, inner_writer):
                each.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.transport.abort()


@pytest_asyncio.fixture
async def cutter(
    shared: dict[str, Any], upstream: ScriptedUpstream, tmp_path: Path
) -> AsyncIterator[tuple[CommitCutter, Stage]]:
    """The proxy, and a replica behind it whose leases run out soon."""
    proxy = CommitCutter(shared["database_url"])
    async with proxy.listening() as url:
        settings = stage_settings(
            tmp_path / "cut", upstream.base_url, **shared | {"database_url": url}, worker={"lease_seconds": 3.0}
        )
        async with open_stage(settings, upstream) as stage:
            yield proxy, stage


async def test_run_whose_commit_was_not_answered_is_the_one_that_the_same_request_gets(
    cutter: tuple[CommitCutter, Stage], open_replica: OpenReplica
) -> None:
    proxy, here = cutter
    async with open_replica() as there:
        here.play(Scene(text="fine"))
        wanted = await here.wanted(request_id="once")
        proxy.armed = True
        check_told(await refused(here.runs.CreateRun(wanted)))
        assert proxy.cut.is_set()
        run = (await there.runs.CreateRun(wanted)).run
        assert (await here.runs.CreateRun(wanted)).run.id == run.id
        assert [one.id for one in (await here.runs.ListRuns(ListRunsRequest())).runs] == [run.id]
        # Nobody knew that it is to be executed, until the lease ran out.
        await finish((here, there), [run])
        assert len(here.asked) == 1


async def test_turn_whose_commit_was_not_answered_is_told_and_not_run_again(
    cutter: tuple[CommitCutter, Stage], open_replica: OpenReplica
) -> None:
    proxy, here = cutter
    async with open_replica(server={"role": "api"}) as there:
        here.play(Scene(deltas=6, hold_after=3))
        run = await here.start()
        watching = [asyncio.create_task(stage.watch(run.id)) for stage in (here, there)]
        await there.until(run.id, "text_delta")
        proxy.armed = True
        release(here)
        await proxy.cut.wait()
        for seen in await asyncio.gather(*watching):
            ended = await there.get(run.id)
            assert ended.state == RunState.RUN_STATE_COMPLETED
            validate_final(seen, ended, await there.messages(run.thread_id, run.id))
        await finish((here, there), [run])
        assert len(here.asked) == 1
