"""JSON that is not ours, at random, over a socket: where callers and models write it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2 import (
    CreateRunRequest,
    ListRunStepsRequest,
    SubmitToolOutputsRequest,
    WaitRunRequest,
)
from famulus.v1.tool_pb2 import FunctionTool, Tool, ToolOutput
from hostile.rpcs import RPCS
from hostile.seeds import FUNCTION, waiting_run
from hostile.strategies import json_texts
from hostile.target import Target
from serving import Refusal, said

EXAMPLES = 20
_CREATE = next(rpc for rpc in RPCS if rpc.name == "CreateRun")


def test_parameters_of_a_function_are_refused_or_reach_the_model(target: Target) -> None:
    @settings(max_examples=EXAMPLES)
    @given(json_texts())
    def check(text: str) -> None:
        request = CreateRunRequest(assistant_id=target.assistant_id, additional_messages=[said("hello")])
        request.new_thread.SetInParent()
        request.tools.tools.append(Tool(function=FunctionTool(name=FUNCTION, parameters_json=text)))
        request.response_format.json_schema.name = "n"
        request.response_format.json_schema.schema_json = "{}"
        answer = target.send(_CREATE, request)
        if isinstance(answer, Refusal):
            assert answer.fields == ["tools.tools[0].function.parameters_json"]

    check()
    target.check_health()


def test_output_of_a_call_is_any_text_and_comes_back_as_it_was(target: Target) -> None:
    @settings(max_examples=EXAMPLES)
    @given(json_texts(), st.booleans())
    def check(text: str, is_error: bool) -> None:
        run = waiting_run(target.stubs, target.assistant_id)
        output = ToolOutput(call_id=run.required_action.tool_calls[0].id, output=text, is_error=is_error)
        target.stubs.runs.SubmitToolOutputs(SubmitToolOutputsRequest(run_id=run.id, tool_outputs=[output]))
        ended = target.stubs.runs.WaitRun(WaitRunRequest(run_id=run.id))
        assert ended.run.state == RunState.RUN_STATE_COMPLETED, ended.run
        steps = target.stubs.runs.ListRunSteps(ListRunStepsRequest(run_id=run.id)).steps
        assert steps[0].tool_calls.tool_calls[0].function.output == text

    check()
