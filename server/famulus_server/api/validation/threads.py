"""Threads, and the requests of ThreadService about them."""

from google.protobuf.duration_pb2 import Duration

from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import (
    CreateThreadRequest,
    DeleteThreadRequest,
    ForkThreadRequest,
    GetThreadRequest,
    ListThreadsRequest,
    UpdateThreadRequest,
)
from famulus_server.api.validation import masks
from famulus_server.api.validation.fields import Fields
from famulus_server.api.validation.messages import check_messages
from famulus_server.api.validation.tools import check_tool_resources

_MOST_USER_ID = 256
_MOST_TITLE = 256
_MUTABLE = ("title", "default_assistant_id", "tool_resources", "metadata", "retention")
_MOST_KEPT_SECONDS = 3_650 * 86_400
_NANOS = 1_000_000_000


def check_create(request: CreateThreadRequest) -> None:
    with Fields() as fields:
        fields.request_id(request.request_id)
        check_thread(fields.at("thread"), request.thread)
        check_messages(fields, "messages", request.messages)


def check_get(request: GetThreadRequest) -> None:
    with Fields() as fields:
        fields.id("thread_id", request.thread_id)


def check_list(request: ListThreadsRequest) -> None:
    with Fields() as fields:
        fields.page(request)
        fields.text("user_id", request.user_id, most=_MOST_USER_ID)
        fields.metadata("metadata", request.metadata)
        fields.time("active_after", request.active_after)
        fields.time("active_before", request.active_before)


def check_update(request: UpdateThreadRequest) -> list[str]:
    """Returns the fields to change."""
    with Fields() as fields:
        if fields.present("thread", request):
            at = fields.at("thread")
            at.id("id", request.thread.id)
            check_thread(at, request.thread)
        return masks.paths(fields, request.thread, request.update_mask.paths, _MUTABLE)


def check_delete(request: DeleteThreadRequest) -> None:
    with Fields() as fields:
        fields.id("thread_id", request.thread_id)


def check_fork(request: ForkThreadRequest) -> None:
    with Fields() as fields:
        fields.request_id(request.request_id)
        fields.id("thread_id", request.thread_id)
        fields.id("message_id", request.message_id, required=False)
        check_thread(fields.at("thread"), request.thread)


def check_thread(fields: Fields, thread: Thread) -> None:
    """A thread as callers write it."""
    fields.text("user_id", thread.user_id, most=_MOST_USER_ID)
    fields.text("title", thread.title, most=_MOST_TITLE)
    fields.id("default_assistant_id", thread.default_assistant_id, required=False)
    fields.metadata("metadata", thread.metadata)
    if thread.HasField("tool_resources"):
        check_tool_resources(fields.at("tool_resources"), thread.tool_resources)
    if thread.HasField("retention"):
        for name in ("after_create", "after_last_activity"):
            if thread.retention.HasField(name) and not _is_kept(getattr(thread.retention, name)):
                fields.wrong(f"retention.{name}", "must be between 1 second and 3,650 days")


def _is_kept(kept: Duration) -> bool:
    return 0 <= kept.nanos < _NANOS and _NANOS <= kept.seconds * _NANOS + kept.nanos <= _MOST_KEPT_SECONDS * _NANOS
