"""What is counted of what runs and callers do, as a scrape of the whole server shows it."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from famulus.v1.run_pb2 import RatingVerdict, RunRating, RunState
from famulus.v1.run_service_pb2 import GetRunRequest, RateRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus_server.api.addresses import ListenError
from famulus_server.config import MetricsSettings
from famulus_server.embedded.upstream import Fault, Match, Scene, ScriptedUpstream, ToolCall, Usage
from famulus_server.engine.policy import CallerQuotas, ModelPrice, Policy, Quota, Route, Tier, Variant
from famulus_server.ports.metrics import CATALOGUE, Counter
from famulus_server.wiring import server as wiring
from famulus_server.wiring.server import open_server
from killable_server import open_killable
from run_stage import TOOLS, Stage, open_stage, refused, stage_settings
from scraping import LABELS, scrape, scrape_until
from serving import settings_in

pytestmark = pytest.mark.usefixtures("unhurried")

HELD = Scene(deltas=6, hold_after=3)
DOWN = Fault(kind="status", status=500)
GOLD = Tier(limits=CallerQuotas(user=Quota(requests_per_minute=1)))
POLICY = Policy(
    tiers={"default": Tier(), "gold": GOLD},
    tenants={"default": "gold"},
    routes={
        "careful": Route(name="careful", variants=(Variant(model="scripted"),), fallbacks=("chat",)),
        "replying": Route(
            name="replying", variants=(Variant(model="scripted"),), when_down="reply", reply="Come back later."
        ),
    },
    prices={"scripted": ModelPrice(input=1_000, output=10_000)},
)


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as opened:
        yield opened


@pytest_asyncio.fixture
async def stage(tmp_path: Path, upstream: ScriptedUpstream) -> AsyncIterator[Stage]:
    async with open_stage(stage_settings(tmp_path, upstream.base_url, policy=POLICY), upstream) as opened:
        yield opened


async def test_run_is_counted_with_its_tokens_and_its_cost(stage: Stage) -> None:
    stage.play(Scene(text="fine", usage=Usage(input=100, cached=40, output=20, reasoning=5)))
    await stage.play_out()
    found = await scrape(stage.metrics_address)
    assert found.all("runs_created_total") == {("scripted", "gold"): 1}
    assert found.all("runs_ended_total") == {("completed", "scripted", "scripted", "gold"): 1}
    assert found.all("run_seconds") == {("completed", "scripted", "scripted", "gold"): 1}
    assert found.all("run_first_event_seconds") == {("scripted", "gold"): 1}
    assert found.all("run_queue_seconds") == {("gold",): 1}
    assert found.all("tokens_total") == {
        ("prompt", "scripted", "gold"): 100,
        ("cached_prompt", "scripted", "gold"): 40,
        ("completion", "scripted", "gold"): 20,
        ("reasoning", "scripted", "gold"): 5,
    }
    assert found.all("cost_total") == {("scripted", "gold"): pytest.approx(0.1 + 0.2)}
    assert found.all("upstream_calls_total") == {("scripted", "completed"): 1}
    assert found.one("upstream_first_event_seconds", "scripted") == found.one("upstream_seconds", "scripted") == 1
    assert found.all("run_errors_total") == found.all("runs_degraded_total") == {}
    assert found.one("run_takeovers_total") == 0


async def test_repeated_requests_count_as_calls_and_not_as_runs(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    wanted = await stage.wanted(request_id="again")
    runs = {(await stage.runs.CreateRun(wanted)).run.id for _ in range(3)}
    run = await stage.wait(runs.pop())
    assert not runs
    good = RunRating(verdict=RatingVerdict.RATING_VERDICT_GOOD)
    for _ in range(2):
        await stage.runs.RateRun(RateRunRequest(run_id=run.id, rating=good, request_id="rated"))
    found = await scrape(stage.metrics_address)
    assert found.one("rpcs_total", "RunService/CreateRun", "OK") == 3
    assert found.one("rpc_seconds", "RunService/CreateRun") == 3
    assert found.all("runs_created_total") == {("scripted", "gold"): 1}
    assert found.all("run_ratings_total") == {("good",): 1}
    assert sum(found.all("runs_ended_total").values()) == 1


async def test_function_calls_are_counted_with_what_is_wrong_with_them(stage: Stage) -> None:
    calls = (ToolCall(name="get_time"), ToolCall(name="nonsense"), ToolCall(name="get_weather", arguments="{"))
    stage.play(Scene(times=1, tool_calls=calls), Scene(text="fine", match=Match(tool_outputs=True)))
    assistant = await stage.assistant(tools=TOOLS)
    waiting = await stage.wait((await stage.start(assistant_id=assistant.id)).id)
    assert (await scrape(stage.metrics_address)).one("tool_wait_seconds") == 0
    for _ in range(2):
        await stage.submit(waiting.id, (waiting.required_action.tool_calls[0].id, "noon"))
    await stage.tell(waiting.id)
    found = await scrape(stage.metrics_address)
    assert found.all("tool_calls_total") == {("",): 1, ("unknown_tool",): 1, ("malformed_arguments",): 1}
    assert (found.one("tool_rounds_total"), found.one("tool_wait_seconds")) == (1, 1)
    # Another turn is no other run.
    assert sum(found.all("run_queue_seconds").values()) == sum(found.all("run_first_event_seconds").values()) == 1
    assert found.all("upstream_calls_total") == {("scripted", "completed"): 2}


async def test_failures_cancels_and_ends_of_time_are_told_apart(stage: Stage) -> None:
    stage.play(Scene(fault=Fault(kind="status", status=400)))
    await stage.play_out()
    stage.play(HELD)
    held = await stage.start()
    await stage.until(held.id, "text_delta")
    await stage.cancel(held.id)
    await stage.tell(held.id)
    stage.play(Scene(tool_calls=(ToolCall(name="get_time"),)))
    assistant = await stage.assistant(tools=TOOLS)
    ttl = Duration()
    ttl.FromMilliseconds(1_000)
    waiting = await stage.start(assistant_id=assistant.id, ttl=ttl)
    assert (await stage.tell(waiting.id)).run.state == RunState.RUN_STATE_EXPIRED
    found = await scrape_until(stage.metrics_address, lambda seen: seen.one("rpcs_open", "RunService/WatchRun") == 0)
    assert found.all("runs_ended_total") == {
        ("failed", "scripted", "scripted", "gold"): 1,
        ("cancelled", "scripted", "scripted", "gold"): 1,
        ("expired", "scripted", "scripted", "gold"): 1,
    }
    assert found.all("run_errors_total") == {("invalid_prompt", "scripted"): 1}
    assert found.all("upstream_calls_total") == {
        ("scripted", "rejected"): 1,
        ("scripted", "abandoned"): 1,
        ("scripted", "completed"): 1,
    }


async def test_fallbacks_and_canned_replies_are_counted_as_degraded(stage: Stage) -> None:
    stage.play(Scene(match=Match(model="scripted"), fault=DOWN), Scene(text="fine"))
    await stage.play_out(model="careful")
    await stage.play_out(model="replying")
    found = await scrape(stage.metrics_address)
    assert found.all("runs_ended_total") == {
        ("completed", "careful", "chat", "gold"): 1,
        ("completed", "replying", "", "gold"): 1,
    }
    assert found.all("runs_degraded_total") == {("careful",): 1, ("replying",): 1}
    assert found.all("upstream_calls_total") == {("scripted", "unavailable"): 6, ("chat", "completed"): 1}
    assert found.all("upstream_retries_total") == {("scripted", "model_unavailable"): 4}


async def test_suspended_model_is_counted_without_a_call(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    settings = stage_settings(tmp_path, upstream.base_url, policy=POLICY)
    breaker = msgspec.structs.replace(
        settings.models[0].breaker, min_calls=3, open_seconds=600.0, max_open_seconds=600.0
    )
    models = (msgspec.structs.replace(settings.models[0], breaker=breaker), *settings.models[1:])
    async with open_stage(msgspec.structs.replace(settings, models=models), upstream) as stage:
        stage.play(Scene(fault=DOWN))
        await stage.play_out()
        await stage.play_out()
        found = await scrape(stage.metrics_address)
    assert found.all("breaker_open") == {("scripted",): 1, ("chat",): 0, ("impatient",): 0, ("roomy",): 0}
    assert found.one("breaker_openings_total", "scripted") == 1
    assert found.all("upstream_calls_total") == {("scripted", "unavailable"): 3, ("scripted", "suspended"): 1}


async def test_limits_are_counted_by_what_they_decide(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    await stage.play_out(new_thread=Thread(user_id="eve"))
    refusal = await refused(stage.start(new_thread=Thread(user_id="eve")))
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    found = await scrape_until(stage.metrics_address, lambda seen: seen.one("limiter_shared") == 1)
    assert found.all("limiter_decisions_total") == {
        ("user", "requests", "granted"): 1,
        ("user", "requests", "refused"): 1,
    }
    assert found.one("rpcs_total", "RunService/CreateRun", "RESOURCE_EXHAUSTED") == 1
    assert found.one("redis_reachable") == 1


async def test_streams_are_counted_while_they_are_open_and_by_what_they_carried(stage: Stage) -> None:
    stage.play(HELD)
    run = await stage.start()
    watching = asyncio.create_task(stage.watch(run.id))
    await stage.until(run.id, "text_delta")
    await scrape_until(stage.metrics_address, lambda seen: seen.one("rpcs_open", "RunService/WatchRun") == 1)
    before = await scrape(stage.metrics_address)
    assert before.one("runs_executing") == before.one("worker_slots") - before.one("worker_free_slots") == 1
    (await stage.request()).released.set()
    events = await watching
    found = await scrape(stage.metrics_address)
    assert found.one("rpcs_open", "RunService/WatchRun") == 0
    assert found.one("rpcs_total", "RunService/WatchRun", "OK") == 1
    assert found.one("stream_events_total") >= len(events)
    assert 0 < found.one("stream_responses_total") <= found.one("stream_events_total")
    # Streams have no length worth measuring.
    assert ("RunService/WatchRun",) not in found.all("rpc_seconds")


async def test_thread_cache_and_event_log_are_counted(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    first = await stage.play_out()
    # A thread that was made with its run is remembered nowhere, and not asked for.
    stories = [first, await stage.play_out("again", thread_id=first.run.thread_id)]
    before = await scrape_until(stage.metrics_address, lambda seen: seen.one("thread_cache_written_bytes_total") > 0)
    stories.append(await stage.play_out("once more", thread_id=first.run.thread_id))
    events = sum(len(story.events) for story in stories)
    found = await scrape_until(stage.metrics_address, lambda seen: seen.one("event_log_appended_total") >= events)
    assert found.one("event_log_appended_total") == events
    assert found.one("event_log_appended_bytes_total") > events
    assert found.one("event_log_backlog") == found.one("event_log_lost_total") == 0
    assert (before.one("thread_cache_reads_total", "miss"), before.one("thread_cache_reads_total", "hit")) == (1, 0)
    reads = {result: found.one("thread_cache_reads_total", result) for result in ("hit", "miss", "stale", "error")}
    assert reads == {"hit": 1, "miss": 1, "stale": 0, "error": 0}


async def test_runs_that_wait_are_counted_in_the_database(
    tmp_path: Path, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "_LOOK_SECONDS", 0.05)
    settings = stage_settings(tmp_path, upstream.base_url, worker={"slots": 1})
    async with open_stage(settings, upstream, [HELD]) as stage:
        await scrape_until(stage.metrics_address, lambda seen: seen.all("queue_runs") == {(): 0})
        first, *others = [await stage.start() for _ in range(3)]
        found = await scrape_until(stage.metrics_address, lambda seen: seen.one("queue_runs") == 2)
        assert 0 < found.one("queue_oldest_seconds") < 60
        for run in others:
            await stage.cancel(run.id)
        found = await scrape_until(stage.metrics_address, lambda seen: seen.one("queue_runs") == 0)
        assert found.one("queue_oldest_seconds") == 0
        await stage.cancel(first.id)


async def test_run_of_a_killed_server_is_counted_by_the_one_that_ends_it(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with open_killable(tmp_path, upstream) as (doomed, process):
        doomed.play(HELD)
        run = await doomed.start()
        await doomed.until(run.id, "text_delta")
        process.kill()
    async with open_stage(stage_settings(tmp_path, upstream.base_url), upstream, [Scene(text="fine")]) as stage:
        await stage.tell(run.id)
        found = await scrape(stage.metrics_address)
    assert found.one("run_takeovers_total") == 1
    assert found.all("runs_ended_total") == {("completed", "scripted", "scripted", "default"): 1}
    assert found.all("runs_created_total") == found.all("run_queue_seconds") == {}
    # The killed one has counted that.
    assert found.all("run_first_event_seconds") == {}


async def test_calls_are_counted_with_the_codes_that_callers_see(stage: Stage) -> None:
    assert (await refused(stage.runs.GetRun(GetRunRequest(run_id="run_nobody")))).code is grpc.StatusCode.NOT_FOUND
    async with grpc.aio.insecure_channel(stage.address) as channel:
        await HealthStub(channel).Check(HealthCheckRequest(service="readiness"))
        nonsense: Any = channel.unary_unary("/famulus.v1.RunService/Nonsense")
        with pytest.raises(grpc.aio.AioRpcError):
            await nonsense(b"")
    found = await scrape(stage.metrics_address)
    assert found.all("rpcs_total") == {("RunService/GetRun", "NOT_FOUND"): 1, ("Health/Check", "OK"): 1}


async def test_each_metric_has_the_labels_of_the_catalogue_and_no_ids(stage: Stage) -> None:
    calls = (ToolCall(name="get_time", id="call_secret"),)
    stage.play(Scene(times=1, tool_calls=calls), Scene(text="fine"))
    assistant = await stage.assistant(tools=TOOLS, name="secret assistant")
    thread = await stage.thread("hello", user_id="secret_user", metadata={"secret": "x"})
    waiting = await stage.wait((await stage.start(assistant_id=assistant.id, thread_id=thread.id)).id)
    await stage.submit(waiting.id, (waiting.required_action.tool_calls[0].id, "noon"))
    await stage.tell(waiting.id)
    await refused(stage.get("run_nobody"))
    found = await scrape_until(stage.metrics_address, lambda seen: seen.all("queue_runs") != {})
    for metric in CATALOGUE:
        name = f"famulus_{metric.name}"
        family = found.families[name.removesuffix("_total") if isinstance(metric, Counter) else name]
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(LABELS[name]), name
    ids = (assistant.id, thread.id, waiting.id, "secret", "get_time", "nobody", "127.0.0.1")
    assert [one for one in ids if one in found.text] == []
    assert re.findall(r"(?:run|thread|msg|asst|call|step|req)_[0-9a-z]{12,}", found.text) == []


async def test_process_says_what_it_is_and_that_it_drains(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    settings = stage_settings(tmp_path, upstream.base_url, server={"drain_seconds": 30.0})
    server = open_stage(settings, upstream, [HELD])
    stage = await server.__aenter__()
    found = await scrape(stage.metrics_address)
    assert found.all("build_info") == {("0.1.0", "all"): 1}
    assert found.all("settings_info") == {("USD",): 1}
    assert (found.one("ready"), found.one("draining")) == (1, 0)
    await stage.start()
    await stage.request()
    closing = asyncio.create_task(server.__aexit__(None, None, None))
    found = await scrape_until(stage.metrics_address, lambda seen: seen.one("draining") == 1)
    assert (found.one("ready"), found.one("runs_executing")) == (0, 1)
    (await stage.request()).released.set()
    await closing
    with pytest.raises(ConnectionRefusedError):
        await scrape(stage.metrics_address)


async def test_address_that_is_taken_stops_the_start(tmp_path: Path, stage: Stage) -> None:
    settings = msgspec.structs.replace(
        settings_in(tmp_path / "other"), metrics=MetricsSettings(listen=stage.metrics_address)
    )
    with pytest.raises(ListenError, match="is another server running there"):
        async with open_server(settings, progress=lambda _: None):
            pass


async def test_metrics_can_be_served_nowhere(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(settings_in(tmp_path), metrics=MetricsSettings(listen=""))
    async with open_server(settings, progress=lambda _: None) as running:
        assert running.metrics_address == ""
