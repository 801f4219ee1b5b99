"""Threads that are deleted by themselves, on the whole server."""

import asyncio
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from famulus.v1.run_pb2 import RunState
from famulus.v1.thread_pb2 import Retention, Thread
from famulus.v1.thread_service_pb2 import (
    CreateThreadRequest,
    ForkThreadRequest,
    GetThreadRequest,
    ListThreadsRequest,
    UpdateThreadRequest,
)
from famulus_server.config import RetentionSettings
from famulus_server.embedded.upstream import Scene, ScriptedUpstream
from famulus_server.engine import policy
from run_stage import Stage, open_stage, refused, stage_settings
from serving import Stubs, refusal

DAY = 86_400
RULES = policy.Policy(tiers={"default": policy.Tier(retention=policy.Retention(max_after_create_days=30))})


async def get(stage: Stage, thread_id: str) -> Thread:
    return (await stage.threads.GetThread(GetThreadRequest(thread_id=thread_id))).thread


async def gone(stage: Stage, thread_id: str) -> None:
    """Returns once there is no such thread."""
    while True:
        try:
            await get(stage, thread_id)
        except grpc.aio.AioRpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND  # noqa: PT017 - any other is a failure
            return
        await asyncio.sleep(0.01)


def lives(thread: Thread) -> timedelta:
    return thread.expire_time.ToDatetime() - thread.create_time.ToDatetime()


def test_retention_is_set_shown_changed_and_taken_over_by_forks(stubs: Stubs) -> None:
    made = stubs.new_thread(retention=Retention(after_create=Duration(seconds=DAY)))
    assert lives(made) == timedelta(days=1)
    listed = stubs.threads.ListThreads(ListThreadsRequest(page_size=1)).threads
    assert [thread.expire_time for thread in listed] == [made.expire_time]
    fork = stubs.threads.ForkThread(ForkThreadRequest(thread_id=made.id)).thread
    assert fork.retention == made.retention
    assert lives(fork) == timedelta(days=1)
    change = UpdateThreadRequest(thread=Thread(id=made.id), update_mask=FieldMask(paths=["retention"]))
    changed = stubs.threads.UpdateThread(change).thread
    assert not changed.HasField("retention")
    assert not changed.HasField("expire_time")
    again = stubs.threads.GetThread(GetThreadRequest(thread_id=made.id)).thread
    assert not again.HasField("expire_time")


@pytest.mark.parametrize(
    "kept",
    [
        Duration(),
        Duration(nanos=999_999_999),
        Duration(seconds=-1),
        Duration(seconds=3_650 * DAY, nanos=1),
        Duration(seconds=1, nanos=-1),
        Duration(seconds=2, nanos=1_000_000_000),
        Duration(seconds=2**62),
    ],
    ids=str,
)
def test_retention_outside_its_bounds_is_refused(stubs: Stubs, kept: Duration) -> None:
    thread = Thread(retention=Retention(after_create=kept, after_last_activity=kept))
    with pytest.raises(grpc.RpcError) as caught:
        stubs.threads.CreateThread(CreateThreadRequest(thread=thread))
    assert refusal(caught.value).fields == ["thread.retention.after_create", "thread.retention.after_last_activity"]


async def test_threads_whose_time_is_over_are_swept_and_others_are_not(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        settings = stage_settings(
            tmp_path, upstream.base_url, policy=RULES, retention=RetentionSettings(sweep_seconds=0.05)
        )
        async with open_stage(settings, upstream, [Scene(deltas=6, hold_after=3)]) as stage:
            second = Retention(after_create=Duration(seconds=1))
            stays = await stage.thread("hello", retention=Retention(after_create=Duration(seconds=99 * DAY)))
            assert lives(stays) == timedelta(days=30)
            busy = await stage.start(new_thread=Thread(retention=second))
            await stage.until(busy.id, "text_delta")
            idle = await stage.thread("hello", retention=second)
            await gone(stage, idle.id)
            # Older than the one that is gone, and kept by its run.
            assert (await get(stage, busy.thread_id)).active_run_id == busy.id
            assert (await stage.get(busy.id)).state == RunState.RUN_STATE_IN_PROGRESS
            await stage.cancel(busy.id)
            await gone(stage, busy.thread_id)
            assert (await refused(stage.get(busy.id))).code == grpc.StatusCode.NOT_FOUND
            assert (await get(stage, stays.id)).id == stays.id


async def test_thread_goes_when_its_last_run_has_ended(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        settings = stage_settings(tmp_path, upstream.base_url, retention=RetentionSettings(sweep_seconds=0.05))
        async with open_stage(settings, upstream, [Scene(text="bye")]) as stage:
            run = await stage.start(new_thread=Thread(retention=Retention(on_completion=True)))
            await gone(stage, run.thread_id)
