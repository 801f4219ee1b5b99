"""Replicas that are told to stop, and callers that hardly notice (contract 29)."""

import asyncio
import signal
import socket
import threading
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
import pytest_asyncio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from famulus import FamulusClient, FamulusSyncClient, RunResult
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2 import CreateRunRequest, WaitRunRequest, WatchRunRequest
from famulus.v1.thread_service_pb2 import ListMessagesRequest, ListOrder
from famulus_server.embedded.upstream import Match, Scene, ScriptedUpstream, ToolCall
from postgres import EVERYBODY, until
from replicas.agreement import check_agreement
from replicas.conftest import OpenReplica
from replicas.processes import open_process
from run_stage import TOOLS, Stage, refused, stage_on, text_of
from serving import Refusal, refusal, said
from validator import validate_final, validate_stream

pytestmark = pytest.mark.usefixtures("unhurried")

PATIENCE = 60.0
# Contract 29.
EXIT_SECONDS = 30.0
STREAMS = 200
STREAMS_PER_CHANNEL = 50
HELD = Scene(times=STREAMS, deltas=6, hold_after=3)


@dataclass
class Watcher:
    """One stream, and how it ended."""

    stage: Stage
    run_id: str
    seen: list[RunEvent] = field(default_factory=list)
    text: asyncio.Event = field(default_factory=asyncio.Event)
    told: Refusal | None = None

    async def watch(self) -> None:
        """Watches until the stream is refused, which it must be."""
        try:
            async for response in self.stage.runs.WatchRun(WatchRunRequest(run_id=self.run_id)):
                self.seen += response.events
                if any(event.text_delta.text.strip() == "w3" for event in response.events):
                    self.text.set()
        except grpc.aio.AioRpcError as error:
            self.told = refusal(error)


async def status(address: str, name: str) -> int:
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        return int((await HealthStub(channel).Check(HealthCheckRequest(service=name))).status)


async def until_not_ready(address: str) -> None:
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        async for answer in HealthStub(channel).Watch(HealthCheckRequest(service="readiness")):
            if answer.status == HealthCheckResponse.NOT_SERVING:
                return


async def test_streams_of_a_stopped_replica_resume_on_another_one_without_a_gap(
    tmp_path: Path, upstream: ScriptedUpstream, shared: dict[str, Any], open_replica: OpenReplica
) -> None:
    async with AsyncExitStack() as stack:
        settings: dict[str, Any] = {**shared, "server": {"drain_seconds": 2.0}}
        stopping, process = await stack.enter_async_context(open_process(tmp_path / "stopping", upstream, **settings))
        other = await stack.enter_async_context(open_replica())
        stopping.play(HELD, Scene(deltas=4))
        create = await stopping.wanted()
        stages = [
            await stack.enter_async_context(stage_on(stopping.address, upstream))
            for _ in range(STREAMS // STREAMS_PER_CHANNEL)
        ]
        runs = [(await stages[number % len(stages)].runs.CreateRun(create)).run for number in range(STREAMS)]
        watchers = [Watcher(stages[number % len(stages)], run.id) for number, run in enumerate(runs)]
        watching = [asyncio.create_task(watcher.watch()) for watcher in watchers]
        waiting = asyncio.create_task(refused(stopping.runs.WaitRun(WaitRunRequest(run_id=runs[0].id))))
        await asyncio.gather(*(asyncio.wait_for(watcher.text.wait(), PATIENCE) for watcher in watchers))

        process.send_signal(signal.SIGTERM)
        told = await asyncio.wait_for(waiting, PATIENCE)
        assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
        # Its runs are still at work: calls are served, but for those that start more.
        assert await status(stopping.address, "readiness") == HealthCheckResponse.NOT_SERVING
        assert await status(stopping.address, "liveness") == HealthCheckResponse.SERVING
        turned_away = await refused(stopping.runs.CreateRun(create))
        assert (turned_away.code, turned_away.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
        assert turned_away.details["RetryInfo"].retry_delay.ToMilliseconds() > 0  # type: ignore[attr-defined]
        assert (await stopping.get(runs[0].id)).state == RunState.RUN_STATE_IN_PROGRESS

        await asyncio.wait_for(asyncio.gather(*watching), PATIENCE)
        for watcher in watchers:
            assert watcher.told is not None, "the stream ended OK in the middle of its run"
            assert (watcher.told.code, watcher.told.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
            assert watcher.told.metadata["last_sequence"] == str(watcher.seen[-1].sequence)
            assert "RetryInfo" in watcher.told.details
        assert await asyncio.wait_for(process.wait(), EXIT_SECONDS) == 0

        async def resume(watcher: Watcher) -> None:
            events = watcher.seen + await other.watch(watcher.run_id, watcher.seen[-1].sequence)
            run = await other.get(watcher.run_id)
            validate_stream(events)
            validate_final(events, run, await other.messages(run.thread_id, run.id))
            assert (run.state, run.attempt) == (RunState.RUN_STATE_COMPLETED, 2)

        async with asyncio.timeout(PATIENCE):
            for start in range(0, STREAMS, STREAMS_PER_CHANNEL):
                await asyncio.gather(*map(resume, watchers[start : start + STREAMS_PER_CHANNEL]))
        assert len(upstream.requests) == 2 * STREAMS


async def test_run_in_line_goes_on_elsewhere_when_its_replica_stops(
    tmp_path: Path, upstream: ScriptedUpstream, shared: dict[str, Any], open_replica: OpenReplica
) -> None:
    settings: dict[str, Any] = {**shared, "worker": {"slots": 1}}
    async with (
        open_process(tmp_path / "stopping", upstream, **settings) as (stopping, process),
        open_replica(server={"role": "api"}) as api,
    ):
        stopping.play(Scene(times=1, deltas=6, hold_after=3), Scene(deltas=4))
        held, queued = await stopping.start(), await stopping.start()
        assert queued.state == RunState.RUN_STATE_QUEUED
        watching = [asyncio.create_task(api.watch(run.id)) for run in (held, queued)]
        await api.until_text(held.id, " w3")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), EXIT_SECONDS) == 0
        async with open_replica(server={"role": "worker"}):
            for run, events in zip((held, queued), await asyncio.gather(*watching), strict=True):
                check_agreement(events, (await api.tell(run.id)).events)
        assert [(await api.get(run.id)).attempt for run in (held, queued)] == [2, 1]


@pytest.mark.parametrize("method", ["CreateRun", "SubmitToolOutputs"])
async def test_run_that_a_call_starts_while_its_replica_stops_is_given_back(
    tmp_path: Path, upstream: ScriptedUpstream, shared: dict[str, Any], open_replica: OpenReplica, method: str
) -> None:
    url = shared["database_url"]
    async with (
        open_process(tmp_path / "stopping", upstream, **shared) as (stopping, process),
        open_replica(server={"role": "api"}) as api,
    ):
        stopping.play(Scene(match=Match(tool_outputs=False, tool="get_time"), tool_calls=(ToolCall(name="get_time"),)))
        calling: Awaitable[Any]
        if method == "CreateRun":
            thread_id = (await api.thread()).id
            calling = stopping.start(thread_id=thread_id)
        else:
            asking = await api.start(assistant_id=(await api.assistant(tools=TOOLS)).id)
            waiting = await api.wait(asking.id)
            thread_id = waiting.thread_id
            calling = stopping.submit(waiting.id, (waiting.required_action.tool_calls[0].id, "12:00"))
        stopping.play(Scene(deltas=6, hold_after=3))
        connection = await asyncpg.connect(url, server_settings=EVERYBODY)
        try:
            async with connection.transaction():
                await connection.execute("SELECT 1 FROM threads WHERE id = $1 FOR UPDATE", thread_id)
                call = asyncio.ensure_future(calling)
                await until(url, "SELECT count(*) FROM pg_locks WHERE NOT granted")
                process.send_signal(signal.SIGTERM)
                await until_not_ready(stopping.address)
                # Long enough for a worker that does not wait for the call to be gone.
                await asyncio.sleep(0.3)
        finally:
            await connection.close()
        run = await asyncio.wait_for(call, PATIENCE)
        assert await asyncio.wait_for(process.wait(), EXIT_SECONDS) == 0
        api.play(Scene(text="fine"))
        async with open_replica(server={"role": "worker"}):
            assert (await asyncio.wait_for(api.tell(run.id), PATIENCE)).text == "fine"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Fleet:
    """Three replicas at fixed addresses, which are stopped and started again."""

    def __init__(self, folder: Path, upstream: ScriptedUpstream, shared: dict[str, Any]) -> None:
        self._folder = folder
        self._upstream = upstream
        self._shared = shared
        self._ports = [free_port() for _ in range(3)]
        self._lives: dict[int, tuple[AsyncExitStack, Process]] = {}
        self.target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in self._ports)

    async def start(self) -> None:
        await asyncio.gather(*map(self._start, self._ports))

    async def roll(self) -> None:
        """Stops and starts one after the other."""
        for port in self._ports:
            life, process = self._lives[port]
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), EXIT_SECONDS) == 0
            await life.aclose()
            await self._start(port)

    async def close(self) -> None:
        for life, _ in self._lives.values():
            await life.aclose()

    async def _start(self, port: int) -> None:
        life = AsyncExitStack()
        settings = {**self._shared, "server": {"listen": f"127.0.0.1:{port}"}}
        folder = self._folder / str(port)
        _, process = await life.enter_async_context(open_process(folder, self._upstream, **settings))
        self._lives[port] = life, process


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, upstream: ScriptedUpstream, shared: dict[str, Any]) -> AsyncIterator[Fleet]:
    made = Fleet(tmp_path, upstream, shared)
    await made.start()
    yield made
    await made.close()


@dataclass
class Load:
    """Users who talk until they are told to stop, and what they saw. A user says one thing after the other."""

    assistant_id: str
    stop: threading.Event = field(default_factory=threading.Event)
    streams: list[list[RunEvent]] = field(default_factory=list)
    waited: list[RunResult] = field(default_factory=list)
    said: dict[str, list[str]] = field(default_factory=dict)

    def wanted(self, thread_id: str) -> CreateRunRequest:
        texts = self.said.setdefault(thread_id, [])
        texts.append(f"number {len(texts) + 1}")
        return CreateRunRequest(
            thread_id=thread_id, assistant_id=self.assistant_id, additional_messages=[said(texts[-1])]
        )

    async def talk(self, client: FamulusClient, thread_id: str) -> None:
        async def get_time() -> str:
            await asyncio.sleep(0.01)
            return "noon"

        while not self.stop.is_set():
            async with client.stream_run(self.wanted(thread_id), tools={"get_time": get_time}) as stream:
                self.streams.append([event async for event in stream])
            self.waited.append(await client.wait_run(stream.view.run_id))

    def talk_in_thread(self, client: FamulusSyncClient, thread_id: str) -> None:
        while not self.stop.is_set():
            with client.stream_run(self.wanted(thread_id), tools={"get_time": lambda: "noon"}) as stream:
                self.streams.append(list(stream))
            self.waited.append(client.wait_run(stream.view.run_id))


async def stored(stage: Stage, thread_id: str) -> list[str]:
    """All texts of a thread."""
    texts: list[str] = []
    request = ListMessagesRequest(thread_id=thread_id, page_size=100, order=ListOrder.LIST_ORDER_ASCENDING)
    while True:
        page = await stage.threads.ListMessages(request)
        texts += map(text_of, page.messages)
        if not page.next_page_token:
            return texts
        request.page_token = page.next_page_token


def conversation(texts: Sequence[str]) -> list[str]:
    return [line for text in texts for line in (text, "Noon it is, said the clock.")]


@pytest.mark.timeout(400)  # fifteen processes start one after the other
async def test_five_rolling_restarts_show_no_error_to_users_of_the_client(
    fleet: Fleet, open_replica: OpenReplica, upstream: ScriptedUpstream
) -> None:
    # Looks at what is stored in the end, and executes nothing.
    async with open_replica(server={"role": "api"}) as witness:
        witness.play(
            Scene(
                match=Match(tool_outputs=True),
                text=("Noon", " it", " is,", " said", " the", " clock."),
                pace_ms=20,
            ),
            Scene(tool_calls=(ToolCall(name="get_time"),), first_ms=20),
        )
        load = Load((await witness.assistant(tools=TOOLS)).id)
        threads = [(await witness.thread()).id for _ in range(20)]
        async with FamulusClient(fleet.target) as client:
            with FamulusSyncClient(fleet.target) as sync_client, ThreadPoolExecutor(10) as pool:
                loop = asyncio.get_running_loop()
                users: list[asyncio.Future[None]] = [
                    asyncio.ensure_future(load.talk(client, thread_id)) for thread_id in threads[:10]
                ]
                users += [
                    loop.run_in_executor(pool, load.talk_in_thread, sync_client, thread_id)
                    for thread_id in threads[10:]
                ]
                try:
                    for _ in range(5):
                        await fleet.roll()
                finally:
                    load.stop.set()
                await asyncio.wait_for(asyncio.gather(*users), PATIENCE)

        for events in load.streams:
            validate_stream(events)
        assert {result.run.state for result in load.waited} == {RunState.RUN_STATE_COMPLETED}
        assert sum(map(len, load.said.values())) == len(load.streams) == len(load.waited)
        assert any(result.run.attempt > 2 for result in load.waited), "no restart met a run at work"
        for thread_id in threads:
            assert await stored(witness, thread_id) == conversation(load.said[thread_id])
