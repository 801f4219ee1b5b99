"""Runs that write more than one answer of gRPC may hold, or than their reader takes."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from msgspec import structs

from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2 import StreamRunRequest, WaitRunRequest, WatchRunRequest
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_service_pb2 import ListMessagesRequest, ListOrder
from famulus_server.embedded.upstream import Scene, ScriptedUpstream, ToolCall
from run_stage import TOOLS, Stage, open_stage, stage_settings, text_of

if TYPE_CHECKING:
    # The stubs have it as a type only.
    from famulus.v1.run_service_pb2_grpc import RunServiceAsyncStub

pytestmark = pytest.mark.asyncio(loop_scope="module")

LARGE = 700_000


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Asynchronous generators that nobody closes stay open, as they may for a long time."""
    before = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(finalizer=lambda _: None)
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(*before)


async def test_wait_returns_the_newest_messages_where_all_are_too_many_bytes(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        settings = stage_settings(tmp_path, upstream.base_url)
        spacious = tuple(structs.replace(model, context_window=4 * LARGE) for model in settings.models)
        async with open_stage(structs.replace(settings, models=spacious), upstream) as stage:
            calling = [Scene(times=1, text=turn * LARGE, tool_calls=(ToolCall(name="get_time"),)) for turn in "12345"]
            stage.play(*calling, Scene(text="6" * LARGE))
            assistant = await stage.assistant(tools=TOOLS)
            started = await stage.start(assistant_id=assistant.id)
            answer = await stage.runs.WaitRun(WaitRunRequest(run_id=started.id))
            while answer.run.state == RunState.RUN_STATE_REQUIRES_ACTION:
                await stage.submit(started.id, *[(call.id, "noon") for call in answer.run.required_action.tool_calls])
                answer = await stage.runs.WaitRun(WaitRunRequest(run_id=started.id))
            assert answer.run.state == RunState.RUN_STATE_COMPLETED
            assert [text_of(message) for message in answer.messages] == [turn * LARGE for turn in "3456"]
            older = ListMessagesRequest(
                thread_id=answer.run.thread_id, run_id=started.id, order=ListOrder.LIST_ORDER_ASCENDING
            )
            listed = (await stage.threads.ListMessages(older)).messages
            assert [text_of(message)[0] for message in listed] == ["1", "2"]


@pytest.mark.parametrize("method", ["StreamRun", "WatchRun"])
async def test_cancel_on_disconnect_holds_for_a_caller_who_went_away_while_written_to(
    stage: Stage, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.play(Scene(text=("x" * LARGE, "end", " and on"), hold_after=2))
    # This connection takes 64 KiB without a reader, so the server is in the middle of a write.
    narrow = [("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(stage.address, options=narrow) as channel:
        runs: RunServiceAsyncStub = RunServiceStub(channel)
        call: Any
        with nothing_collected():
            if method == "StreamRun":
                call = runs.StreamRun(StreamRunRequest(create=await stage.wanted(), cancel_on_disconnect=True))
                run_id = (await anext(aiter(call))).events[0].run_state_changed.run.id
            else:
                run_id = (await stage.start()).id
                call = runs.WatchRun(WatchRunRequest(run_id=run_id, cancel_on_disconnect=True))
            await stage.until_text(run_id, "end")
            call.cancel()
            async with asyncio.timeout(5):
                assert (await stage.wait(run_id)).state == RunState.RUN_STATE_CANCELLED
    log = capsys.readouterr().out
    assert f"code=CANCELLED method=/famulus.v1.RunService/{method}" in log
    assert "call failed" not in log
