"""Routes: which model answers, and what happens where it does not."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from famulus.v1.run_pb2 import RunErrorCode, RunState
from famulus.v1.run_service_pb2 import WatchRunRequest
from famulus.v1.tool_pb2 import CodeInterpreterTool, Tool
from famulus_server.embedded.upstream import Fault, Match, Scene, ScriptedUpstream
from famulus_server.engine.policy import Policy, Route, Variant
from run_stage import Stage, open_stage, refused, stage_settings

FIRST = (Variant(model="scripted"),)
ROUTES = (
    Route(name="careful", variants=FIRST, fallbacks=("chat",)),
    Route(name="split", variants=(Variant(model="scripted"), Variant(model="chat"))),
    Route(name="parking", variants=FIRST, fallbacks=("chat",), when_down="park", park_seconds=0.05),
    Route(name="parking for long", variants=FIRST, when_down="park", park_seconds=600),
    Route(name="replying", variants=FIRST, fallbacks=("chat",), when_down="reply", reply="Come back later."),
)
DOWN = Fault(kind="status", status=500)


def of(model: str) -> Match:
    return Match(model=model)


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    policy = Policy(routes={route.name: route for route in ROUTES})
    async with (
        ScriptedUpstream() as upstream,
        open_stage(stage_settings(tmp_path, upstream.base_url, policy=policy), upstream) as opened,
    ):
        yield opened


def asked(stage: Stage) -> list[str]:
    return [request["model"] for request in stage.asked]


async def test_variant_answers_and_is_named_on_the_run(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    story = await stage.play_out(model="careful")
    assert (story.text, story.run.model, story.run.variant, story.run.degraded) == (
        "fine",
        "careful",
        "scripted",
        False,
    )
    assert story.events[-1].run_state_changed.run.variant == "scripted"
    assert asked(stage) == ["scripted"]


async def test_plain_model_is_its_own_variant(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    run = (await stage.play_out(model="chat")).run
    assert (run.variant, run.degraded) == ("chat", False)


async def test_fallback_answers_where_the_variant_has_said_nothing(stage: Stage) -> None:
    stage.play(Scene(match=of("scripted"), fault=DOWN), Scene(text="fine"))
    story = await stage.play_out(model="careful")
    assert (story.text, story.run.variant, story.run.degraded, story.run.attempt) == ("fine", "chat", True, 1)
    assert asked(stage) == ["scripted"] * 3 + ["chat"]
    assert story.all("attempt_started") == []


async def test_variant_that_breaks_off_is_followed_by_a_fallback_as_a_new_attempt(stage: Stage) -> None:
    stage.play(Scene(match=of("scripted"), deltas=6, fault=Fault(kind="eof", after=3)), Scene(text="fine"))
    story = await stage.play_out(model="careful")
    assert (story.text, story.run.variant, story.run.degraded, story.run.attempt) == ("fine", "chat", True, 2)
    assert asked(stage) == ["scripted", "chat"]
    assert len(story.all("attempt_started")) == 1


async def test_request_that_is_refused_as_invalid_is_put_to_nobody_else(stage: Stage) -> None:
    stage.play(Scene(match=of("scripted"), fault=Fault(kind="status", status=400)), Scene(text="fine"))
    story = await stage.play_out(model="careful")
    assert story.run.error.code == RunErrorCode.RUN_ERROR_CODE_INVALID_PROMPT
    assert asked(stage) == ["scripted"]


async def test_run_fails_where_all_are_down(stage: Stage) -> None:
    stage.play(Scene(fault=DOWN))
    story = await stage.play_out(model="careful")
    assert story.run.error.code == RunErrorCode.RUN_ERROR_CODE_MODEL_UNAVAILABLE
    assert asked(stage) == ["scripted"] * 3 + ["chat"] * 3


async def test_route_replies_where_all_are_down(stage: Stage) -> None:
    stage.play(Scene(fault=DOWN))
    story = await stage.play_out(model="replying")
    assert (story.run.state, story.text) == (RunState.RUN_STATE_COMPLETED, "Come back later.")
    assert (story.run.degraded, story.run.usage.total_tokens) == (True, 0)
    # It is part of the conversation.
    stage.play(Scene(text="fine"))
    await stage.play_out("again", model="replying", thread_id=story.run.thread_id)
    assert [item["content"][0]["text"] for item in stage.asked[0]["input"]] == ["hello", "Come back later.", "again"]


async def test_parked_run_is_answered_once_a_model_is_back(stage: Stage) -> None:
    stage.play(Scene(fault=DOWN))
    run = await stage.start(model="parking")
    watching = asyncio.create_task(stage.tell(run.id))
    # Both have been asked three times, so often that the run would have failed by its attempts.
    await stage.request(6 * 4)
    stage.play(Scene(text="fine"))
    story = await watching
    assert (story.run.state, story.text, story.run.degraded) == (RunState.RUN_STATE_COMPLETED, "fine", False)
    assert RunState.RUN_STATE_QUEUED in story.states[1:]


async def test_parked_run_can_be_cancelled_and_expires(stage: Stage) -> None:
    stage.play(Scene(fault=DOWN))
    ttl = Duration()
    ttl.FromMilliseconds(1_500)
    parked = [await stage.start(model="parking for long"), await stage.start(model="parking for long", ttl=ttl)]
    for run in parked:
        await until_parked(stage, run.id)
    assert (await stage.cancel(parked[0].id)).state == RunState.RUN_STATE_CANCELLED
    stories = [await stage.tell(run.id) for run in parked]
    assert [story.run.state for story in stories] == [RunState.RUN_STATE_CANCELLED, RunState.RUN_STATE_EXPIRED]
    assert len(stage.asked) == 6


async def until_parked(stage: Stage, run_id: str) -> None:
    begun = False
    call = stage.runs.WatchRun(WatchRunRequest(run_id=run_id))
    async for response in call:
        for event in response.events:
            state = event.run_state_changed.run.state
            begun = begun or state == RunState.RUN_STATE_IN_PROGRESS
            if begun and state == RunState.RUN_STATE_QUEUED:
                call.cancel()
                return
    raise AssertionError("the run ended before")


async def test_threads_keep_their_variant_and_all_variants_are_used(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    chosen = set()
    for _ in range(12):
        first = (await stage.play_out(model="split")).run
        again = (await stage.play_out("again", model="split", thread_id=first.thread_id)).run
        assert (again.variant, again.degraded) == (first.variant, False)
        chosen.add(first.variant)
    assert chosen == {"scripted", "chat"}


async def test_tool_that_a_fallback_lacks_is_refused_before_the_run(stage: Stage) -> None:
    assistant = await stage.assistant(tools=[Tool(code_interpreter=CodeInterpreterTool())], model="careful")
    refusal = await refused(stage.start(assistant_id=assistant.id))
    assert (refusal.reason, refusal.metadata["model"]) == ("TOOL_UNSUPPORTED", "careful")
