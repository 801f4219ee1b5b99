"""Clients that die, go away, flood, or all come back at once (contract 12, 15)."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2 import StreamRunRequest, WatchRunRequest
from famulus_server.embedded.upstream import Match, Scene, ScriptedUpstream
from killable_client import watch_and_die
from replicas.agreement import check_agreement
from replicas.conftest import OpenReplica
from replicas.processes import open_process
from run_stage import Stage, stage_on
from serving import refusal
from validator import validate_stream

pytestmark = pytest.mark.usefixtures("unhurried")

PATIENCE = 60.0
HELD = Scene(match=Match(user_contains="held"), deltas=6, hold_after=3)
FINE = Scene(text="fine")
FLOOD = 1_000
AT_A_TIME = 50
RETURNING = 2_000
RUNS = 20
# As many streams as a server lets a connection have.
PER_CHANNEL = 100


async def test_client_killed_at_any_event_resumes_on_another_replica_behind_it(open_replica: OpenReplica) -> None:
    async with open_replica() as here, open_replica() as there:
        here.play(HELD)
        run = await here.start("held")
        # The 6 events up to the third word come while the run is held, the others behind it.
        before_release = [asyncio.create_task(watch_and_die(here.address, run.id, count)) for count in range(1, 7)]
        seen = await asyncio.wait_for(asyncio.gather(*before_release), PATIENCE)
        (await here.request()).released.set()
        log = await here.watch(run.id)
        validate_stream(log)
        counts = range(7, len(log))
        seen += await asyncio.gather(*(watch_and_die(here.address, run.id, count) for count in counts))
        for events in seen:
            assert events + await there.watch(run.id, events[-1].sequence) == log
        assert {len(events) for events in seen} == set(range(1, len(log)))
        assert (await there.get(run.id)).state == RunState.RUN_STATE_COMPLETED


async def test_run_on_another_replica_is_cancelled_with_its_watcher_if_that_asked_for_it(
    open_replica: OpenReplica,
) -> None:
    async with open_replica() as here, open_replica(server={"role": "api"}) as there:
        here.play(HELD)
        kept = await here.start("held")
        asked = await here.request()
        dropped = await here.start("held")
        calls: list[Any] = [
            there.runs.WatchRun(WatchRunRequest(run_id=kept.id)),
            there.runs.WatchRun(WatchRunRequest(run_id=dropped.id, cancel_on_disconnect=True)),
        ]
        for call in calls:
            await until_text(call)
            call.cancel()
        assert (await asyncio.wait_for(here.tell(dropped.id), PATIENCE)).run.state == RunState.RUN_STATE_CANCELLED
        assert (await there.get(kept.id)).state == RunState.RUN_STATE_IN_PROGRESS
        asked.released.set()
        assert (await there.tell(kept.id)).run.state == RunState.RUN_STATE_COMPLETED


async def until_text(call: Any) -> None:
    async for response in call:
        if any(event.HasField("text_delta") for event in response.events):
            return
    raise AssertionError("no text")


async def test_neighbours_of_a_client_that_opens_and_cancels_streams_are_served(
    tmp_path: Path, upstream: ScriptedUpstream, shared: dict[str, Any]
) -> None:
    async with (
        open_process(tmp_path / "one", upstream, **shared) as (neighbour, process),
        stage_on(neighbour.address, upstream) as flooding,
    ):
        neighbour.play(HELD, FINE)
        held = await neighbour.start("held")
        # Before any other: runs of the flood are held as well.
        asked = await neighbour.request()
        create = await flooding.wanted("held", thread_id=(await flooding.thread()).id)
        flooded = 0

        async def flood() -> None:
            nonlocal flooded
            while flooded < FLOOD:
                flooded += AT_A_TIME
                calls: list[Any] = [
                    # Half of them are refused: the thread has an active run by then, or at once.
                    flooding.runs.StreamRun(StreamRunRequest(create=create, cancel_on_disconnect=True))
                    if number % 2
                    else flooding.runs.WatchRun(WatchRunRequest(run_id=held.id))
                    for number in range(AT_A_TIME)
                ]
                await asyncio.sleep(0)
                for call in calls:
                    call.cancel()

        storm = asyncio.create_task(flood())
        served = 0
        while not storm.done() or not served:
            async with asyncio.timeout(PATIENCE):
                assert (await neighbour.play_out()).text == "fine"
            served += 1
        await storm
        asked.released.set()
        assert (await neighbour.tell(held.id)).run.state == RunState.RUN_STATE_COMPLETED
        # Nothing is left of them. Who comes next comes by a connection of his own: on the one that was flooded gRPC
        # itself may refuse calls, or leave them hanging, as it does with a bare server as well.
        async with stage_on(neighbour.address, upstream) as following:
            assert (await following.play_out()).text == "fine"
        assert process.returncode is None


async def test_streams_that_all_come_back_at_once_are_accepted_or_told_when_to_come_again(
    tmp_path: Path, upstream: ScriptedUpstream, shared: dict[str, Any], open_replica: OpenReplica
) -> None:
    async with AsyncExitStack() as stack:
        settings: dict[str, Any] = {**shared, "server": {"role": "api"}}
        lost, process = await stack.enter_async_context(open_process(tmp_path / "lost", upstream, **settings))
        other, _ = await stack.enter_async_context(open_process(tmp_path / "other", upstream, **settings))
        worker = await stack.enter_async_context(open_replica(server={"role": "worker"}))
        worker.play(HELD)
        runs = [(await lost.start("held")).id for _ in range(RUNS)]

        async def channels(stage: Stage) -> list[Stage]:
            count = RETURNING // PER_CHANNEL
            return [await stack.enter_async_context(stage_on(stage.address, upstream)) for _ in range(count)]

        first, second = await channels(lost), await channels(other)
        logs: list[list[RunEvent]] = [[] for _ in range(RETURNING)]
        ready = [asyncio.Event() for _ in range(RETURNING)]

        async def watch(number: int) -> None:
            """Watches through the replica that will be lost, then, at once, through the other one."""
            log, run_id = logs[number], runs[number % RUNS]
            with pytest.raises(grpc.aio.AioRpcError):
                await follow(first[number // PER_CHANNEL], run_id, log, ready[number])
            while True:
                try:
                    await follow(second[number // PER_CHANNEL], run_id, log, ready[number])
                except grpc.aio.AioRpcError as error:
                    delay: Any = refusal(error).details["RetryInfo"]
                    await asyncio.sleep(delay.retry_delay.ToTimedelta().total_seconds())
                else:
                    return

        watching = [asyncio.create_task(watch(number)) for number in range(RETURNING)]
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(each.wait() for each in ready))
            for each in ready:
                each.clear()
            process.kill()
            await process.wait()
            for request in list(upstream.requests):
                request.released.set()
            await asyncio.gather(*watching)
        told = {run_id: await other.watch(run_id) for run_id in runs}
        for number, log in enumerate(logs):
            # Redis need not answer 2,000 reads at once in time: who is not served from there gets a Snapshot.
            check_agreement(log, told[runs[number % RUNS]])


async def follow(stage: Stage, run_id: str, log: list[RunEvent], ready: asyncio.Event) -> None:
    """Adds what follows the log to it, to the end of the run; `ready` is set at the third word."""
    after = log[-1].sequence if log else 0
    async for response in stage.runs.WatchRun(WatchRunRequest(run_id=run_id, after_sequence=after)):
        log += response.events
        if any(event.text_delta.text == " w3" for event in response.events):
            ready.set()
