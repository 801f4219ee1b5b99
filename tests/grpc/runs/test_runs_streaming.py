"""A run and the stream of its events, over a real socket."""

import asyncio
from pathlib import Path

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.run_service_pb2 import GetRunStepRequest, WaitRunRequest, WatchRunRequest
from famulus.v1.run_step_pb2 import RunStepState
from famulus.v1.thread_pb2 import Thread
from famulus_server.embedded.upstream import Scene, ScriptedUpstream, Usage
from run_stage import Stage, open_stage, refused, stage_settings, text_of
from serving import said
from validator import validate_stream

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELD = Scene(deltas=6, hold_after=3)


async def test_run_streams_its_events_in_order_to_completion(stage: Stage) -> None:
    stage.play(Scene(text=("Hello", ", ", "you")))
    story = await stage.play_out()
    assert story.run.state == RunState.RUN_STATE_COMPLETED
    assert story.text == "Hello, you"
    assert story.kinds == [
        "run_state_changed",
        "step_started",
        "message_started",
        *["text_delta"] * 3,
        "message_completed",
        "step_completed",
        "run_state_changed",
    ]
    assert [event.sequence for event in story.events] == list(range(1, 10))
    assert story.run.last_sequence == 9


async def test_usage_counts_cached_and_reasoning_tokens(stage: Stage) -> None:
    stage.play(Scene(text="fine", reasoning="hm", usage=Usage(input=100, cached=60, output=30, reasoning=20)))
    story = await stage.play_out()
    assert MessageToDict(story.run.usage) == {
        "promptTokens": "100",
        "cachedPromptTokens": "60",
        "completionTokens": "30",
        "reasoningTokens": "20",
        "totalTokens": "130",
    }
    [step] = await stage.steps(story.run.id)
    assert step.usage == story.run.usage


async def test_usage_is_estimated_where_the_provider_tells_none(stage: Stage) -> None:
    stage.play(Scene(text="some words of an answer", quirks=("no_usage",)))
    usage = (await stage.play_out()).run.usage
    assert usage.estimated
    assert usage.prompt_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


async def test_step_of_a_message_is_stored_and_readable_alone(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    story = await stage.play_out()
    [step] = await stage.steps(story.run.id)
    assert step.state == RunStepState.RUN_STEP_STATE_COMPLETED
    assert (step.position, step.turn) == (1, 1)
    assert step.message_creation.message_id == story.messages[0].id
    assert step.end_time.ToMicroseconds() >= step.create_time.ToMicroseconds() > 0
    request = GetRunStepRequest(run_id=story.run.id, step_id=step.id)
    assert (await stage.runs.GetRunStep(request)).step == step


async def test_message_of_a_run_names_run_and_assistant(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    story = await stage.play_out()
    [message] = story.messages
    assert (message.run_id, message.assistant_id) == (story.run.id, story.run.assistant_id)
    assert await stage.texts(story.run.thread_id) == ["hello", "fine"]


async def test_stream_run_makes_a_new_thread_with_its_messages(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    create = await stage.wanted("", new_thread=Thread(title="new", user_id="u"))
    create.additional_messages.extend([said("one"), said("two")])
    events = await stage.stream(create)
    validate_stream(events)
    thread_id = events[-1].run_state_changed.run.thread_id
    assert await stage.texts(thread_id) == ["one", "two", "fine"]
    assert [item["content"][0]["text"] for item in stage.asked[0]["input"]] == ["one", "two"]


@pytest.mark.parametrize("after", range(1, 9))
async def test_stream_of_an_active_run_resumes_behind_any_sequence(stage: Stage, after: int) -> None:
    stage.play(HELD)
    create = await stage.wanted(request_id=f"resume-{after}")
    run = (await stage.runs.CreateRun(create)).run
    resumed = asyncio.create_task(stage.stream(create, after))
    await stage.until(run.id, "text_delta")
    (await stage.request()).released.set()
    whole = await stage.watch(run.id)
    assert await resumed == whole[after:]


async def test_stream_of_an_ended_run_resumes_behind_any_sequence(stage: Stage) -> None:
    stage.play(Scene(deltas=5))
    create = await stage.wanted(request_id="resume-after-end")
    whole = await stage.stream(create)
    for after in range(len(whole)):
        assert await stage.stream(create, after) == whole[after:]
        assert await stage.watch(whole[0].run_state_changed.run.id, after) == whole[after:]


async def test_watch_at_the_end_of_an_ended_run_ends_at_once(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    story = await stage.play_out()
    assert await stage.watch(story.run.id, story.run.last_sequence) == []


async def test_watch_beyond_the_end_of_an_ended_run_is_out_of_range(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    story = await stage.play_out()
    refusal = await refused(stage.watch(story.run.id, story.run.last_sequence + 1))
    assert refusal.code is grpc.StatusCode.OUT_OF_RANGE
    assert refusal.reason == "SEQUENCE_OUT_OF_RANGE"
    assert refusal.metadata["last_sequence"] == str(story.run.last_sequence)


async def test_watch_beyond_the_end_of_an_active_run_is_out_of_range_once_that_is_known(stage: Stage) -> None:
    stage.play(HELD)
    run = await stage.start()
    watching = asyncio.create_task(refused(stage.watch(run.id, 1_000)))
    await stage.until(run.id, "text_delta")
    assert not watching.done()
    (await stage.request()).released.set()
    assert (await watching).code is grpc.StatusCode.OUT_OF_RANGE


async def test_all_watchers_see_the_same(stage: Stage) -> None:
    stage.play(HELD)
    run = await stage.start()
    early = [asyncio.create_task(stage.watch(run.id)) for _ in range(5)]
    await stage.until(run.id, "text_delta")
    (await stage.request()).released.set()
    logs = await asyncio.gather(*early)
    assert all(log == logs[0] for log in logs)
    assert await stage.watch(run.id) == logs[0]


async def test_reasoning_is_published_only_when_asked_for(stage: Stage) -> None:
    stage.play(Scene(text="fine", reasoning="let me think"))
    quiet = await stage.play_out()
    assert "reasoning_delta" not in quiet.kinds
    loud = await stage.play_out(stream_reasoning=True)
    assert "".join(delta.text for delta in loud.all("reasoning_delta")) == "let me think"
    assert loud.text == "fine"


async def test_refusal_is_streamed_and_stored_as_such(stage: Stage) -> None:
    stage.play(Scene(text="", refusal="I will not"))
    story = await stage.play_out()
    assert story.run.state == RunState.RUN_STATE_COMPLETED
    assert "".join(delta.refusal for delta in story.all("refusal_delta")) == "I will not"
    assert [part.refusal.refusal for part in story.messages[0].content if part.HasField("refusal")] == ["I will not"]


async def test_annotations_are_published_and_stored(stage: Stage) -> None:
    citation = {
        "type": "url_citation",
        "start_index": 0,
        "end_index": 3,
        "url": "https://example.com/a",
        "title": "A",
    }
    stage.play(Scene(text="See there", annotations=(citation,)))
    story = await stage.play_out()
    [added] = story.all("annotation_added")
    [stored] = story.messages[0].content[0].text.annotations
    assert added.annotation == stored
    assert added.message_id == story.messages[0].id
    assert (stored.url_citation.url, stored.start_index, stored.end_index) == ("https://example.com/a", 0, 3)


async def test_history_of_a_thread_is_sent_with_the_next_run(stage: Stage) -> None:
    stage.play(Scene(text="You said: ", echo=True))
    first = await stage.play_out("one")
    await stage.play_out("two", thread_id=first.run.thread_id)
    said_so_far = [(item["role"], item["content"][0]["text"]) for item in stage.asked[1]["input"]]
    assert said_so_far == [("user", "one"), ("assistant", "You said: one"), ("user", "two")]


async def test_chat_backend_streams_the_same_way(stage: Stage) -> None:
    stage.play(Scene(text="fine", usage=Usage(input=7, output=2)))
    story = await stage.play_out(model="chat")
    assert story.text == "fine"
    assert story.run.usage.prompt_tokens == 7
    assert "messages" in stage.asked[0]


async def test_wait_returns_the_ended_run_with_what_it_wrote(stage: Stage) -> None:
    stage.play(HELD)
    run = await stage.start()
    waiting = asyncio.ensure_future(stage.runs.WaitRun(WaitRunRequest(run_id=run.id)))
    await stage.until(run.id, "text_delta")
    assert not waiting.done()
    (await stage.request()).released.set()
    answer = await waiting
    assert answer.run == await stage.get(run.id)
    assert answer.run.state == RunState.RUN_STATE_COMPLETED
    assert [text_of(message) for message in answer.messages] == ["w1 w2 w3 w4 w5 w6"]


async def test_wait_for_an_ended_run_returns_at_once(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    story = await stage.play_out()
    assert await stage.wait(story.run.id) == story.run


async def test_unknown_run_is_not_found_by_every_method_that_names_one(stage: Stage) -> None:
    for call in (
        stage.get("run_none"),
        stage.wait("run_none"),
        stage.cancel("run_none"),
        stage.watch("run_none"),
        stage.steps("run_none"),
        stage.submit("run_none", ("call_1", "x")),
    ):
        assert (await refused(call)).code is grpc.StatusCode.NOT_FOUND


async def test_silence_is_broken_by_heartbeats(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        settings = stage_settings(tmp_path, upstream.base_url, server={"heartbeat_seconds": 0.05})
        async with open_stage(settings, upstream, [HELD]) as stage:
            run = await stage.start()
            empty = 0
            events: list[RunEvent] = []
            async for response in stage.runs.WatchRun(WatchRunRequest(run_id=run.id)):
                events += response.events
                empty += not response.events
                if empty == 3:
                    (await stage.request()).released.set()
            validate_stream(events)
            assert empty >= 3


async def test_run_tells_when_it_was_created_started_and_ended(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    run: Run = (await stage.play_out()).run
    times = [run.create_time, run.start_time, run.end_time, run.expire_time]
    assert times == sorted(times, key=lambda moment: moment.ToMicroseconds())
    assert (run.attempt, run.turns) == (1, 1)
