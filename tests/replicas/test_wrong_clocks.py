"""Replicas whose own clocks are an hour off: all go by the database's clock, so nobody notices."""

import asyncio
import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from command import Running, environment
from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.run_service_pb2 import BusyPolicy
from famulus_server.embedded.upstream import Match, Scene, ScriptedUpstream, ToolCall
from run_stage import TOOLS, Stage, stage_on

PATIENCE = 60.0
# Whoever judges leases by another clock claims a run at once, however long they are.
LONG_LEASE, SHORT_LEASE = 60.0, 2.0
TTL_SECONDS = 3
# The offsets are so much larger than whatever a busy machine can add.
ABOUT = timedelta(minutes=10)
HELD_ONCE = Scene(times=1, deltas=6, hold_after=3)
CONFIG = """
[worker]
lease_seconds = {lease}
[log]
format = "json"
[[models]]
name = "scripted"
backend = "responses"
base_url = "{base_url}"
"""


@dataclass
class Replica:
    """A process whose clock is wrong by `offset`."""

    stage: Stage
    process: Running
    offset: timedelta


def wrong_clock(offset: timedelta) -> dict[str, str]:
    """What gives a process a clock that is wrong by so much. Skips the test where that cannot be done."""
    spec = importlib.util.find_spec("libfaketime")
    folders = spec.submodule_search_locations if spec else None
    library = Path(folders[0], "vendor/libfaketime/src/libfaketime.so.1") if folders else Path()
    seconds = f"{offset.total_seconds():+.0f}"
    env = {
        "LD_PRELOAD": str(library),
        "FAKETIME": seconds,
        "DONT_FAKE_MONOTONIC": "1",
        # Otherwise waits of threads for each other, Python's own lock among them, end at once or never.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }
    command = [sys.executable, "-c", "import time; print(time.time())"]
    told = subprocess.run(command, env=environment(env), capture_output=True, text=True, check=False, timeout=30)
    if told.returncode or abs(datetime.fromtimestamp(float(told.stdout), UTC) - datetime.now(UTC) - offset) > ABOUT:
        pytest.skip(f"wrong clocks were NOT tested: libfaketime does not work here: {told.stderr}")
    return env


def check_clock(replica: Replica) -> None:
    """The process tells the time in its log: it must be the wrong one."""
    line = json.loads(replica.process.line('"readiness"', on="stderr"))
    told = datetime.fromisoformat(line["timestamp"])
    assert abs(told - datetime.now(UTC) - replica.offset) < ABOUT, f"not wrong by {replica.offset}: {told}"


@pytest_asyncio.fixture
async def replicas(
    tmp_path: Path, upstream: ScriptedUpstream, shared: dict[str, Any], request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Replica, Replica]]:
    """One an hour ahead, one an hour behind; the parameter is their lease, in seconds."""
    config = tmp_path / "famulus.toml"
    config.write_text(CONFIG.format(lease=getattr(request, "param", LONG_LEASE), base_url=upstream.base_url))
    settings = {
        "FAMULUS_STORE_URL": shared["database_url"],
        "FAMULUS_REDIS_URL": shared["redis_url"],
        "FAMULUS_METRICS_LISTEN": "127.0.0.1:0",
    }

    async with AsyncExitStack() as stack:

        async def start(hours: int) -> Replica:
            offset = timedelta(hours=hours)
            env = environment(settings | await asyncio.to_thread(wrong_clock, offset))
            command = ("--config", str(config), "serve", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path))
            process = stack.enter_context(Running(*command, env=env))
            address = await asyncio.to_thread(process.address)
            replica = Replica(await stack.enter_async_context(stage_on(address, upstream)), process, offset)
            await asyncio.to_thread(check_clock, replica)
            return replica

        ahead, behind = await asyncio.gather(start(1), start(-1))
        yield ahead, behind


def about_now(moment: Timestamp) -> bool:
    return abs(moment.ToDatetime(UTC) - datetime.now(UTC)) < ABOUT


def check_times(run: Run) -> None:
    assert all(map(about_now, (run.create_time, run.start_time, run.end_time))), run


async def test_run_expires_when_its_time_has_come_and_its_lease_holds_meanwhile(
    replicas: tuple[Replica, Replica],
) -> None:
    ahead, behind = (replica.stage for replica in replicas)
    ahead.play(
        Scene(match=Match(tool="get_time"), tool_calls=(ToolCall(name="get_time"),)),
        Scene(match=Match(user_contains="held"), deltas=6, hold_after=3),
        Scene(text="fine"),
    )
    with_tools = (await ahead.assistant(tools=TOOLS)).id
    ttl = Duration(seconds=TTL_SECONDS)
    for here, there in ((ahead, behind), (behind, ahead)):
        assert (await here.play_out()).text == "fine"  # the first run of a process takes longer
        at_work = await here.start("held", ttl=ttl)
        waiting = await here.start(assistant_id=with_tools, ttl=ttl)
        for run in (at_work, waiting):
            async with asyncio.timeout(PATIENCE):
                story = await there.tell(run.id)
            assert story.run.state == RunState.RUN_STATE_EXPIRED
            check_times(story.run)
            created, due, ended = (
                getattr(story.run, name).ToMicroseconds() for name in ("create_time", "expire_time", "end_time")
            )
            assert due - created == TTL_SECONDS * 1_000_000
            assert ended >= due, "it expired too early"
            assert story.run.attempt == 1, "another replica took it over while it was at work"
            assert all(about_now(event.event_time) for event in story.events)


async def test_replicas_agree_on_times_and_orders(replicas: tuple[Replica, Replica]) -> None:
    ahead, behind = (replica.stage for replica in replicas)
    ahead.play(HELD_ONCE, Scene(text="fine"))
    run = await ahead.start("one")
    line = {"thread_id": run.thread_id, "busy_policy": BusyPolicy.BUSY_POLICY_ENQUEUE}
    runs = [run]
    for number, stage in enumerate((behind, ahead, behind, ahead), 2):
        runs.append(await stage.start(f"number {number}", **line))
    (await ahead.request()).released.set()
    stories = [await behind.tell(each.id) for each in runs]
    for story in stories:
        check_times(story.run)
    starts = [story.run.start_time.ToMicroseconds() for story in stories]
    assert starts == sorted(starts), "the line was not kept"
    messages = await ahead.messages(run.thread_id)
    assert [message.run_id for message in messages if message.run_id] == [each.id for each in runs]
    assert all(about_now(message.create_time) for message in messages)


@pytest.mark.parametrize("replicas", [SHORT_LEASE], indirect=True, ids=["short lease"])
async def test_run_of_a_killed_replica_is_taken_over_when_its_lease_has_run_out(
    replicas: tuple[Replica, Replica],
) -> None:
    doomed, other = replicas
    doomed.stage.play(HELD_ONCE, Scene(deltas=4))
    run = await doomed.stage.start()
    await doomed.stage.until_text(run.id, " w3")
    doomed.process.signal(signal.SIGKILL)
    # By its own clock, the lease would hold for another hour.
    async with asyncio.timeout(PATIENCE):
        story = await other.stage.tell(run.id)
    assert (story.run.state, story.text) == (RunState.RUN_STATE_COMPLETED, "w1 w2 w3 w4")
    assert story.run.attempt > run.attempt
    check_times(story.run)
