from collections.abc import Sequence

import grpc
import pytest

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import RatingVerdict, Run, RunRating, RunState
from famulus.v1.run_service_pb2 import (
    CancelRunRequest,
    CreateRunRequest,
    GetRunRequest,
    GetRunStepRequest,
    ListRunsRequest,
    ListRunStepsRequest,
    RateRunRequest,
    StreamRunRequest,
    SubmitToolOutputsRequest,
    UpdateRunRequest,
    WaitRunRequest,
    WatchRunRequest,
)
from famulus.v1.tool_pb2 import FunctionTool, Tool, ToolOutput
from serving import Stubs, refusal, said

WEATHER = Tool(function=FunctionTool(name="get_weather", parameters_json='{"type": "object"}'))


def events_of(responses: Sequence[object]) -> list[RunEvent]:
    return [event for response in responses for event in response.events]  # type: ignore[attr-defined]


def stream(stubs: Stubs, text: str, **fields: object) -> StreamRunRequest:
    """A request to say something on a new thread and to stream the answer."""
    thread, assistant = stubs.new_thread(), stubs.new_assistant()
    create = CreateRunRequest(
        thread_id=thread.id,
        assistant_id=assistant.id,
        additional_messages=[said(text)],
        **fields,  # type: ignore[arg-type]
    )
    return StreamRunRequest(create=create)


def test_stream_run_answers_and_ends_after_the_terminal_event(stubs: Stubs) -> None:
    events = events_of(list(stubs.runs.StreamRun(stream(stubs, "hello there"))))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert "".join(event.text_delta.text for event in events) == "You said: hello there"
    last = events[-1].run_state_changed.run
    assert last.state == RunState.RUN_STATE_COMPLETED


def test_stream_run_with_its_request_id_resumes_the_same_run_behind_a_sequence(stubs: Stubs) -> None:
    request = stream(stubs, "once")
    request.create.request_id = f"stream-{request.create.thread_id}"
    whole = events_of(list(stubs.runs.StreamRun(request)))
    for cut in range(len(whole)):
        request.after_sequence = cut
        assert events_of(list(stubs.runs.StreamRun(request))) == whole[cut:]
    created = stubs.runs.CreateRun(request.create).run
    assert created.id == whole[0].run_state_changed.run.id


def test_watch_behind_the_end_of_a_finished_run_is_out_of_range(stubs: Stubs) -> None:
    run = events_of(list(stubs.runs.StreamRun(stream(stubs, "x"))))[-1].run_state_changed.run
    with pytest.raises(grpc.RpcError) as caught:
        list(stubs.runs.WatchRun(WatchRunRequest(run_id=run.id, after_sequence=2**63 - 1)))
    told = refusal(caught.value)
    assert (told.code, told.reason) == (grpc.StatusCode.OUT_OF_RANGE, "SEQUENCE_OUT_OF_RANGE")
    assert told.metadata["last_sequence"] == str(run.last_sequence)


def test_run_waits_for_tool_outputs_and_goes_on(stubs: Stubs) -> None:
    assistant = stubs.new_assistant(tools=[WEATHER])
    thread = stubs.new_thread([said("please get_weather")])
    run = stubs.runs.CreateRun(CreateRunRequest(thread_id=thread.id, assistant_id=assistant.id)).run
    waited = stubs.runs.WaitRun(WaitRunRequest(run_id=run.id)).run
    assert waited.state == RunState.RUN_STATE_REQUIRES_ACTION
    calls = waited.required_action.tool_calls
    outputs = [ToolOutput(call_id=call.id, output="sunny") for call in calls]
    stubs.runs.SubmitToolOutputs(SubmitToolOutputsRequest(run_id=run.id, tool_outputs=outputs))
    answer = stubs.runs.WaitRun(WaitRunRequest(run_id=run.id))
    assert answer.run.state == RunState.RUN_STATE_COMPLETED
    assert "sunny" in answer.messages[-1].content[0].text.text
    steps = stubs.runs.ListRunSteps(ListRunStepsRequest(run_id=run.id, page_size=1))
    rest = stubs.runs.ListRunSteps(ListRunStepsRequest(run_id=run.id, page_token=steps.next_page_token))
    assert [step.position for step in [*steps.steps, *rest.steps]] == [1, 2]
    again = stubs.runs.GetRunStep(GetRunStepRequest(run_id=run.id, step_id=steps.steps[0].id)).step
    assert again == steps.steps[0]


def test_runs_are_listed_updated_and_rated(stubs: Stubs) -> None:
    run = events_of(list(stubs.runs.StreamRun(stream(stubs, "x"))))[-1].run_state_changed.run
    changed = stubs.runs.UpdateRun(UpdateRunRequest(run=Run(id=run.id, metadata={"k": "v"}))).run
    assert dict(changed.metadata) == {"k": "v"}
    rating = RunRating(verdict=RatingVerdict.RATING_VERDICT_GOOD)
    assert stubs.runs.RateRun(RateRunRequest(run_id=run.id, rating=rating)).run.rating.verdict == rating.verdict
    which = ListRunsRequest(thread_id=run.thread_id, states=[RunState.RUN_STATE_COMPLETED])
    assert [found.id for found in stubs.runs.ListRuns(which).runs] == [run.id]


def test_run_goes_on_when_its_watcher_goes_away(stubs: Stubs) -> None:
    call = stubs.runs.StreamRun(stream(stubs, "hang"))
    run = next(call).events[0].run_state_changed.run
    call.cancel()
    stubs.runs.GetRun(GetRunRequest(run_id=run.id))
    assert stubs.runs.CancelRun(CancelRunRequest(run_id=run.id)).run.state == RunState.RUN_STATE_CANCELLING
    assert stubs.runs.WaitRun(WaitRunRequest(run_id=run.id)).run.state == RunState.RUN_STATE_CANCELLED


@pytest.mark.parametrize("method", ["StreamRun", "WatchRun"])
def test_cancel_on_disconnect_cancels_the_run_when_its_watcher_goes_away(stubs: Stubs, method: str) -> None:
    request = stream(stubs, "hang")
    request.cancel_on_disconnect = method == "StreamRun"
    call = stubs.runs.StreamRun(request)
    run = next(call).events[0].run_state_changed.run
    if method == "WatchRun":
        watching = stubs.runs.WatchRun(WatchRunRequest(run_id=run.id, cancel_on_disconnect=True))
        next(watching)
        watching.cancel()
    else:
        call.cancel()
    assert stubs.runs.WaitRun(WaitRunRequest(run_id=run.id), timeout=5).run.state == RunState.RUN_STATE_CANCELLED
    call.cancel()


def test_deadline_of_a_wait_does_not_end_the_run(stubs: Stubs) -> None:
    run = stubs.runs.CreateRun(stream(stubs, "hang").create).run
    with pytest.raises(grpc.RpcError) as caught:
        stubs.runs.WaitRun(WaitRunRequest(run_id=run.id), timeout=0.1)
    assert refusal(caught.value).code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert stubs.runs.GetRun(GetRunRequest(run_id=run.id)).run.state == RunState.RUN_STATE_IN_PROGRESS
    stubs.runs.CancelRun(CancelRunRequest(run_id=run.id))
