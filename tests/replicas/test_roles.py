"""`serve --role api` and `serve --role worker`: who answers calls, and who executes runs."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from command import Running, environment, run
from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2 import ListRunsRequest
from famulus_server.embedded.upstream import Scene, ScriptedUpstream, ToolCall
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.engine import worker
from replicas.agreement import check_agreement
from replicas.conftest import OpenReplica
from run_stage import TOOLS, refused, stage_on

TIME_CALLED = Scene(times=1, tool_calls=(ToolCall(name="get_time"),))
CONFIG = """
[[models]]
name = "scripted"
backend = "responses"
base_url = "{base_url}"
"""

Serve = Callable[[str], Awaitable[tuple[Running, str]]]


@pytest.fixture
def serve(tmp_path: Path, upstream: ScriptedUpstream, shared: dict[str, Any]) -> Iterator[Serve]:
    """Starts the command in a role; gives the process and its address."""
    config = tmp_path / "famulus.toml"
    config.write_text(CONFIG.format(base_url=upstream.base_url))
    settings = {
        "FAMULUS_STORE_URL": shared["database_url"],
        "FAMULUS_REDIS_URL": shared["redis_url"],
        "FAMULUS_METRICS_LISTEN": "127.0.0.1:0",
    }
    with ExitStack() as processes:

        async def start(role: str) -> tuple[Running, str]:
            folder = str(tmp_path / role)
            command = ("--config", str(config), "serve", "--role", role, "--listen", "127.0.0.1:0")
            running = Running(*command, "--data-dir", folder, env=environment(settings))
            processes.enter_context(running)
            return running, await asyncio.to_thread(running.address)

        yield start


async def test_run_created_on_an_api_process_is_executed_by_a_worker_process(
    serve: Serve, upstream: ScriptedUpstream
) -> None:
    (api, address), (working, _) = await asyncio.gather(serve("api"), serve("worker"))
    async with stage_on(address, upstream) as stage:
        stage.play(TIME_CALLED, Scene(text="noon"))
        made = await stage.start(assistant_id=(await stage.assistant(tools=TOOLS)).id)
        assert made.state == RunState.RUN_STATE_QUEUED
        waiting = await stage.wait(made.id)
        await stage.submit(waiting.id, (waiting.required_action.tool_calls[0].id, "12:00"))
        story = await stage.tell(waiting.id)
        assert (story.run.state, story.text) == (RunState.RUN_STATE_COMPLETED, "noon")
    for process in (api, working):
        process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0


async def test_worker_process_serves_health_and_nothing_else(serve: Serve, upstream: ScriptedUpstream) -> None:
    _, address = await serve("worker")
    healthy = await asyncio.to_thread(run, "healthcheck", "--address", address)
    assert (healthy.returncode, healthy.stdout) == (0, f"{address}: readiness SERVING\n")
    async with grpc.aio.insecure_channel(address) as channel:
        for name in ("", "startup", "liveness", "readiness"):
            assert (await HealthStub(channel).Check(HealthCheckRequest(service=name))).status == (
                HealthCheckResponse.SERVING
            )
        absent = await refused(HealthStub(channel).Check(HealthCheckRequest(service="famulus.v1.RunService")))
        assert absent.code is grpc.StatusCode.NOT_FOUND
        request = ServerReflectionRequest(list_services="")
        [listed] = [one async for one in ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))]
        assert {service.name for service in listed.list_services_response.service} == {
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
    async with stage_on(address, upstream) as stage:
        refusal = await refused(stage.runs.ListRuns(ListRunsRequest()))
        assert refusal.code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("role", ["api", "worker"])
def test_role_that_needs_postgresql_is_refused_on_sqlite(tmp_path: Path, role: str) -> None:
    ended = run("serve", "--role", role, "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path), env=environment())
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == (
        "error: settings: server.role: SQLite serves one process: give [store] url, or the role all"
    )
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_unknown_role_is_refused(tmp_path: Path) -> None:
    by_environment = run("serve", env=environment({"FAMULUS_SERVER_ROLE": "boss"}))
    assert by_environment.returncode == 2
    assert "FAMULUS_SERVER_ROLE" in by_environment.stderr
    assert run("serve", "--role", "boss").returncode == 2


def test_help_tells_of_the_roles() -> None:
    told = run("serve", "--help").stdout
    assert "--role [all|api|worker]" in told
    assert "PostgreSQL" in told


async def test_api_replica_executes_nothing(open_replica: OpenReplica, upstream: ScriptedUpstream) -> None:
    async with open_replica(server={"role": "api"}) as first, open_replica(server={"role": "api"}) as second:
        first.play(Scene(text="fine"))
        runs = [await stage.start() for stage in (first, second, first)]
        assert {made.state for made in runs} == {RunState.RUN_STATE_QUEUED}
        cancelled = await second.start()
        # To end what no worker holds takes no slot.
        assert (await first.cancel(cancelled.id)).state == RunState.RUN_STATE_CANCELLED
        assert (await second.tell(cancelled.id)).states[-1] == RunState.RUN_STATE_CANCELLED
        watching = [asyncio.create_task(second.watch(made.id)) for made in runs]
        assert upstream.requests == []
        async with open_replica(server={"role": "worker"}):
            for made, events in zip(runs, await asyncio.gather(*watching), strict=True):
                story = await first.tell(made.id)
                assert story.text == "fine"
                check_agreement(events, story.events)


async def test_hint_brings_a_run_to_a_worker_that_does_not_poll(
    open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_POLL_SECONDS", 3_600.0)
    async with open_replica(server={"role": "api"}) as api, open_replica(server={"role": "worker"}):
        api.play(Scene(text="fine"))
        for _ in range(3):
            assert (await api.play_out()).text == "fine"


async def test_worker_finds_a_run_without_redis(
    open_replica: OpenReplica, valkey: EmbeddedValkey, upstream: ScriptedUpstream
) -> None:
    async with open_replica(server={"role": "api"}) as api, open_replica(server={"role": "worker"}):
        api.play(Scene(text="fine"))
        assert (await api.play_out()).text == "fine"
        await valkey.close()
        run = await api.start()
        # The watcher gets what is stored.
        assert (await api.wait(run.id)).state == RunState.RUN_STATE_COMPLETED
        events = await api.watch(run.id)
        assert events[-1].HasField("snapshot")
        assert await api.texts(run.thread_id) == ["hello", "fine"]
