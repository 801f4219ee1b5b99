"""Traces of a whole server, as a collector gets them: spans, what they are below, and what they tell."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from famulus.v1.run_pb2 import RunErrorCode, RunState
from famulus.v1.run_service_pb2 import GetRunRequest, ListRunsRequest, StreamRunRequest, WaitRunRequest
from famulus_server.embedded.upstream import Fault, Scene, ScriptedUpstream, ToolCall
from famulus_server.telemetry import traces
from otlp import Collector, Told, trace_to
from run_stage import TOOLS, Stage, open_stage, refused, stage_settings

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
CALLER = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "vendor=value"))
RUNS = "famulus.v1.RunService"

# What the semantic conventions require, and recommend where it is known: for RPC those of 1.45.0, for generative AI
# those of 1.41.0, the last that had them.
SERVER: Mapping[str, type] = {"rpc.system.name": str, "rpc.method": str, "rpc.status_code": str}
AGENT: Mapping[str, type] = {
    "gen_ai.operation.name": str,
    "gen_ai.provider.name": str,
    "gen_ai.agent.id": str,
    "gen_ai.agent.version": str,
    "gen_ai.conversation.id": str,
    "gen_ai.request.model": str,
}
CHAT: Mapping[str, type] = {
    "gen_ai.operation.name": str,
    "gen_ai.provider.name": str,
    "gen_ai.request.model": str,
    "gen_ai.request.stream": bool,
    "server.address": str,
    "server.port": int,
}
ANSWERED: Mapping[str, type] = {
    "gen_ai.response.finish_reasons": list,
    "gen_ai.response.id": str,
    "gen_ai.response.model": str,
    "gen_ai.response.time_to_first_chunk": float,
    "gen_ai.usage.input_tokens": int,
    "gen_ai.usage.output_tokens": int,
}


@pytest_asyncio.fixture
async def collector() -> AsyncIterator[Collector]:
    async with Collector() as opened:
        yield opened


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as opened:
        yield opened


@pytest_asyncio.fixture
async def stage(
    tmp_path: Path, upstream: ScriptedUpstream, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    trace_to(monkeypatch, collector.url)
    async with open_stage(stage_settings(tmp_path, upstream.base_url), upstream) as opened:
        yield opened


def check(span: Told, *tables: Mapping[str, type]) -> None:
    """The span has the attributes of the tables, of their types."""
    for table in tables:
        assert {key: type(span.attributes.get(key)) for key in table} == dict(table)


async def test_call_run_and_question_are_one_trace_below_the_callers_span(
    stage: Stage, collector: Collector, upstream: ScriptedUpstream
) -> None:
    stage.play(Scene(text="fine"))
    assistant = await stage.assistant()
    create = await stage.wanted(assistant_id=assistant.id)
    request, metadata = StreamRunRequest(create=create), (*CALLER, ("x-request-id", "mine"))
    events = [event async for response in stage.runs.StreamRun(request, metadata=metadata) for event in response.events]
    run = events[-1].run_state_changed.run
    call = await collector.span(f"{RUNS}/StreamRun")
    attempt = await collector.span("invoke_agent")
    chat = await collector.span("chat scripted")
    assert [span.trace_id for span in (call, attempt, chat)] == [TRACE] * 3
    assert (call.parent_id, attempt.parent_id, chat.parent_id) == (PARENT, call.span_id, attempt.span_id)
    assert (call.kind, attempt.kind, chat.kind) == ("SERVER", "INTERNAL", "CLIENT")
    assert not any(span.failed for span in (call, attempt, chat))
    check(call, SERVER)
    check(attempt, AGENT)
    check(chat, CHAT, ANSWERED)
    assert call.state == "vendor=value"
    assert call.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{RUNS}/StreamRun",
        "rpc.status_code": "OK",
        "famulus.request_id": "mine",
    }
    assert (
        attempt.attributes.items()
        >= {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.id": assistant.id,
            "gen_ai.agent.version": "1",
            "gen_ai.conversation.id": run.thread_id,
            "famulus.run.id": run.id,
            "famulus.run.state": "completed",
            "famulus.attempt": 1,
            "famulus.queue_seconds": 0.0,
            "famulus.variant": "scripted",
        }.items()
    )
    assert (
        chat.attributes.items()
        >= {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "scripted",
            "server.address": "127.0.0.1",
            "server.port": int(upstream.base_url.rpartition(":")[2].partition("/")[0]),
            "gen_ai.usage.input_tokens": run.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": run.usage.completion_tokens,
        }.items()
    )
    assert chat.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert run.traceparent == call.traceparent
    [asked] = upstream.requests
    assert asked.headers["traceparent"] == chat.traceparent
    assert "tracestate" not in asked.headers
    assert call.resource.items() >= {"service.name": "famulus", "service.version": "0.1.0"}.items()
    assert call.resource["service.instance.id"]


async def test_tool_round_is_two_attempts_of_the_same_trace(stage: Stage, collector: Collector) -> None:
    stage.play(Scene(times=1, tool_calls=(ToolCall(name="get_time"),)), Scene(text="noon"))
    run = await stage.start(assistant_id=(await stage.assistant(tools=TOOLS)).id)
    waiting = await stage.wait(run.id)
    await stage.submit(run.id, (waiting.required_action.tool_calls[0].id, "12:00"))
    assert (await stage.wait(run.id)).state == RunState.RUN_STATE_COMPLETED
    created = await collector.span(f"{RUNS}/CreateRun")
    submitted = await collector.span(f"{RUNS}/SubmitToolOutputs")
    attempts = await collector.all("invoke_agent", 2)
    chats = await collector.all("chat scripted", 2)
    assert submitted.trace_id != created.trace_id
    assert {span.trace_id for span in (*attempts, *chats)} == {created.trace_id}
    assert {span.parent_id for span in attempts} == {created.span_id}
    assert [span.parent_id for span in chats] == [span.span_id for span in attempts]
    assert [span.attributes["famulus.run.state"] for span in attempts] == ["requires_action", "completed"]
    assert [span.attributes["famulus.attempt"] for span in attempts] == [1, 2]
    assert [span.attributes["gen_ai.response.finish_reasons"] for span in chats] == [["tool_calls"], ["stop"]]


async def test_each_try_of_a_failing_upstream_is_a_failed_span(stage: Stage, collector: Collector) -> None:
    stage.play(Scene(fault=Fault(kind="status", status=503)))
    run = await stage.wait((await stage.start()).id)
    assert run.error.code == RunErrorCode.RUN_ERROR_CODE_MODEL_UNAVAILABLE
    attempt = await collector.span("invoke_agent")
    chats = await collector.all("chat scripted", 3)
    assert len(chats) == 3
    for chat in chats:
        assert chat.failed
        assert chat.parent_id == attempt.span_id
        assert chat.attributes["error.type"] == "ModelUnavailable"
        assert chat.attributes["http.response.status_code"] == 503
    assert attempt.failed
    assert attempt.attributes["error.type"] == "model_unavailable"
    assert attempt.attributes["famulus.run.state"] == "failed"
    assert [name for name, _ in attempt.events] == ["famulus.retry_scheduled"] * 2
    assert attempt.events[0][1]["famulus.reason"] == "model_unavailable"


async def test_turn_that_breaks_off_tells_that_it_starts_over(stage: Stage, collector: Collector) -> None:
    stage.play(Scene(times=1, deltas=4, fault=Fault(kind="reset", after=2)), Scene(text="fine"))
    assert (await stage.wait((await stage.start()).id)).state == RunState.RUN_STATE_COMPLETED
    attempt = await collector.span("invoke_agent")
    assert ("famulus.attempt_started", {"famulus.attempt": 2, "famulus.taken_over": False}) in attempt.events
    broken, whole = await collector.all("chat scripted", 2)
    assert (broken.attributes["error.type"], broken.failed, whole.failed) == ("ModelProtocolError", True, False)


async def test_codes_are_those_that_callers_see(stage: Stage, collector: Collector) -> None:
    absent = await refused(stage.runs.GetRun(GetRunRequest(run_id="run_0")))
    assert absent.code is grpc.StatusCode.NOT_FOUND
    span = await collector.span(f"{RUNS}/GetRun")
    # Its caller's mistake, hence no failure of the server's work.
    assert (span.attributes["rpc.status_code"], span.failed) == ("NOT_FOUND", False)
    assert "error.type" not in span.attributes
    stage.play(Scene(deltas=2, hold_after=1))
    run = await stage.start()
    late = await refused(stage.runs.WaitRun(WaitRunRequest(run_id=run.id), timeout=0.05))
    assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
    watched = await stage.until(run.id, "text_delta")
    assert watched
    left = await collector.span(f"{RUNS}/WatchRun")
    assert (left.attributes["rpc.status_code"], left.failed) == ("CANCELLED", False)
    await stage.cancel(run.id)


async def test_bad_traceparent_is_none(stage: Stage, collector: Collector) -> None:
    bad = [
        "",
        "garbage",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE.upper()}-{PARENT}-01",
        "00-" * 200,
    ]
    for given in bad:
        await refused(stage.runs.GetRun(GetRunRequest(run_id="run_0"), metadata=(("traceparent", given),)))
    spans = await collector.all(f"{RUNS}/GetRun", len(bad))
    assert {span.parent_id for span in spans} == {""}
    assert len({span.trace_id for span in spans} - {TRACE}) == len(bad)


async def test_what_a_caller_does_not_sample_nobody_records(
    stage: Stage, collector: Collector, upstream: ScriptedUpstream
) -> None:
    stage.play(Scene(text="fine"))
    create, metadata = await stage.wanted(), (("traceparent", f"00-{TRACE}-{PARENT}-00"),)
    async for _ in stage.runs.StreamRun(StreamRunRequest(create=create), metadata=metadata):
        pass
    assert upstream.requests[0].headers["traceparent"].startswith(f"00-{TRACE}-")
    assert upstream.requests[0].headers["traceparent"].endswith("-00")
    # One that is recorded, so that all before it would have arrived, too.
    await refused(stage.runs.GetRun(GetRunRequest(run_id="run_0")))
    await collector.span(f"{RUNS}/GetRun")
    assert TRACE not in {span.trace_id for span in collector.spans}


async def test_probes_are_not_traced(stage: Stage, collector: Collector) -> None:
    async with grpc.aio.insecure_channel(stage.address) as channel:
        await HealthStub(channel).Check(HealthCheckRequest(service="readiness"), metadata=CALLER)
    await refused(stage.runs.GetRun(GetRunRequest(run_id="run_0")))
    await collector.span(f"{RUNS}/GetRun")
    assert not [span for span in collector.spans if "health" in span.name]


async def test_nothing_that_was_said_is_in_any_span(stage: Stage, collector: Collector) -> None:
    said = ("heliotrope", "marzipan", "quicksilver", "obsidian", "somebody@example.com", "tungsten")
    user, model, instructions, output, owner, title = said
    stage.play(
        Scene(times=1, tool_calls=(ToolCall(name="get_time", arguments=f'{{"x":"{model}"}}'),)), Scene(text=model)
    )
    assistant = await stage.assistant(tools=TOOLS, instructions=instructions, name="Echo", description=title)
    thread = await stage.thread(user, title=title, user_id=owner)
    run = await stage.start(user, assistant_id=assistant.id, thread_id=thread.id)
    waiting = await stage.wait(run.id)
    await stage.submit(run.id, (waiting.required_action.tool_calls[0].id, output))
    assert model in (await stage.tell(run.id)).text
    await collector.all("invoke_agent", 2)
    await collector.all("chat scripted", 2)
    for span in collector.spans:
        assert not [word for word in said if word.encode() in span.raw], span.name


async def test_untraced_server_tells_nobody(tmp_path: Path, upstream: ScriptedUpstream, collector: Collector) -> None:
    async with open_stage(stage_settings(tmp_path, upstream.base_url), upstream, [Scene(text="fine")]) as stage:
        create = await stage.wanted()
        async for _ in stage.runs.StreamRun(StreamRunRequest(create=create), metadata=CALLER):
            pass
        assert (await stage.runs.ListRuns(ListRunsRequest())).runs[0].traceparent == ""
    assert not [request for request in upstream.requests if "traceparent" in request.headers]
    assert collector.spans == []


async def test_headers_names_and_resource_are_those_of_the_environment(
    tmp_path: Path, upstream: ScriptedUpstream, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace_to(
        monkeypatch,
        "http://127.0.0.1:9",
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{collector.url}/v1/traces",
        OTEL_EXPORTER_OTLP_HEADERS="x-team=helpdesk",
        OTEL_SERVICE_NAME="helpdesk",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test,service.instance.id=pod-7",
    )
    async with open_stage(stage_settings(tmp_path, upstream.base_url), upstream) as stage:
        await refused(stage.runs.GetRun(GetRunRequest(run_id="run_0")))
    # The end of the server sent it, at the latest.
    [span] = collector.spans
    wanted = {"service.name": "helpdesk", "deployment.environment.name": "test", "service.instance.id": "pod-7"}
    assert span.resource.items() >= wanted.items()
    assert collector.headers[0]["x-team"] == "helpdesk"


async def test_collector_that_never_answers_delays_neither_runs_nor_the_stop(
    tmp_path: Path, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Collector(answers=False) as collector:
        trace_to(monkeypatch, collector.url)
        monkeypatch.setattr(traces, "_FLUSH_SECONDS", 0.2)
        # Far below the 10 seconds for which the exporter waits for an answer.
        async with asyncio.timeout(8):
            async with open_stage(stage_settings(tmp_path, upstream.base_url), upstream, [Scene(text="fine")]) as stage:
                assert (await stage.play_out()).text == "fine"
                await collector.asked.wait()
                assert (await stage.play_out()).text == "fine"
        assert collector.spans == []


async def test_runs_do_without_a_collector(
    tmp_path: Path, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace_to(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr(traces, "_FLUSH_SECONDS", 0.2)
    async with asyncio.timeout(8):
        async with open_stage(stage_settings(tmp_path, upstream.base_url), upstream, [Scene(text="fine")]) as stage:
            assert (await stage.play_out()).text == "fine"
