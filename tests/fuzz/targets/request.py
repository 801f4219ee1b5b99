"""A request off the wire, through validation to the status of its refusal. The first byte says of which RPC."""

from google.protobuf.timestamp_pb2 import Timestamp

from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import CreateAssistantRequest
from famulus.v1.message_pb2 import MessageRole
from famulus.v1.run_service_pb2 import CreateRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import CreateThreadRequest, ListThreadsRequest
from famulus_server.api.errors import status_of
from famulus_server.api.validation import assistants, runs, threads
from famulus_server.api.wire import checked, reading
from famulus_server.errors import FamulusError

_MOST_STATUS_BYTES = 6 * 1024  # clients refuse more than 8 KiB of headers in all
_METHODS = (
    (CreateRunRequest, runs.check_create),
    (CreateAssistantRequest, assistants.check_create),
    (CreateThreadRequest, threads.check_create),
    (ListThreadsRequest, threads.check_list),
)


def _run() -> bytes:
    request = CreateRunRequest(thread_id="thread_1", model="m", request_id="r", metadata={"k": "v"}, temperature=1)
    message = request.additional_messages.add(role=MessageRole.MESSAGE_ROLE_USER)
    message.content.add().text.text = "hello"
    message.content.add().image_url.url = "https://example.com/x.png"
    function = request.tools.tools.add().function
    function.name, function.parameters_json = "f", '{"type": "object"}'
    request.ttl.seconds = 60
    return request.SerializeToString()


SEEDS = (
    b"\0" + _run(),
    b"\x01" + CreateAssistantRequest(assistant=Assistant(model="m", name="n")).SerializeToString(),
    b"\x02" + CreateThreadRequest(thread=Thread(title="t", metadata={"k": "v"})).SerializeToString(),
    b"\x03" + ListThreadsRequest(page_size=1, page_token="x", active_after=Timestamp(seconds=1)).SerializeToString(),
)


def try_input(data: bytes) -> None:
    request, check = _METHODS[data[0] % len(_METHODS)] if data else _METHODS[0]
    try:
        check(checked(reading(request.FromString)(data[1:])))
    except FamulusError as refused:
        status = status_of(refused)
        assert status.message
        assert status.ByteSize() < _MOST_STATUS_BYTES
