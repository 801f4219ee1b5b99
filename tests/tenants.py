"""Callers of several tenants on one server, what one of them has, and how others may ask for it.

The tenant of a call stands in a header here, so that tests need no credentials: the server knows no such header.
"""

import importlib
import pkgutil
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.message_factory import GetMessageClass

from famulus import v1
from famulus.v1.run_pb2 import RatingVerdict, RunRating
from famulus.v1.run_service_pb2 import CreateRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus.v1.tool_pb2 import FunctionTool, Tool, ToolOutput
from famulus.v1.usage_service_pb2 import UsageDimension
from famulus_server.api.calls import Call, Caller, Method, Proceed
from famulus_server.config import SCRIPTED_MODEL
from serving import Refusal, refusal, said

HEADER = "x-test-tenant"
# Fields that differ from call to call.
VARYING = "state|last_sequence|attempt|sequence|etag|user_hmac|statement_json|signature"
WEATHER = Tool(function=FunctionTool(name="get_weather", parameters_json='{"type": "object"}'))
BY_ASSISTANT = [UsageDimension.USAGE_DIMENSION_ASSISTANT]


class HeaderCaller:
    """In place of `OneCaller`: the caller is of the tenant that a header names."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def around(self, _: Method, proceed: Proceed) -> Proceed:
        async def know(call: Call) -> None:
            tenant = dict(call.headers).get(HEADER, self._caller.tenant)
            call.caller = replace(self._caller, tenant=str(tenant))
            await proceed(call)

        return know


def services() -> frozenset[str]:
    """The full names of all services of the API."""
    return frozenset(method.containing_service.full_name for method in METHODS.values())


def _methods() -> Iterator[tuple[str, MethodDescriptor]]:
    for module in pkgutil.iter_modules(v1.__path__):
        if module.name.endswith("_service_pb2"):
            file = importlib.import_module(f"famulus.v1.{module.name}").DESCRIPTOR
            for service in file.services_by_name.values():
                yield from ((method.name, method) for method in service.methods)


# All RPCs of the API; no two services have one of the same name.
METHODS: Mapping[str, MethodDescriptor] = dict(_methods())


class Client:
    """Calls any method as a caller of one tenant."""

    def __init__(self, channel: grpc.Channel, tenant: str) -> None:
        self._channel = channel
        self.tenant = tenant

    def call(self, name: str, **fields: Any) -> Any:
        """The response; of a stream the last one."""
        return self.send(name, GetMessageClass(METHODS[name].input_type)(**fields))

    def send(self, name: str, request: ProtoMessage) -> Any:
        """The same, for a request that is there already."""
        method = METHODS[name]
        path = f"/{method.containing_service.full_name}/{name}"
        make = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        ask: Callable[..., Any] = make(path, _serialized, GetMessageClass(method.output_type).FromString)
        answer = ask(request, metadata=((HEADER, self.tenant),), timeout=10)
        return list(answer)[-1] if method.server_streaming else answer

    def outcome(self, name: str, request: ProtoMessage) -> ProtoMessage | Refusal:
        """The response, or how the call is refused."""
        try:
            answer: ProtoMessage = self.send(name, request)
        except grpc.RpcError as error:
            return refusal(error)
        return answer


def _serialized(request: ProtoMessage) -> bytes:
    return request.SerializeToString()


# What a tenant has, by what it is: ids, a user, a request id, page tokens.
Belongings = Mapping[str, str]


def furnish(client: Client) -> Belongings:
    """Gives a tenant something of everything: two threads, one with a finished run that called a tool and one whose run
    waits for outputs, two assistants, one of them with two versions; and a page token for every list."""
    tenant = client.tenant
    # Long, as it is looked for in all that others are told.
    had = {"user": f"user-of-{tenant}", "request": f"request-of-{tenant}", "word": f"word-of-{tenant}"}
    once = {"request_id": had["request"]}
    plain = {"model": SCRIPTED_MODEL, "tools": [WEATHER]}
    had["assistant"] = client.call("CreateAssistant", assistant=plain, **once).assistant.id
    client.call(
        "UpdateAssistant", assistant={"id": had["assistant"], "name": had["word"]}, update_mask={"paths": ["name"]}
    )
    had["ensured"] = client.call("EnsureAssistant", assistant={"model": SCRIPTED_MODEL}).assistant.id
    thread = Thread(user_id=had["user"], title=had["word"], metadata={"word": had["word"]})
    had["thread"] = client.call("CreateThread", thread=thread, **once).thread.id
    asking = said(f"{had['word']}: please get_weather")
    had["message"] = client.call("CreateMessage", thread_id=had["thread"], message=asking, **once).message.id
    run = {"thread_id": had["thread"], "assistant_id": had["assistant"]}
    had["run"] = client.call("CreateRun", **run, **once).run.id
    client.call("SubmitToolOutputs", run_id=had["run"], tool_outputs=answered(client, had["run"]), **once)
    client.call("WaitRun", run_id=had["run"])
    client.call("RateRun", run_id=had["run"], rating=good(had["word"]), **once)
    had["step"] = client.call("ListRunSteps", run_id=had["run"]).steps[0].id
    fork = client.call("ForkThread", thread_id=had["thread"], message_id=had["message"], **once)
    had["fork"] = fork.thread.id
    had["waiting"] = client.call("CreateRun", thread_id=had["fork"], assistant_id=had["assistant"]).run.id
    had["call"] = answered(client, had["waiting"])[0].call_id
    other = CreateRunRequest(new_thread=Thread(), assistant_id=had["ensured"], additional_messages=[said("hello")])
    client.call("StreamRun", create=other)
    had["receipt"] = client.call("DeleteUserData", user_id=f"former-{had['user']}").receipt.id
    for name, fields in lists(had).items():
        had[name] = client.call(name, page_size=1, **fields).next_page_token
    assert all(had.values())
    return had


def lists(its: Belongings) -> Mapping[str, dict[str, Any]]:
    """Every list, of which a tenant has more than one page."""
    return {
        "ListAssistants": {},
        "ListAssistantVersions": {"assistant_id": its["assistant"]},
        "ListThreads": {},
        "ListMessages": {"thread_id": its["thread"]},
        "ListRuns": {},
        "ListRunSteps": {"run_id": its["run"]},
        "QueryUsage": {"group_by": BY_ASSISTANT},
    }


LISTS = tuple(lists(defaultdict(str)))


def good(comment: str) -> RunRating:
    return RunRating(verdict=RatingVerdict.RATING_VERDICT_GOOD, comment=comment)


def answered(client: Client, run_id: str) -> list[ToolOutput]:
    """Outputs for what a run waits for."""
    calls = client.call("WaitRun", run_id=run_id).run.required_action.tool_calls
    return [ToolOutput(call_id=call.id, output="sunny") for call in calls]


def twins(its: Belongings) -> Belongings:
    """The same names of nothing: ids that were never given out, tokens that were damaged."""
    return {name: value[:-6] + ("ZZZZZZ" if not name[0].isupper() else "AAAAAA") for name, value in its.items()}


def everything(client: Client, its: Belongings) -> list[ProtoMessage]:
    """All that a tenant sees of its belongings."""
    answers = [client.call(name, **fields) for name, fields in lists(its).items()]
    answers += [client.call("GetAssistant", assistant_id=its["assistant"])]
    answers += [client.call("ListMessages", thread_id=its[name]) for name in ("thread", "fork")]
    answers += [client.call("GetRun", run_id=its[name]) for name in ("run", "waiting")]
    answers += [client.call("ListRunSteps", run_id=its["waiting"]), client.call("WatchRun", run_id=its["run"])]
    return answers


def masked(answer: ProtoMessage | Refusal, its: Belongings, own: Belongings) -> str:
    """An answer without what differs between two calls: what was asked for by name, what is the caller's, other ids,
    times, how far a run is that was just made, what a receipt is signed with."""
    if isinstance(answer, Refusal):
        text = f"{answer.code} {answer.message} {answer.raw!r}"
    else:
        text = str(answer)
        text = re.sub(r"\w+_time \{[^}]*\}", "", text)
        text = re.sub(
            r"(?m)^\s*(state|last_sequence|attempt|sequence|etag|user_hmac|statement_json|signature): .*\n", "", text
        )
    for whose, had in (("its", its), ("own", own)):
        for name, value in had.items():
            text = text.replace(value, f"<{whose} {name}>")
    return re.sub(r"\b(asst|thread|msg|run|step|del)_\w{26}\b", "<other>", text)


def naming_fields(message: Descriptor) -> Iterator[str]:
    """The fields of a request by which something of a tenant's can be named."""
    for field in message.fields:
        if field.type == FieldDescriptor.TYPE_STRING and re.search(r"^id$|_id$|_token$", field.name):
            yield field.name
        elif field.message_type is not None and field.message_type.name.endswith("Request"):
            yield from (f"{field.name}.{inner}" for inner in naming_fields(field.message_type))


def named_by(request: ProtoMessage, path: str) -> str:
    """What a field of a request says."""
    value: Any = request
    for name in path.split("."):
        value = getattr(value, name)
    return str(value)


def requests(its: Belongings, own: Belongings) -> Mapping[str, Sequence[ProtoMessage]]:
    """For every RPC the requests that name what somebody has, the first of them nothing else; `own` is the caller's.

    In an order in which the owner can make them all: what deletes comes last.
    """
    token = {name: its[name] for name in lists(its)}
    once = {"request_id": its["request"]}
    run = {"run_id": its["run"]}
    thread = {"thread_id": its["thread"]}
    message = {"id": its["message"], "metadata": {"k": "v"}}
    outputs = [ToolOutput(call_id=its["call"], output="rain")]
    own_run = {"thread_id": own["thread"], "assistant_id": own["assistant"], "additional_messages": [said("hi")]}
    their_run = {"thread_id": its["thread"], "assistant_id": its["assistant"], "additional_messages": [said("hi")]}
    table: dict[str, list[dict[str, Any]]] = {
        "CreateAssistant": [{"assistant": {"model": SCRIPTED_MODEL}, **once}],
        "EnsureAssistant": [{"assistant": {"model": SCRIPTED_MODEL}}],
        "GetAssistant": [{"assistant_id": its["assistant"]}, {"assistant_id": its["assistant"], "version": 1}],
        "ListAssistants": [{"page_token": token["ListAssistants"]}],
        "ListAssistantVersions": [
            {"assistant_id": its["assistant"]},
            {"assistant_id": its["assistant"], "page_token": token["ListAssistantVersions"]},
            {"assistant_id": own["assistant"], "page_token": token["ListAssistantVersions"]},
        ],
        "UpdateAssistant": [
            {"assistant": {"id": its["assistant"], "name": "mine"}, "update_mask": {"paths": ["name"]}},
        ],
        "CreateThread": [{"thread": {"title": "t"}, **once}],
        "GetThread": [thread],
        "ListThreads": [
            {"user_id": its["user"]},
            {"page_token": token["ListThreads"]},
            {"metadata": {"word": its["word"]}},
        ],
        "UpdateThread": [{"thread": {"id": its["thread"], "title": "mine"}, "update_mask": {"paths": ["title"]}}],
        "ForkThread": [
            {**thread, "message_id": its["message"], **once},
            thread,
            {"thread_id": own["thread"], "message_id": its["message"]},
        ],
        "CreateMessage": [{**thread, "message": said("hi"), **once}, {**thread, "message": said("hi")}],
        "GetMessage": [
            {**thread, "message_id": its["message"]},
            {"thread_id": own["thread"], "message_id": its["message"]},
        ],
        "ListMessages": [
            thread,
            {**thread, "page_token": token["ListMessages"]},
            {**thread, "run_id": its["run"]},
            {"thread_id": own["thread"], "run_id": its["run"]},
            {"thread_id": own["thread"], "page_token": token["ListMessages"]},
        ],
        "UpdateMessage": [
            {**thread, "message": message, "update_mask": {"paths": ["metadata"]}},
            {"thread_id": own["thread"], "message": message, "update_mask": {"paths": ["metadata"]}},
        ],
        "GetRun": [run],
        "ListRuns": [
            thread,
            {"assistant_id": its["assistant"]},
            {"page_token": token["ListRuns"]},
        ],
        "UpdateRun": [{"run": {"id": its["run"], "metadata": {"k": "v"}}, "update_mask": {"paths": ["metadata"]}}],
        "WaitRun": [run, {"run_id": its["waiting"]}],
        "WatchRun": [run],
        "ListRunSteps": [
            run,
            {**run, "page_token": token["ListRunSteps"]},
            {"run_id": own["run"], "page_token": token["ListRunSteps"]},
        ],
        "GetRunStep": [{**run, "step_id": its["step"]}, {"run_id": own["run"], "step_id": its["step"]}],
        "RateRun": [{**run, "rating": good("mine"), **once}, {**run, "rating": good("mine")}],
        "SubmitToolOutputs": [
            {"run_id": its["waiting"], "tool_outputs": outputs},
            {"run_id": own["waiting"], "tool_outputs": outputs},
            {"run_id": its["waiting"], "tool_outputs": outputs, **once},
        ],
        "CancelRun": [{"run_id": its["waiting"]}, run],
        "CreateRun": [
            their_run,
            {**own_run, "assistant_id": its["assistant"]},
            {**own_run, "thread_id": its["thread"]},
            {**own_run, **once},
        ],
        "StreamRun": [
            {"create": {**their_run, **once}},
            {"create": {**own_run, "assistant_id": its["assistant"]}},
            {"create": {**own_run, "thread_id": its["thread"]}},
        ],
        "QueryUsage": [
            {"user_id": its["user"]},
            {"assistant_id": its["assistant"]},
            {"group_by": BY_ASSISTANT, "page_token": token["QueryUsage"]},
        ],
        "DeleteMessage": [
            {**thread, "message_id": its["message"]},
            {"thread_id": own["thread"], "message_id": its["message"]},
        ],
        "DeleteAssistant": [{"assistant_id": its["assistant"]}, {"assistant_id": its["assistant"], "etag": "1"}],
        "DeleteThread": [thread, {**thread, "etag": "1"}],
        "ExportUserData": [{"user_id": its["user"]}],
        "GetDeletionReceipt": [{"receipt_id": its["receipt"]}],
        "DeleteUserData": [{"user_id": its["user"]}, {"user_id": its["user"], **once}],
    }
    return {
        name: [GetMessageClass(METHODS[name].input_type)(**fields) for fields in listed]
        for name, listed in table.items()
    }
