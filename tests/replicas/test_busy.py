"""A second run on a busy thread whose first one another replica executes, or did until it died (contract 6)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.run_service_pb2 import BusyPolicy
from famulus.v1.thread_service_pb2 import DeleteThreadRequest
from famulus_server.embedded.upstream import Scene, ScriptedUpstream
from killable_server import open_killable
from postgres import EVERYBODY, until
from replicas.conftest import OpenReplica
from run_stage import Stage, refused
from validator import validate_stream

pytestmark = pytest.mark.usefixtures("unhurried")

ENQUEUE = BusyPolicy.BUSY_POLICY_ENQUEUE
INTERRUPT = BusyPolicy.BUSY_POLICY_INTERRUPT
ROLLBACK = BusyPolicy.BUSY_POLICY_ROLLBACK
QUEUED, CANCELLING = RunState.RUN_STATE_QUEUED, RunState.RUN_STATE_CANCELLING
CANCELLED, COMPLETED = RunState.RUN_STATE_CANCELLED, RunState.RUN_STATE_COMPLETED

HELD = Scene(times=1, deltas=6, hold_after=3)
ECHO = Scene(text="to ", echo=True)
# Long enough to do several things while a dead worker's lease still holds, however slow the machine is.
LEASE_SECONDS = 5.0


@pytest_asyncio.fixture
async def pair(open_replica: OpenReplica) -> AsyncIterator[tuple[Stage, Stage]]:
    async with open_replica() as here, open_replica() as there:
        yield here, there


async def hold(stage: Stage) -> Run:
    """A run in the middle of its first message, after which the model echoes."""
    stage.play(HELD, ECHO)
    run = await stage.start("first")
    await stage.until(run.id, "text_delta")
    return run


async def texts(stage: Stage, thread_id: str) -> list[str]:
    return [text.strip() for text in await stage.texts(thread_id)]


async def test_line_is_one_whichever_replicas_runs_come_to(pair: tuple[Stage, Stage]) -> None:
    first = await hold(pair[0])
    line = [
        await pair[number % 2].start(f"number {number}", thread_id=first.thread_id, busy_policy=ENQUEUE)
        for number in range(10)
    ]
    (await pair[0].request()).released.set()
    await asyncio.gather(*(pair[(number + 1) % 2].tell(run.id) for number, run in enumerate(line)))
    told = [text for number in range(10) for text in (f"number {number}", f"to number {number}")]
    assert (await texts(pair[1], first.thread_id))[2:] == told


async def test_run_is_interrupted_or_rolled_back_through_another_replica(pair: tuple[Stage, Stage]) -> None:
    here, there = pair
    for policy, kept in ((INTERRUPT, ["w1 w2 w3"]), (ROLLBACK, [])):
        first = await hold(here)
        watching = [asyncio.create_task(stage.watch(first.id)) for stage in pair]
        second = await there.start("second", thread_id=first.thread_id, busy_policy=policy)
        assert (await here.request_ended()).outcome == "disconnected"
        assert (await here.tell(second.id)).run.state == COMPLETED
        assert await texts(there, first.thread_id) == ["first", *kept, "second", "to second"]
        seen = await asyncio.gather(*watching)
        validate_stream(seen[0])
        assert seen[0] == seen[1]
        assert (await there.get(first.id)).state == CANCELLED


async def test_line_goes_with_its_thread_when_that_is_deleted_through_another_replica(
    pair: tuple[Stage, Stage],
) -> None:
    here, there = pair
    first = await hold(here)
    line = [await stage.start("more", thread_id=first.thread_id, busy_policy=ENQUEUE) for stage in pair]
    watching = [asyncio.create_task(refused(stage.watch(run.id))) for run in (first, *line) for stage in pair]
    await asyncio.gather(*(stage.until(run.id, "run_state_changed") for run in line for stage in pair))
    await there.threads.DeleteThread(DeleteThreadRequest(thread_id=first.thread_id))
    assert {refusal.reason for refusal in await asyncio.gather(*watching)} == {"THREAD_DELETED"}
    assert (await here.request_ended()).outcome == "disconnected"
    assert len(here.asked) == 1


async def test_snapshot_does_not_show_a_stop_before_it_is_told(
    tmp_path: Path, upstream: ScriptedUpstream, shared: dict[str, Any], open_replica: OpenReplica
) -> None:
    async with open_killable(tmp_path / "dies", upstream, **shared) as (dying, process):
        first = await hold(dying)
        process.kill()
        await process.wait()
    async with open_replica() as stage, Redis.from_url(shared["redis_url"]) as redis:
        await redis.flushall()
        await stage.cancel(first.id)
        events = await stage.watch(first.id)
        validate_stream(events)
        assert events[0].HasField("snapshot")
        assert events[-1].run_state_changed.run.state == CANCELLED


async def test_thread_whose_worker_died_is_interrupted_again_and_again(
    tmp_path: Path, upstream: ScriptedUpstream, shared: dict[str, Any], open_replica: OpenReplica
) -> None:
    worker = {"lease_seconds": LEASE_SECONDS}
    async with open_killable(tmp_path / "dies", upstream, worker=worker, **shared) as (dying, process):
        first = await hold(dying)
        async with open_replica() as stage:
            # It has what it needs to stop the run; only, nobody does.
            process.kill()
            await process.wait()
            patient = await stage.start("patient", thread_id=first.thread_id, busy_policy=ENQUEUE)
            interrupting: list[Run] = []
            for policy in (INTERRUPT, ROLLBACK, INTERRUPT):
                text = f"number {len(interrupting)}"
                interrupting.append(await stage.start(text, thread_id=first.thread_id, busy_policy=policy))
                assert await stage.active_run(first.thread_id) == first.id
                assert (await stage.get(first.id)).state == CANCELLING
            refusal = await refused(stage.start("no", thread_id=first.thread_id))
            assert refusal.metadata["run_id"] == first.id
            assert await texts(stage, first.thread_id) == ["first"]
            stories = await asyncio.gather(*(stage.tell(run.id) for run in (first, *interrupting, patient)))
            assert [story.run.state for story in stories] == [CANCELLED] * 3 + [COMPLETED] * 2
            assert stories[1].states == stories[2].states == [QUEUED, CANCELLED]
            # Whoever rolled the run back was told so: a later interrupt does not bring back what it wrote.
            assert stories[0].run.rolled_back
            assert stories[0].messages == []
            numbers = [f"number {number}" for number in range(3)]
            answers = ["to number 2", "patient", "to patient"]
            assert await texts(stage, first.thread_id) == ["first", *numbers, *answers]


async def test_callers_who_wait_for_one_another_do_not_cost_the_worker_its_leases(
    shared: dict[str, Any], open_replica: OpenReplica
) -> None:
    url = shared["database_url"]
    async with open_replica(worker={"lease_seconds": 3.0}) as stage:
        first, thread = await hold(stage), await stage.thread()
        connection = await asyncpg.connect(url, server_settings=EVERYBODY)
        async with connection.transaction():
            await connection.execute("SELECT 1 FROM threads WHERE id = $1 FOR UPDATE", thread.id)
            # More than there are connections for them.
            waiting = [asyncio.create_task(stage.say(thread.id, f"m{number}")) for number in range(20)]
            for _ in range(4):
                lease = f"(SELECT lease_expire_time FROM runs WHERE id = '{first.id}' AND attempt = 1)"
                told = await connection.fetchval(f"SELECT {lease}")
                await until(url, f"SELECT {lease} > {told}")
            assert not any(one.done() for one in waiting)
        await connection.close()
        await asyncio.gather(*waiting)
        assert sorted(await texts(stage, thread.id)) == sorted(f"m{number}" for number in range(20))
