"""A request of each RPC that the server accepts: where hostile ones begin. They name what exists, so that what is wrong
with them is found out as late as can be."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message

from famulus.v1 import assistant_service_pb2 as assistants
from famulus.v1 import run_service_pb2 as runs
from famulus.v1 import thread_service_pb2 as threads
from famulus.v1 import usage_service_pb2 as usage
from famulus.v1 import user_data_service_pb2 as user_data
from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.message_pb2 import MessagePart
from famulus.v1.run_pb2 import RatingVerdict, Run
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_service_pb2_grpc import ThreadServiceStub
from famulus.v1.tool_pb2 import FunctionTool, Tool, ToolChoiceMode, ToolOutput
from famulus_server.config import SCRIPTED_MODEL
from hostile.rpcs import Rpc
from serving import Stubs, said

FUNCTION = "look_up"
PARAMETERS = '{"type": "object", "properties": {"word": {"type": "string"}}}'
_PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()


@dataclass(frozen=True, slots=True)
class Seeds:
    """`requests` by the names of RPCs; `ids` of what exists, and the page tokens of lists that go on."""

    requests: Mapping[str, Message]
    ids: tuple[str, ...]
    tokens: tuple[str, ...]

    def of(self, rpc: Rpc) -> Message:
        """A copy of the request to begin with; an empty one of RPCs that nobody here knows."""
        request = rpc.request()
        request.CopyFrom(self.requests.get(rpc.name, request))
        return request


def stubs_on(channel: grpc.Channel) -> Stubs:
    """The stubs of all services."""
    return Stubs(AssistantServiceStub(channel), ThreadServiceStub(channel), RunServiceStub(channel))


def waiting_run(stubs: Stubs, assistant_id: str) -> Run:
    """A run that waits for the output of a call."""
    create = runs.CreateRunRequest(assistant_id=assistant_id, additional_messages=[said(f"call {FUNCTION}")])
    create.new_thread.SetInParent()
    run = stubs.runs.CreateRun(create).run
    waiting = stubs.runs.WaitRun(runs.WaitRunRequest(run_id=run.id)).run
    assert waiting.required_action.tool_calls, waiting
    return waiting


def plant(stubs: Stubs) -> Seeds:
    """Makes what the requests name."""
    function = Tool(function=FunctionTool(name=FUNCTION, description="d", parameters_json=PARAMETERS))
    assistant = stubs.new_assistant(name="a", instructions="i", tools=[function], metadata={"k": "v"})
    stubs.new_assistant()
    thread = stubs.new_thread([said("one"), said("two")], user_id="u", title="t", metadata={"k": "v"})
    stubs.new_thread()
    [second, first] = stubs.threads.ListMessages(threads.ListMessagesRequest(thread_id=thread.id)).messages
    waiting = waiting_run(stubs, assistant.id)
    call_id = waiting.required_action.tool_calls[0].id
    [step] = stubs.runs.ListRunSteps(runs.ListRunStepsRequest(run_id=waiting.id)).steps
    create = runs.CreateRunRequest(assistant_id=assistant.id, additional_messages=[said("hello")], max_turns=2)
    create.new_thread.title = "n"
    ended = stubs.runs.WaitRun(runs.WaitRunRequest(run_id=stubs.runs.CreateRun(create).run.id)).run

    creation = runs.CreateRunRequest()
    creation.CopyFrom(create)
    creation.model = SCRIPTED_MODEL
    creation.instructions = creation.additional_instructions = "briefly"
    creation.metadata["k"] = "v"
    creation.tools.tools.append(function)
    # Without, it would wait for outputs.
    creation.tool_choice.mode = ToolChoiceMode.TOOL_CHOICE_MODE_NONE
    creation.response_format.json_schema.name = "n"
    creation.response_format.json_schema.schema_json = PARAMETERS
    creation.additional_messages[0].content.append(MessagePart())
    creation.additional_messages[0].content[-1].image_url.url = _PIXEL
    creation.new_thread.default_assistant_id = assistant.id

    listed = assistants.ListAssistantsRequest(page_size=1)
    messages = threads.ListMessagesRequest(thread_id=thread.id, page_size=1)
    tokens = (
        stubs.assistants.ListAssistants(listed).next_page_token,
        stubs.threads.ListMessages(messages).next_page_token,
    )
    listed.page_token, messages.page_token = tokens
    rating = runs.RateRunRequest(run_id=ended.id)
    rating.rating.verdict = RatingVerdict.RATING_VERDICT_GOOD
    rating.rating.comment = "good"
    assistant.response_format.json_schema.CopyFrom(creation.response_format.json_schema)
    # What changes these must not make the next change a stale one.
    for changed in (assistant, thread, first, ended):
        changed.ClearField("etag")
    requests = (
        assistants.CreateAssistantRequest(assistant=assistant),
        assistants.EnsureAssistantRequest(assistant=assistant),
        assistants.GetAssistantRequest(assistant_id=assistant.id, version=1),
        listed,
        assistants.ListAssistantVersionsRequest(assistant_id=assistant.id),
        assistants.UpdateAssistantRequest(assistant=assistant),
        assistants.DeleteAssistantRequest(assistant_id="asst_none"),
        threads.CreateThreadRequest(thread=thread, messages=[said("m")]),
        threads.GetThreadRequest(thread_id=thread.id),
        threads.ListThreadsRequest(user_id="u", metadata={"k": "v"}),
        threads.UpdateThreadRequest(thread=thread),
        threads.DeleteThreadRequest(thread_id="thread_none"),
        threads.ForkThreadRequest(thread_id=thread.id, message_id=first.id, thread=thread),
        threads.CreateMessageRequest(thread_id=thread.id, message=said("m")),
        threads.GetMessageRequest(thread_id=thread.id, message_id=first.id),
        messages,
        threads.UpdateMessageRequest(thread_id=thread.id, message=first),
        threads.DeleteMessageRequest(thread_id=thread.id, message_id="msg_none"),
        creation,
        runs.StreamRunRequest(create=creation),
        runs.WatchRunRequest(run_id=ended.id),
        runs.WaitRunRequest(run_id=ended.id),
        runs.GetRunRequest(run_id=ended.id),
        runs.ListRunsRequest(thread_id=ended.thread_id, assistant_id=assistant.id),
        runs.UpdateRunRequest(run=ended),
        runs.CancelRunRequest(run_id=ended.id),
        runs.SubmitToolOutputsRequest(
            run_id=waiting.id, tool_outputs=[ToolOutput(call_id=call_id, output="o"), ToolOutput(call_id="call_none")]
        ),
        runs.ListRunStepsRequest(run_id=waiting.id),
        runs.GetRunStepRequest(run_id=waiting.id, step_id=step.id),
        rating,
        user_data.DeleteUserDataRequest(user_id="nobody"),
        user_data.GetDeletionReceiptRequest(receipt_id="del_none"),
        user_data.ExportUserDataRequest(user_id="u"),
        usage.QueryUsageRequest(user_id="u", assistant_id=assistant.id, model=SCRIPTED_MODEL),
    )
    ids = (assistant.id, thread.id, second.id, waiting.id, step.id, call_id, ended.id)
    by_name = {type(request).__name__.removesuffix("Request"): request for request in requests}
    return Seeds(by_name, ids, tokens)
