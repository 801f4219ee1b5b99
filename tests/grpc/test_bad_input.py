"""What a hostile or careless caller sends: refused with the right code, nothing stored, the server as before."""

import gc
import gzip
import socket

import grpc
import psutil
import pytest

from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import CreateAssistantRequest, ListAssistantsRequest
from famulus.v1.message_pb2 import Message, MessageRole
from famulus.v1.run_service_pb2 import (
    CreateRunRequest,
    GetRunRequest,
    ListRunsRequest,
    StreamRunRequest,
    WaitRunRequest,
    WatchRunRequest,
)
from famulus.v1.thread_service_pb2 import CreateMessageRequest, GetThreadRequest, ListThreadsRequest
from famulus.v1.tool_pb2 import FunctionTool, Tool
from hostile import http2
from serving import Refusal, Stubs, refusal, said


def refused_bytes(channel: grpc.Channel, method: str, data: bytes) -> Refusal:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/famulus.v1.{method}")(data)  # type: ignore[arg-type]
    return refusal(caught.value)


def test_wrong_fields_are_named_with_their_paths(stubs: Stubs) -> None:
    create = CreateRunRequest(thread_id="t", additional_messages=[said("x"), said("")], max_turns=-1)
    with pytest.raises(grpc.RpcError) as caught:
        list(stubs.runs.StreamRun(StreamRunRequest(create=create)))
    told = refusal(caught.value)
    assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert told.fields == ["create.additional_messages[1].content[0].text.text", "create.max_turns"]


def test_refused_message_is_not_stored_and_does_not_use_up_its_request_id(stubs: Stubs) -> None:
    thread = stubs.new_thread()
    request = CreateMessageRequest(thread_id=thread.id, message=said(""), request_id=f"bad-{thread.id}")
    with pytest.raises(grpc.RpcError):
        stubs.threads.CreateMessage(request)
    assert stubs.threads.GetThread(GetThreadRequest(thread_id=thread.id)).thread == thread
    request.message.content[0].text.text = "good"
    assert stubs.threads.CreateMessage(request).message.sequence == 1


def test_refused_run_stores_neither_thread_nor_messages(stubs: Stubs) -> None:
    user = "owner of nothing"
    request = CreateRunRequest(assistant_id="asst_missing", additional_messages=[said("x")])
    request.new_thread.user_id = user
    with pytest.raises(grpc.RpcError) as caught:
        stubs.runs.CreateRun(request)
    assert refusal(caught.value).code == grpc.StatusCode.NOT_FOUND
    assert not stubs.threads.ListThreads(ListThreadsRequest(user_id=user)).threads


def test_system_role_does_not_exist(stubs: Stubs) -> None:
    message = said("obey")
    message.role = 3  # type: ignore[assignment]
    with pytest.raises(grpc.RpcError) as caught:
        stubs.threads.CreateMessage(CreateMessageRequest(thread_id="t", message=message))
    assert refusal(caught.value).fields == ["message.role"]


def test_129_tools_are_one_violation(stubs: Stubs) -> None:
    tools = [Tool(function=FunctionTool(name=f"f{number}")) for number in range(129)]
    with pytest.raises(grpc.RpcError) as caught:
        stubs.assistants.CreateAssistant(CreateAssistantRequest(assistant=Assistant(model="m", tools=tools)))
    assert refusal(caught.value).fields == ["assistant.tools"]


def test_100_000_messages_in_a_call_are_one_violation(stubs: Stubs) -> None:
    messages = [Message(role=MessageRole.MESSAGE_ROLE_USER)] * 100_000
    with pytest.raises(grpc.RpcError) as caught:
        stubs.runs.CreateRun(CreateRunRequest(thread_id="t", additional_messages=messages))
    assert refusal(caught.value).fields == ["additional_messages"]


def test_id_of_10_kb_is_invalid(stubs: Stubs) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stubs.runs.GetRun(GetRunRequest(run_id="r" * 10_240))
    assert refusal(caught.value).fields == ["run_id"]


def test_negative_page_size_is_invalid(stubs: Stubs) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stubs.runs.ListRuns(ListRunsRequest(page_size=-1))
    assert refusal(caught.value).fields == ["page_size"]


def test_page_token_with_a_flipped_bit_is_invalid(stubs: Stubs) -> None:
    for _ in range(2):
        stubs.new_assistant()
    token = stubs.assistants.ListAssistants(ListAssistantsRequest(page_size=1)).next_page_token
    flipped = token[:-3] + chr(ord(token[-3]) ^ 1) + token[-2:]
    with pytest.raises(grpc.RpcError) as caught:
        stubs.assistants.ListAssistants(ListAssistantsRequest(page_size=1, page_token=flipped))
    assert refusal(caught.value).reason == "INVALID_PAGE_TOKEN"


@pytest.mark.parametrize(
    "data", [b"\x0a\x7fab", b"\x0a\x02\xff\xfe", b"\x0b" * 200], ids=["truncated", "not UTF-8", "too deep"]
)
def test_bytes_that_are_no_request_are_malformed(grpc_channel: grpc.Channel, data: bytes) -> None:
    told = refused_bytes(grpc_channel, "RunService/GetRun", data)
    assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


def test_nul_is_named_wherever_it_stands(grpc_channel: grpc.Channel) -> None:
    message = said("a\0b")
    message.metadata["k\0"] = "v\0"
    request = CreateRunRequest(thread_id="t", additional_messages=[said("x"), message])
    request.tools.tools.add().function.description = "\0"
    told = refused_bytes(grpc_channel, "RunService/CreateRun", request.SerializeToString())
    assert set(told.fields) == {
        "additional_messages[1].content[0].text.text",
        "additional_messages[1].metadata",
        "tools.tools[0].function.description",
    }


def test_message_over_4_mib_is_refused_before_it_is_read(stubs: Stubs, grpc_channel: grpc.Channel) -> None:
    told = refused_bytes(grpc_channel, "RunService/GetRun", b"\x0a" * 4_300_000)
    assert told.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    stubs.new_thread()


def test_gzip_bomb_is_refused_at_its_unpacked_size(grpc_addr: str) -> None:
    with grpc.insecure_channel(grpc_addr, compression=grpc.Compression.Gzip) as channel:
        bomb = b"\0" * 100_000_000
        assert len(gzip.compress(bomb, 6)) < 200_000
        told = refused_bytes(channel, "RunService/GetRun", bomb)
    assert told.code == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"not":' * 200 + "{}" + "}" * 200, "must be nested at most 100 levels deep"),
        ('{"$ref": "https://example.com/schema"}', "is not a valid JSON Schema, at /"),
        ('{"pattern": "((a{1000}){1000}){1000}"}', "is not a valid JSON Schema, at /pattern"),
        ('{"description": "\\ud800"}', "must not contain halves of surrogate pairs"),
        ('{"maximum": ' + "9" * 5_000 + "}", "must not contain integers of more than 20 digits"),
        ('{"maximum": NaN}', "must not contain NaN or Infinity"),
        ('{"a": 1, "a": 2}', "must not have the same key twice in an object"),
    ],
    ids=["200 deep", "reference", "huge pattern", "surrogate", "digits", "NaN", "same key twice"],
)
def test_schema_that_somebody_would_choke_on_is_refused(stubs: Stubs, text: str, problem: str) -> None:
    function = Tool(function=FunctionTool(name="f", parameters_json=text))
    with pytest.raises(grpc.RpcError) as caught:
        stubs.new_assistant(tools=[function])
    told = refusal(caught.value)
    assert told.fields == ["assistant.tools[0].function.parameters_json"]
    assert told.message.endswith(problem)


@pytest.mark.parametrize("text", ['{"$ref": "#"}', '{"pattern": "^(a+)+$"}'], ids=["loop", "catastrophic pattern"])
def test_schema_that_would_only_be_slow_to_some_does_no_harm(stubs: Stubs, text: str) -> None:
    assert stubs.new_assistant(tools=[Tool(function=FunctionTool(name="f", parameters_json=text))]).tools


@pytest.mark.parametrize(
    "url",
    ["https://169.254.169.254/latest/meta-data/", "https://[fe80::1]/x", "https://127.0.0.1/x", "file:///etc/passwd"],
)
def test_image_that_points_inside_is_refused(stubs: Stubs, url: str) -> None:
    message = said("look")
    message.content.add().image_url.url = url
    with pytest.raises(grpc.RpcError) as caught:
        stubs.new_thread([message])
    assert refusal(caught.value).fields == ["messages[0].content[1].image_url.url"]


def test_sequence_below_zero_is_invalid_and_one_behind_the_end_out_of_range(stubs: Stubs) -> None:
    create = CreateRunRequest(assistant_id=stubs.new_assistant().id, additional_messages=[said("hello")])
    create.new_thread.SetInParent()
    run = stubs.runs.WaitRun(WaitRunRequest(run_id=stubs.runs.CreateRun(create).run.id)).run
    for sequence, reason in ((-1, "INVALID_FIELD"), (-(2**63), "INVALID_FIELD"), (2**63 - 1, "SEQUENCE_OUT_OF_RANGE")):
        with pytest.raises(grpc.RpcError) as caught:
            list(stubs.runs.WatchRun(WatchRunRequest(run_id=run.id, after_sequence=sequence)))
        assert refusal(caught.value).reason == reason


def test_memory_that_large_requests_take_is_given_back(grpc_channel: grpc.Channel, grpc_addr: str) -> None:
    many = CreateRunRequest(thread_id="t", additional_messages=[Message(role=MessageRole.MESSAGE_ROLE_USER)] * 100_000)
    large, crowd, bomb = b"\x0a" * 20_000_000, many.SerializeToString(), b"\0" * 20_000_000

    def send_all() -> int:
        with grpc.insecure_channel(grpc_addr, compression=grpc.Compression.Gzip) as zipping:
            refused_bytes(zipping, "RunService/GetRun", bomb)
        refused_bytes(grpc_channel, "RunService/GetRun", large)
        refused_bytes(grpc_channel, "RunService/CreateRun", crowd)
        gc.collect()
        return psutil.Process().memory_info().rss

    before = max(send_all() for _ in range(2))
    after = min(send_all() for _ in range(4))
    # Were any of the three left behind, it would be 40 MB at least.
    assert after - before < 25_000_000


@pytest.mark.parametrize(
    "metadata",
    [[("x-big", "v" * 20_000)], [(f"x-{number}", "v") for number in range(2_000)]],
    ids=["20 KB", "2,000 keys"],
)
def test_too_much_metadata_is_refused(stubs: Stubs, metadata: list[tuple[str, str]]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stubs.runs.GetRun(GetRunRequest(run_id="r"), metadata=tuple(metadata))
    assert refusal(caught.value).code == grpc.StatusCode.RESOURCE_EXHAUSTED
    stubs.new_thread()


def test_tenant_named_in_metadata_means_nothing(stubs: Stubs) -> None:
    thread = stubs.new_thread()
    request = GetThreadRequest(thread_id=thread.id)
    assert stubs.threads.GetThread(request, metadata=(("tenant", "other"), ("x-tenant", "other"))).thread == thread


@pytest.mark.parametrize(
    "value", [b"a\r\nx: y", b"a\nx: y", b"\0x: y", b"\xffx: y"], ids=["CR LF", "LF", "NUL", "bytes"]
)
def test_metadata_that_no_client_library_sends_neither_hurts_the_server_nor_gets_into_its_log(
    stubs: Stubs, grpc_addr: str, capsys: pytest.CaptureFixture[str], value: bytes
) -> None:
    request = GetRunRequest(run_id="r").SerializeToString()
    assert http2.call(grpc_addr, "/famulus.v1.RunService/GetRun", request, [(b"x-request-id", value)])
    stubs.new_thread()
    logged = capsys.readouterr().out
    assert "CreateThread" in logged
    assert "x: y" not in logged


def test_what_is_no_http2_does_not_hurt_the_server(stubs: Stubs, grpc_addr: str) -> None:
    host, _, port = grpc_addr.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(range(256)) * 100)
    stubs.new_thread()
