"""Streams that break, seen by users of both clients."""

import itertools
import time
from dataclasses import replace

import grpc
import pytest

from clients.python.conftest import QUICK, Follow
from clients.python.scripted_runs import (
    PATIENCE,
    ScriptedRuns,
    Serving,
    cut_after,
    ends_after,
    heartbeats,
    in_one_batch,
    repeats_all,
    serving,
    silent_after,
    tells,
    without,
)
from clients.python.story import COMPLETED, IN_PROGRESS, RUN_ID, Story, message, plain, snapshot, taken_over
from famulus import GapError
from famulus.v1 import error_reason_pb2 as reasons
from famulus.v1.message_pb2 import MessageState
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run
from famulus.v1.run_service_pb2 import StreamRunRequest, WatchRunRequest

INTERNAL = grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("log", [plain(), taken_over()], ids=["plain", "taken over"])
async def test_whatever_event_the_stream_is_cut_at_the_user_sees_the_whole_log(
    log: list[RunEvent], follow: Follow
) -> None:
    with serving(ScriptedRuns(log)) as target:
        uncut = await follow(target)
    assert uncut.events == log
    for cut in range(len(log) + 1):
        with serving(runs := ScriptedRuns(log, [cut_after(cut)])) as target:
            seen = await follow(target)
        assert seen.error is None
        assert seen.events == log
        assert seen.texts == uncut.texts
        assert len(runs.streams) == (2 if cut < len(log) else 1)


async def test_a_stream_may_break_at_every_single_event(follow: Follow) -> None:
    log = taken_over()
    with serving(ScriptedRuns(log, [cut_after(1)] * len(log))) as target:
        seen = await follow(target)
    assert seen.events == log
    assert seen.view.text == "One\n\nTwo, we say"


async def test_a_resume_is_the_same_request_until_the_run_has_a_name(follow: Follow) -> None:
    with serving(runs := ScriptedRuns(plain(), [cut_after(0), cut_after(3)])) as target:
        await follow(target)
    first, second, third = (stream.request for stream in runs.streams)
    assert isinstance(first, StreamRunRequest)
    assert first == second
    assert first.create.thread_id == "thread_1"
    assert first.create.request_id
    assert third == WatchRunRequest(run_id=RUN_ID, after_sequence=3)


@pytest.mark.parametrize(
    "ending",
    [
        cut_after(4, grpc.StatusCode.ABORTED, reason="SLOW_CONSUMER"),
        cut_after(4, INTERNAL, "Received RST_STREAM with error code 2"),
        cut_after(4, grpc.StatusCode.UNKNOWN, "Stream removed"),
        cut_after(4, reason="SERVER_DRAINING", retry_after=0.01),
        ends_after(4),
    ],
    ids=["slow consumer", "reset", "stream removed", "draining", "ended without a last event"],
)
async def test_a_stream_is_resumed_after(ending: Serving, follow: Follow) -> None:
    with serving(runs := ScriptedRuns(plain(), [ending])) as target:
        seen = await follow(target)
    assert seen.events == plain()
    assert runs.streams[1].after == 4


@pytest.mark.parametrize(
    "ending",
    [
        cut_after(4, grpc.StatusCode.NOT_FOUND, reason="THREAD_DELETED"),
        cut_after(4, grpc.StatusCode.ABORTED, reason="ETAG_MISMATCH"),
        cut_after(4, INTERNAL, "internal error, reference RST_STREAM", reason="INTERNAL"),
        cut_after(4, INTERNAL, "no idea"),
        cut_after(4, grpc.StatusCode.RESOURCE_EXHAUSTED, reason="RATE_LIMITED", retry_after=0.01),
    ],
    ids=["deleted", "stale", "internal", "unexplained", "limited"],
)
async def test_a_stream_is_not_resumed_after(ending: Serving, follow: Follow) -> None:
    with serving(runs := ScriptedRuns(plain(), [ending])) as target:
        seen = await follow(target)
    assert seen.error is not None
    assert seen.events == plain()[:4]
    assert seen.last_sequence == 4
    assert len(runs.streams) == 1


async def test_the_wait_that_the_service_asks_for_is_kept(follow: Follow) -> None:
    with serving(ScriptedRuns(plain(), [cut_after(2, reason="SERVER_OVERLOADED", retry_after=0.3)])) as target:
        start = time.monotonic()
        seen = await follow(target)
    assert seen.events == plain()
    assert time.monotonic() - start >= 0.3


async def test_an_outage_that_lasts_too_long_is_told_with_the_place_to_resume_at(follow: Follow) -> None:
    with serving(ScriptedRuns(plain(), [cut_after(3), *[cut_after(0)] * 1_000])) as target:
        seen = await follow(target, retry=replace(QUICK, give_up_after=0.2))
    assert seen.error is not None
    assert seen.error.code is grpc.StatusCode.UNAVAILABLE
    assert seen.last_sequence == 3


async def test_a_wait_longer_than_the_patience_is_not_begun(follow: Follow) -> None:
    with serving(ScriptedRuns(plain(), [cut_after(3, reason="SERVER_OVERLOADED", retry_after=3_600)])) as target:
        seen = await follow(target)
    assert seen.error is not None
    assert seen.error.reason == reasons.ERROR_REASON_SERVER_OVERLOADED
    assert seen.error.retry_after == 3_600


async def test_a_silent_stream_is_left_for_another(follow: Follow) -> None:
    with serving(runs := ScriptedRuns(plain(), [silent_after(5)])) as target:
        start = time.monotonic()
        seen = await follow(target, retry=replace(QUICK, silence=0.2))
        assert time.monotonic() - start < PATIENCE / 2
        assert runs.streams[0].closed.wait(5)
    assert seen.events == plain()
    assert len(runs.streams) == 2


async def test_heartbeats_keep_a_stream_without_events(follow: Follow) -> None:
    with serving(runs := ScriptedRuns(plain(), [heartbeats(5, apart=0.15)])) as target:
        seen = await follow(target, retry=replace(QUICK, silence=0.5))
    assert seen.events == plain()
    assert len(runs.streams) == 1


async def test_events_that_come_again_are_dropped(follow: Follow) -> None:
    with serving(runs := ScriptedRuns(plain(), [cut_after(5), repeats_all])) as target:
        seen = await follow(target)
    assert seen.events == plain()
    assert len(runs.streams) == 2


async def test_a_batch_is_handed_out_one_by_one(follow: Follow) -> None:
    with serving(ScriptedRuns(plain(), [in_one_batch])) as target:
        seen = await follow(target, stop_after=3)
    assert seen.events == plain()[:3]
    assert seen.last_sequence == 3


async def test_a_gap_is_closed_by_another_stream(follow: Follow) -> None:
    with serving(runs := ScriptedRuns(plain(), [without(6)])) as target:
        seen = await follow(target)
    assert seen.events == plain()
    assert [stream.after for stream in runs.streams] == [0, 5]


async def test_a_gap_that_stays_is_an_error(follow: Follow) -> None:
    with serving(ScriptedRuns(plain(), itertools.repeat(without(6), 10))) as target:
        seen = await follow(target)
    assert isinstance(seen.error, GapError)
    assert (seen.error.after, seen.error.received) == (5, 7)
    assert seen.events == plain()[:5]


async def test_a_snapshot_stands_for_the_events_that_are_gone(follow: Follow) -> None:
    writing = message(1, "Good mor", MessageState.MESSAGE_STATE_IN_PROGRESS)
    taken = snapshot(7, Run(id=RUN_ID, state=IN_PROGRESS), writing)
    fragments = Story().state(IN_PROGRESS).begin().text("Goo", "d", " m", "or", "ning").end("Good morning")
    log = fragments.state(COMPLETED).log
    with serving(ScriptedRuns(log, [cut_after(5), tells(taken)])) as target:
        seen = await follow(target)
    assert seen.events == [*log[:5], taken, *log[7:]]
    assert seen.texts[4:7] == ["Good", "Good mor", "Good morning"]


async def test_a_snapshot_of_a_finished_run_is_its_end(follow: Follow) -> None:
    whole_message = message(1, "Done", MessageState.MESSAGE_STATE_COMPLETED)
    taken = snapshot(40, Run(id=RUN_ID, state=COMPLETED, last_sequence=40), whole_message)
    with serving(runs := ScriptedRuns(plain(), [tells(taken)])) as target:
        seen = await follow(target, run_id=RUN_ID)
    assert seen.events == [taken]
    assert seen.view.result().text == "Done"
    assert len(runs.streams) == 1


async def test_a_run_of_which_everything_was_seen_ends_at_once(follow: Follow) -> None:
    with serving(runs := ScriptedRuns(plain())) as target:
        seen = await follow(target, run_id=RUN_ID, after_sequence=plain()[-1].sequence)
    assert seen.error is None
    assert seen.events == []
    assert seen.view.finished
    assert len(runs.streams) == 1


async def test_kinds_of_a_newer_version_are_skipped_without_a_gap(follow: Follow) -> None:
    log = Story().state(IN_PROGRESS).tell(RunEvent()).begin().text("Hi").end("Hi").state(COMPLETED).log
    with serving(ScriptedRuns(log, [cut_after(2)])) as target:
        seen = await follow(target)
    assert seen.events == [log[0], *log[2:]]


async def test_a_reader_joins_in_the_middle(follow: Follow) -> None:
    with serving(ScriptedRuns(plain())) as target:
        seen = await follow(target, run_id=RUN_ID, after_sequence=6)
    assert seen.events == plain()[6:]
    assert seen.texts[0] == "morning"
    assert seen.texts[-1] == "Good morning, world"
