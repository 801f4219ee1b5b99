"""Traces that begin on one replica and go on at others."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2 import CreateRunRequest
from famulus_server.embedded.upstream import Scene, ScriptedUpstream
from killable_server import open_killable
from otlp import Collector, trace_to
from replicas.conftest import OpenReplica

pytestmark = pytest.mark.usefixtures("unhurried")

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = (("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"),)


@pytest_asyncio.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    async with Collector() as opened:
        trace_to(monkeypatch, opened.url)
        yield opened


async def test_run_made_by_one_replica_and_executed_by_another_is_one_trace(
    open_replica: OpenReplica, collector: Collector
) -> None:
    async with open_replica(server={"role": "api"}) as api, open_replica(server={"role": "worker"}):
        api.play(Scene(text="fine"))
        create: CreateRunRequest = await api.wanted()
        run = (await api.runs.CreateRun(create, metadata=CALLER)).run
        assert run.state == RunState.RUN_STATE_QUEUED
        assert (await api.wait(run.id)).state == RunState.RUN_STATE_COMPLETED
        call = await collector.span("famulus.v1.RunService/CreateRun")
        attempt = await collector.span("invoke_agent")
        chat = await collector.span("chat scripted")
    assert {span.trace_id for span in (call, attempt, chat)} == {TRACE}
    assert (attempt.parent_id, chat.parent_id) == (call.span_id, attempt.span_id)
    assert attempt.attributes["famulus.run.id"] == run.id
    assert attempt.attributes["famulus.queue_seconds"] > 0
    instances = {span.resource["service.instance.id"] for span in (call, attempt, chat)}
    assert len(instances) == 2
    assert attempt.resource == chat.resource


async def test_run_that_is_taken_over_goes_on_in_its_trace(
    open_replica: OpenReplica,
    collector: Collector,
    upstream: ScriptedUpstream,
    tmp_path: Path,
    shared: dict[str, Any],
) -> None:
    doomed_settings: dict[str, Any] = {"worker": {"lease_seconds": 2.0}, **shared}
    async with (
        open_killable(tmp_path / "doomed", upstream, **doomed_settings) as (doomed, process),
        open_replica() as other,
    ):
        doomed.play(Scene(times=1, deltas=6, hold_after=3), Scene(text="fine"))
        run = await doomed.start()
        await doomed.until_text(run.id, " w3")
        process.kill()
        assert (await other.tell(run.id)).text == "fine"
        # That of the replica that died may have been lost with it; what it was below is stored.
        attempt = await collector.span("invoke_agent", famulus__attempt=2)
        chat = await collector.span("chat scripted", gen_ai__request__model="scripted")
    assert ("famulus.attempt_started", {"famulus.attempt": 2, "famulus.taken_over": True}) in attempt.events
    _, trace_id, call_id, _ = run.traceparent.split("-")
    assert (attempt.trace_id, attempt.parent_id) == (trace_id, call_id)
    assert (chat.trace_id, chat.parent_id) == (trace_id, attempt.span_id)
    asked = [request.headers["traceparent"].split("-")[1] for request in upstream.requests]
    assert asked == [trace_id, trace_id]
