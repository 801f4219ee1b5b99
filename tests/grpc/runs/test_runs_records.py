"""Reading, listing, changing and rating runs, and the queue they wait in."""

import asyncio
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from famulus.v1.run_pb2 import RatingVerdict, Run, RunRating, RunState
from famulus.v1.run_service_pb2 import (
    GetRunStepRequest,
    ListRunsRequest,
    ListRunStepsRequest,
    RateRunRequest,
    UpdateRunRequest,
)
from famulus_server.embedded.upstream import Match, Scene, ScriptedUpstream, ToolCall
from run_stage import TOOLS, Stage, open_stage, refused, stage_settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELD = Scene(deltas=6, hold_after=3)


async def listed(stage: Stage, **which: object) -> list[str]:
    return [run.id for run in (await stage.runs.ListRuns(ListRunsRequest(**which))).runs]  # type: ignore[arg-type]


async def rate(stage: Stage, run_id: str, verdict: "RatingVerdict.ValueType", comment: str = "") -> Run:
    rating = RunRating(verdict=verdict, comment=comment)
    return (await stage.runs.RateRun(RateRunRequest(run_id=run_id, rating=rating))).run


async def test_runs_are_listed_newest_first_by_thread_assistant_and_state(stage: Stage) -> None:
    stage.play(Scene(match=Match(user_contains="wait"), tool_calls=(ToolCall(name="get_time"),)), Scene(text="fine"))
    one, two = await stage.assistant(tools=TOOLS), await stage.assistant(tools=TOOLS)
    thread = await stage.thread()
    first = (await stage.play_out("one", thread_id=thread.id, assistant_id=one.id)).run
    second = (await stage.play_out("two", thread_id=thread.id, assistant_id=two.id)).run
    third = await stage.wait((await stage.start("wait", thread_id=thread.id, assistant_id=one.id)).id)
    elsewhere = (await stage.play_out("one", assistant_id=one.id)).run

    assert await listed(stage, thread_id=thread.id) == [third.id, second.id, first.id]
    assert await listed(stage, assistant_id=one.id) == [elsewhere.id, third.id, first.id]
    assert await listed(stage, thread_id=thread.id, assistant_id=two.id) == [second.id]
    completed, waiting = RunState.RUN_STATE_COMPLETED, RunState.RUN_STATE_REQUIRES_ACTION
    assert await listed(stage, thread_id=thread.id, states=[completed]) == [second.id, first.id]
    assert await listed(stage, thread_id=thread.id, states=[waiting]) == [third.id]
    assert await listed(stage, thread_id=thread.id, states=[completed, waiting]) == [third.id, second.id, first.id]
    assert await listed(stage, thread_id=thread.id, states=[RunState.RUN_STATE_FAILED]) == []
    await stage.cancel(third.id)


async def test_runs_are_listed_in_pages_without_gap_or_duplicate(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    thread = await stage.thread()
    made = [(await stage.play_out(thread_id=thread.id)).run.id for _ in range(5)]
    seen: list[str] = []
    token, pages = "", 0
    while token or not pages:
        page = await stage.runs.ListRuns(ListRunsRequest(thread_id=thread.id, page_size=2, page_token=token))
        seen += [run.id for run in page.runs]
        token, pages = page.next_page_token, pages + 1
    assert seen == made[::-1]
    assert pages == 3


async def test_steps_are_listed_in_pages_in_their_order(stage: Stage) -> None:
    stage.play(Scene(times=3, tool_calls=(ToolCall(name="no_such"),)), Scene(text="fine"))
    story = await stage.play_out()
    seen: list[int] = []
    token, pages = "", 0
    while token or not pages:
        request = ListRunStepsRequest(run_id=story.run.id, page_size=3, page_token=token)
        page = await stage.runs.ListRunSteps(request)
        seen += [step.position for step in page.steps]
        token, pages = page.next_page_token, pages + 1
    assert (seen, pages) == ([1, 2, 3, 4], 2)


async def test_step_of_another_run_is_not_found(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    one, two = await stage.play_out(), await stage.play_out()
    [step] = await stage.steps(two.run.id)
    refusal = await refused(stage.runs.GetRunStep(GetRunStepRequest(run_id=one.run.id, step_id=step.id)))
    assert refusal.code is grpc.StatusCode.NOT_FOUND


async def test_rating_is_kept_and_a_later_one_replaces_it(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    story = await stage.play_out()
    good = await rate(stage, story.run.id, RatingVerdict.RATING_VERDICT_GOOD, "well done")
    assert (good.rating.verdict, good.rating.comment) == (RatingVerdict.RATING_VERDICT_GOOD, "well done")
    assert good.rating.HasField("rate_time")
    bad = await rate(stage, story.run.id, RatingVerdict.RATING_VERDICT_BAD)
    assert (bad.rating.verdict, bad.rating.comment) == (RatingVerdict.RATING_VERDICT_BAD, "")
    assert await stage.get(story.run.id) == bad
    assert len({story.run.etag, good.etag, bad.etag}) == 3


async def test_run_that_has_not_ended_cannot_be_rated(stage: Stage) -> None:
    stage.play(HELD)
    run = await stage.start()
    refusal = await refused(rate(stage, run.id, RatingVerdict.RATING_VERDICT_GOOD))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RUN_NOT_FINISHED")
    (await stage.request()).released.set()
    await stage.wait(run.id)


async def test_metadata_can_be_changed_with_the_current_etag_only(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    old = (await stage.play_out(metadata={"a": "1"})).run
    changed = Run(id=old.id, metadata={"b": "2"}, etag=old.etag)
    new = (await stage.runs.UpdateRun(UpdateRunRequest(run=changed))).run
    assert dict(new.metadata) == {"b": "2"}
    assert new.etag != old.etag
    refusal = await refused(stage.runs.UpdateRun(UpdateRunRequest(run=changed)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert await stage.get(old.id) == new


async def test_nothing_but_metadata_can_be_changed(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    old = (await stage.play_out()).run
    wanted = UpdateRunRequest(run=Run(id=old.id, model="other"), update_mask=FieldMask(paths=["model"]))
    assert (await refused(stage.runs.UpdateRun(wanted))).code is grpc.StatusCode.INVALID_ARGUMENT
    assert await stage.get(old.id) == old


async def test_metadata_changed_during_the_run_survives_its_end(stage: Stage) -> None:
    stage.play(HELD)
    run = await stage.start(metadata={"a": "1"})
    await stage.until(run.id, "text_delta")
    await stage.runs.UpdateRun(UpdateRunRequest(run=Run(id=run.id, metadata={"b": "2"})))
    (await stage.request()).released.set()
    story = await stage.tell(run.id)
    assert dict(story.run.metadata) == {"b": "2"}
    assert story.run.state == RunState.RUN_STATE_COMPLETED


async def test_runs_beyond_the_slots_wait_and_all_complete(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        settings = stage_settings(tmp_path, upstream.base_url, worker={"slots": 1})
        async with open_stage(
            settings, upstream, [Scene(times=1, deltas=6, hold_after=3), Scene(text="fine")]
        ) as stage:
            first = await stage.start()
            await stage.until(first.id, "text_delta")
            others = [await stage.start() for _ in range(2)]
            assert [run.state for run in others] == [RunState.RUN_STATE_QUEUED] * 2
            watching = [asyncio.create_task(stage.tell(run.id)) for run in others]
            assert len(stage.asked) == 1
            (await stage.request()).released.set()
            stories = await asyncio.gather(*watching)
            for story in stories:
                assert story.states == [
                    RunState.RUN_STATE_QUEUED,
                    RunState.RUN_STATE_IN_PROGRESS,
                    RunState.RUN_STATE_COMPLETED,
                ]
                assert story.run.start_time.ToMicroseconds() > story.run.create_time.ToMicroseconds()
            assert stories[0].run.start_time.ToMicroseconds() <= stories[1].run.start_time.ToMicroseconds()
            assert (await stage.tell(first.id)).run.state == RunState.RUN_STATE_COMPLETED


async def test_run_that_waits_for_outputs_holds_no_slot(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        settings = stage_settings(tmp_path, upstream.base_url, worker={"slots": 1})
        scenes = [Scene(times=1, tool_calls=(ToolCall(name="get_time"),)), Scene(text="fine")]
        async with open_stage(settings, upstream, scenes) as stage:
            assistant = await stage.assistant(tools=TOOLS)
            waiting = await stage.wait((await stage.start(assistant_id=assistant.id)).id)
            assert (await stage.play_out()).text == "fine"
            await stage.submit(waiting.id, (waiting.required_action.tool_calls[0].id, "noon"))
            assert (await stage.tell(waiting.id)).text == "fine"


async def test_run_that_gets_its_outputs_while_no_slot_is_free_is_queued(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        settings = stage_settings(tmp_path, upstream.base_url, worker={"slots": 1})
        scenes = [Scene(times=1, tool_calls=(ToolCall(name="get_time"),)), Scene(times=1, deltas=6, hold_after=3)]
        async with open_stage(settings, upstream, [*scenes, Scene(text="fine")]) as stage:
            assistant = await stage.assistant(tools=TOOLS)
            waiting = await stage.wait((await stage.start(assistant_id=assistant.id)).id)
            busy = await stage.start()
            await stage.until(busy.id, "text_delta")
            queued = await stage.submit(waiting.id, (waiting.required_action.tool_calls[0].id, "noon"))
            assert queued.state == RunState.RUN_STATE_QUEUED
            (await stage.request(2)).released.set()
            story = await stage.tell(waiting.id)
            assert story.text == "fine"
            assert RunState.RUN_STATE_QUEUED in story.states
            await stage.wait(busy.id)


async def test_run_that_waits_too_long_for_a_slot_expires(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        settings = stage_settings(tmp_path, upstream.base_url, worker={"slots": 1})
        async with open_stage(settings, upstream, [HELD]) as stage:
            busy = await stage.start()
            await stage.until(busy.id, "text_delta")
            story = await stage.play_out(ttl=Duration(seconds=1))
            assert story.states == [RunState.RUN_STATE_QUEUED, RunState.RUN_STATE_EXPIRED]
            (await stage.request()).released.set()
            await stage.wait(busy.id)
