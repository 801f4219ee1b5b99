"""Messages, and the requests of ThreadService about them."""

from collections.abc import Sequence

from famulus.v1.message_pb2 import Attachment, AttachmentTool, ImageDetail, Message, MessagePart, MessageRole
from famulus.v1.thread_service_pb2 import (
    CreateMessageRequest,
    DeleteMessageRequest,
    GetMessageRequest,
    ListMessagesRequest,
    ListOrder,
    UpdateMessageRequest,
)
from famulus_server.api.validation import images, masks
from famulus_server.api.validation.fields import Fields

_MOST_MESSAGES = 100
_MOST_PARTS = 1_000
_MOST_TEXT = 256_000
_MOST_ATTACHMENTS = 20


def check_create(request: CreateMessageRequest) -> None:
    with Fields() as fields:
        fields.request_id(request.request_id)
        fields.id("thread_id", request.thread_id)
        if fields.present("message", request):
            _check_message(fields.at("message"), request.message)


def check_get(request: GetMessageRequest) -> None:
    with Fields() as fields:
        fields.id("thread_id", request.thread_id)
        fields.id("message_id", request.message_id)


def check_list(request: ListMessagesRequest) -> None:
    with Fields() as fields:
        fields.id("thread_id", request.thread_id)
        fields.page(request)
        fields.known("order", request.order, ListOrder)
        fields.id("run_id", request.run_id, required=False)
        fields.at_least("after_sequence", request.after_sequence, 0)


def check_update(request: UpdateMessageRequest) -> None:
    with Fields() as fields:
        fields.id("thread_id", request.thread_id)
        if fields.present("message", request):
            at = fields.at("message")
            at.id("id", request.message.id)
            at.metadata("metadata", request.message.metadata)
        masks.paths(fields, request.message, request.update_mask.paths, ("metadata",))


def check_delete(request: DeleteMessageRequest) -> None:
    with Fields() as fields:
        fields.id("thread_id", request.thread_id)
        fields.id("message_id", request.message_id)


def check_messages(fields: Fields, name: str, messages: Sequence[Message]) -> None:
    """Messages that a thread or a run begins with."""
    if fields.few(name, messages, _MOST_MESSAGES):
        for index, message in enumerate(messages):
            _check_message(fields.at(name, index), message)


def _check_message(fields: Fields, message: Message) -> None:
    fields.known("role", message.role, MessageRole, required=True)
    fields.metadata("metadata", message.metadata)
    if fields.few("content", message.content, _MOST_PARTS, least=1):
        for index, part in enumerate(message.content):
            _check_part(fields.at("content", index), part)
        if sum(len(part.text.text) for part in message.content) > _MOST_TEXT:
            fields.wrong("content", f"must have at most {_MOST_TEXT:,} characters of text in all")
    if fields.few("attachments", message.attachments, _MOST_ATTACHMENTS):
        for index, attachment in enumerate(message.attachments):
            _check_attachment(fields.at("attachments", index), attachment)


def _check_part(fields: Fields, part: MessagePart) -> None:
    match part.WhichOneof("part"):
        case "text":
            if not part.text.text:
                fields.wrong("text.text", "is required")
        case "image_url":
            if problem := images.problem(part.image_url.url):
                fields.wrong("image_url.url", problem)
            fields.known("image_url.detail", part.image_url.detail, ImageDetail)
        case "image_file":
            fields.id("image_file.file_id", part.image_file.file_id)
            fields.known("image_file.detail", part.image_file.detail, ImageDetail)
        case "refusal":
            fields.wrong("refusal", "is written by models only")
        case None:
            fields.wrong("part", "is required, of a kind that this server knows")


def _check_attachment(fields: Fields, attachment: Attachment) -> None:
    fields.id("file_id", attachment.file_id)
    if fields.few("tools", attachment.tools, len(AttachmentTool.values()), least=1):
        for index, tool in enumerate(attachment.tools):
            fields.known(f"tools[{index}]", tool, AttachmentTool, required=True)
