"""The clients and the real server, with a connection that is cut."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from clients.python.conftest import Follow
from clients.python.cutting_proxy import CuttingProxy
from famulus import FamulusClient, FamulusSyncClient
from famulus.v1 import error_reason_pb2 as reasons
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import EnsureAssistantRequest
from famulus.v1.message_pb2 import Message, MessagePart, MessageRole, TextPart
from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2 import CreateRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus.v1.tool_pb2 import FunctionTool, Tool
from famulus.v1.usage_service_pb2 import QueryUsageRequest, UsageDimension
from famulus.v1.user_data_service_pb2 import DeleteUserDataRequest, GetDeletionReceiptRequest
from serving import ServerThread, settings_in

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WORDS = " ".join(f"word-{number}" for number in range(60))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("server")
    thread = ServerThread(settings_in(folder))
    running = thread.start()
    try:
        yield running.address
    finally:
        thread.stop()


def saying(target: str, text: str) -> CreateRunRequest:
    """A run of an assistant with one tool, on a new thread."""
    tool = FunctionTool(name="get_weather", parameters_json=json.dumps(SCHEMA))
    assistant = Assistant(model="scripted", tools=[Tool(function=tool)])
    with FamulusSyncClient(target) as client:
        ensured = client.assistants.EnsureAssistant(EnsureAssistantRequest(assistant=assistant))
    content = [MessagePart(text=TextPart(text=text))]
    return CreateRunRequest(
        request_id=str(uuid.uuid4()),
        new_thread=Thread(),
        assistant_id=ensured.assistant.id,
        additional_messages=[Message(role=MessageRole.MESSAGE_ROLE_USER, content=content)],
    )


async def test_a_connection_that_is_reset_changes_nothing_that_the_user_sees(server: str, follow: Follow) -> None:
    create = saying(server, WORDS)
    proxy = CuttingProxy(server, [400, 1_000, 2_000, 3_000])
    async with proxy.listening() as address:
        seen = await follow(address, create=create)
    uncut = await follow(server, create=create)
    assert seen.error is None
    assert proxy.cuts >= 2
    assert seen.events == uncut.events
    assert seen.view.text == f"You said: {WORDS}"
    assert seen.view.result().run.state == RunState.RUN_STATE_COMPLETED


async def test_a_stream_can_be_joined_after_any_event(server: str, follow: Follow) -> None:
    create = saying(server, "Hello there")
    uncut = await follow(server, create=create)
    for position, event in enumerate(uncut.events, 1):
        seen = await follow(server, create=create, after_sequence=event.sequence)
        assert seen.events == uncut.events[position:]
        assert seen.view.finished


async def test_a_tool_is_called_once_by_the_real_run(server: str, follow: Follow) -> None:
    cities: list[str] = []

    def get_weather(city: str) -> str:
        cities.append(city)
        return f"sunny in {city}"

    proxy = CuttingProxy(server, [800, 1_500, 1_500])
    async with proxy.listening() as address:
        seen = await follow(
            address, create=saying(server, "Call get_weather please"), tools={"get_weather": get_weather}
        )
    assert seen.error is None
    assert len(cities) == 1
    assert f"sunny in {cities[0]}" in seen.view.text


async def test_what_runs_used_is_asked_for_by_either_client(server: str, follow: Follow) -> None:
    await follow(server, create=saying(server, "Hello there"))
    request = QueryUsageRequest(group_by=[UsageDimension.USAGE_DIMENSION_MODEL])
    async with FamulusClient(server) as client:
        [row] = (await client.usage.QueryUsage(request)).rows
    assert row.model == "scripted"
    assert row.usage.total_tokens > 0
    with FamulusSyncClient(server) as sync_client:
        assert sync_client.usage.QueryUsage(request).currency == "USD"


async def test_receipt_that_one_client_got_is_read_by_the_other(server: str) -> None:
    with FamulusSyncClient(server) as sync_client:
        receipt = sync_client.user_data.DeleteUserData(DeleteUserDataRequest(user_id="nobody")).receipt
    request = GetDeletionReceiptRequest(receipt_id=receipt.id)
    async with FamulusClient(server) as client:
        assert (await client.user_data.GetDeletionReceipt(request)).receipt == receipt


async def test_refusals_of_the_real_server_are_explained(server: str, follow: Follow) -> None:
    unknown = await follow(server, run_id="run_unknown")
    assert unknown.error is not None
    assert unknown.error.code is grpc.StatusCode.NOT_FOUND
    assert unknown.error.reason == reasons.ERROR_REASON_RESOURCE_NOT_FOUND
    wrong = await follow(server, create=CreateRunRequest(max_turns=-1))
    assert wrong.error is not None
    assert wrong.error.reason == reasons.ERROR_REASON_INVALID_FIELD
    assert wrong.error.violations
