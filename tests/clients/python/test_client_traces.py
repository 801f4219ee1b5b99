"""Traces of those who call: what the clients tell the server of them, and the spans around tools."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import opentelemetry.trace
import pytest
import pytest_asyncio
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer, format_span_id, format_trace_id

from famulus import FamulusClient, FamulusSyncClient, RunResult
from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2 import GetRunRequest
from famulus_server.embedded.upstream import Scene, ScriptedUpstream, ToolCall
from otlp import Collector, trace_to
from run_stage import TOOLS, Stage, open_stage, stage_settings

ASKS = Scene(times=1, tool_calls=(ToolCall(name="get_time"), ToolCall(name="get_weather")))
RUNS = "famulus.v1.RunService"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Those of this process, by its own global provider, as applications have one."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(opentelemetry.trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> Tracer:
    assert spans is not None
    return opentelemetry.trace.get_tracer("test")


@pytest_asyncio.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    async with Collector() as opened:
        trace_to(monkeypatch, opened.url)
        yield opened


@pytest_asyncio.fixture
async def stage(tmp_path: Path, collector: Collector) -> AsyncIterator[Stage]:
    assert collector.url
    async with (
        ScriptedUpstream() as upstream,
        open_stage(stage_settings(tmp_path, upstream.base_url), upstream) as opened,
    ):
        yield opened


def get_time() -> str:
    return "noon"


async def get_weather() -> str:
    raise ValueError("heliotrope")


def get_weather_in_a_thread() -> str:
    raise ValueError("heliotrope")


async def run_async(stage: Stage, tracer: Tracer) -> RunResult:
    create = await stage.wanted(assistant_id=(await stage.assistant(tools=TOOLS)).id)
    async with FamulusClient(stage.address) as client:
        with tracer.start_as_current_span("caller"):
            return await client.run_to_end(create, tools={"get_time": get_time, "get_weather": get_weather})


async def run_in_threads(stage: Stage, tracer: Tracer) -> RunResult:
    create = await stage.wanted(assistant_id=(await stage.assistant(tools=TOOLS)).id)

    def work() -> RunResult:
        tools = {"get_time": get_time, "get_weather": get_weather_in_a_thread}
        with FamulusSyncClient(stage.address) as client, tracer.start_as_current_span("caller"):
            return client.run_to_end(create, tools=tools)

    return await asyncio.to_thread(work)


def ids(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return format_trace_id(context.trace_id), format_span_id(context.span_id)


@pytest.mark.parametrize("play", [run_async, run_in_threads])
async def test_calls_tools_and_the_run_are_one_trace(
    stage: Stage, collector: Collector, spans: InMemorySpanExporter, tracer: Tracer, play: object
) -> None:
    stage.play(ASKS, Scene(text="fine"))
    assert callable(play)
    result: RunResult = await play(stage, tracer)
    assert result.run.state == RunState.RUN_STATE_COMPLETED
    found = {span.name: span for span in spans.get_finished_spans()}
    trace_id, caller_id = ids(found["caller"])
    for name in ("StreamRun", "SubmitToolOutputs"):
        call = await collector.span(f"{RUNS}/{name}")
        assert (call.trace_id, call.parent_id) == (trace_id, caller_id)
    attempts = await collector.all("invoke_agent", 2)
    assert {span.trace_id for span in attempts} == {trace_id}
    for name in ("get_time", "get_weather"):
        tool = found[f"execute_tool {name}"]
        assert ids(tool)[0] == trace_id
        assert tool.parent is not None
        assert format_span_id(tool.parent.span_id) == caller_id
        attributes = dict(tool.attributes or {})
        assert attributes.pop("gen_ai.tool.call.id")
        failed = {"error.type": "ValueError"} if name == "get_weather" else {}
        assert attributes == failed | {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.type": "function",
        }
        assert tool.status.is_ok is not bool(failed)
        assert "heliotrope" not in tool.to_json()


async def test_call_without_a_span_tells_of_none(stage: Stage, collector: Collector) -> None:
    stage.play(Scene(text="fine"))
    run = await stage.start()
    async with FamulusClient(stage.address) as client:
        await client.runs.GetRun(GetRunRequest(run_id=run.id), metadata=(("x-request-id", "mine"),))
    call = await collector.span(f"{RUNS}/GetRun")
    assert (call.parent_id, call.attributes["famulus.request_id"]) == ("", "mine")


@pytest.mark.usefixtures("spans")
async def test_traceparent_that_is_given_stays(stage: Stage, collector: Collector, tracer: Tracer) -> None:
    stage.play(Scene(text="fine"))
    run, given = await stage.start(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with FamulusClient(stage.address) as client:
        with tracer.start_as_current_span("caller"):
            await client.runs.GetRun(GetRunRequest(run_id=run.id), metadata=(("traceparent", given),))
    call = await collector.span(f"{RUNS}/GetRun")
    assert (call.trace_id, call.parent_id) == tuple(given.split("-")[1:3])


@pytest.mark.usefixtures("spans")
async def test_blocking_calls_carry_the_span_in_whatever_way_they_are_made(
    stage: Stage, collector: Collector, tracer: Tracer
) -> None:
    stage.play(Scene(text="fine"))
    request = GetRunRequest(run_id=(await stage.start()).id)

    def work() -> None:
        with FamulusSyncClient(stage.address) as client, tracer.start_as_current_span("caller"):
            client.runs.GetRun(request, 5.0)
            client.runs.GetRun.with_call(request, timeout=5.0)
            client.runs.GetRun.future(request).result()

    await asyncio.to_thread(work)
    calls = await collector.all(f"{RUNS}/GetRun", 3)
    assert len({call.parent_id for call in calls} - {""}) == 1


def test_client_does_without_opentelemetry() -> None:
    program = (
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "from famulus import FamulusSyncClient\n"
        "from famulus.tools import Toolbox\n"
        "from famulus.v1.tool_pb2 import FunctionCall, ToolCall\n"
        "with FamulusSyncClient('127.0.0.1:9') as client:\n"
        "    assert type(client.runs.GetRun).__module__.startswith('grpc')\n"
        "call = ToolCall(id='call_1', function=FunctionCall(name='f', arguments_json='{}'))\n"
        "[output] = Toolbox({'f': lambda: 'fine'}, timeout=5).answer_all_in_threads([call], [])\n"
        "assert output.output == 'fine', output\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
