from datetime import timedelta

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from famulus.v1.message_pb2 import Message
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import (
    CreateMessageRequest,
    CreateThreadRequest,
    DeleteMessageRequest,
    DeleteThreadRequest,
    ForkThreadRequest,
    GetMessageRequest,
    GetThreadRequest,
    ListMessagesRequest,
    ListOrder,
    ListThreadsRequest,
    UpdateMessageRequest,
    UpdateThreadRequest,
)
from famulus.v1.tool_pb2 import ToolResources
from serving import Stubs, refusal, said


def texts(stubs: Stubs, request: ListMessagesRequest) -> list[str]:
    """What a list shows, over all its pages."""
    shown: list[str] = []
    while True:
        answer = stubs.threads.ListMessages(request)
        shown += [message.content[0].text.text for message in answer.messages]
        if not answer.next_page_token:
            return shown
        request.page_token = answer.next_page_token


def test_thread_is_created_read_updated_and_deleted(stubs: Stubs) -> None:
    made = stubs.new_thread([said("a")], title="t", user_id="u")
    assert made.last_message_sequence == 1
    changed = stubs.threads.UpdateThread(
        UpdateThreadRequest(thread=Thread(id=made.id, etag=made.etag), update_mask=FieldMask(paths=["title"]))
    ).thread
    assert (changed.title, changed.user_id) == ("", "u")
    stubs.threads.DeleteThread(DeleteThreadRequest(thread_id=made.id))
    with pytest.raises(grpc.RpcError) as caught:
        stubs.threads.GetThread(GetThreadRequest(thread_id=made.id))
    assert refusal(caught.value).code == grpc.StatusCode.NOT_FOUND


def test_threads_are_listed_by_owner_metadata_and_activity(stubs: Stubs) -> None:
    mine = stubs.new_thread(user_id="owner-1", metadata={"topic": "tax", "x": "1"})
    stubs.new_thread(user_id="owner-1", metadata={"topic": "law"})
    stubs.new_thread(user_id="owner-2", metadata={"topic": "tax"})
    later = Timestamp()
    later.FromDatetime(mine.last_activity_time.ToDatetime() + timedelta(days=1))

    def found(**which: object) -> set[str]:
        request = ListThreadsRequest(user_id="owner-1", metadata={"topic": "tax"}, **which)  # type: ignore[arg-type]
        return {thread.id for thread in stubs.threads.ListThreads(request).threads}

    assert found() == {mine.id}
    assert found(active_after=mine.last_activity_time, active_before=later) == {mine.id}
    assert found(active_after=later) == set()


@pytest.mark.parametrize("page_size", [1, 2, 3, 4, 100])
def test_messages_are_listed_in_both_orders_whatever_the_page_size(stubs: Stubs, page_size: int) -> None:
    thread = stubs.new_thread([said(text) for text in "abcde"])

    def shown(**which: object) -> str:
        request = ListMessagesRequest(thread_id=thread.id, page_size=page_size, **which)  # type: ignore[arg-type]
        return "".join(texts(stubs, request))

    assert shown() == "edcba"
    assert shown(order=ListOrder.LIST_ORDER_ASCENDING) == "abcde"
    assert shown(order=ListOrder.LIST_ORDER_DESCENDING, after_sequence=2) == "edc"
    assert shown(order=ListOrder.LIST_ORDER_ASCENDING, after_sequence=2) == "cde"


def test_message_is_appended_read_updated_and_deleted(stubs: Stubs) -> None:
    thread = stubs.new_thread()
    made = stubs.threads.CreateMessage(CreateMessageRequest(thread_id=thread.id, message=said("a"))).message
    assert made.sequence == 1
    change = UpdateMessageRequest(thread_id=thread.id, message=Message(id=made.id, metadata={"k": "v"}))
    assert dict(stubs.threads.UpdateMessage(change).message.metadata) == {"k": "v"}
    stubs.threads.DeleteMessage(DeleteMessageRequest(thread_id=thread.id, message_id=made.id))
    with pytest.raises(grpc.RpcError) as caught:
        stubs.threads.GetMessage(GetMessageRequest(thread_id=thread.id, message_id=made.id))
    assert refusal(caught.value).code == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("user", ["owner-1", "", "owner-2"])
def test_fork_takes_over_what_is_personal_for_the_same_user_only(stubs: Stubs, user: str) -> None:
    files = ToolResources(code_interpreter_file_ids=["file_1"], file_search_vector_store_ids=["vs_1"])
    own = Thread(user_id="owner-1", title="mine", metadata={"topic": "tax"}, tool_resources=files)
    own.retention.on_completion = True
    origin = stubs.threads.CreateThread(CreateThreadRequest(thread=own)).thread
    fork = stubs.threads.ForkThread(ForkThreadRequest(thread_id=origin.id, thread=Thread(user_id=user))).thread
    assert fork.retention == own.retention
    if user == "owner-2":
        assert (fork.title, dict(fork.metadata), fork.HasField("tool_resources")) == ("", {}, False)
    else:
        assert (fork.title, fork.metadata, fork.tool_resources) == (own.title, own.metadata, files)


def test_fork_shares_messages_up_to_one_of_them(stubs: Stubs) -> None:
    thread = stubs.new_thread([said(text) for text in "abc"], title="t")
    listed = stubs.threads.ListMessages(ListMessagesRequest(thread_id=thread.id)).messages
    request = ForkThreadRequest(thread_id=thread.id, message_id=listed[1].id, request_id=f"fork-{thread.id}")
    fork = stubs.threads.ForkThread(request).thread
    assert stubs.threads.ForkThread(request).thread.id == fork.id
    assert (fork.title, fork.forked_from.message_sequence) == ("t", 2)
    assert texts(stubs, ListMessagesRequest(thread_id=fork.id)) == ["b", "a"]


def test_missing_thread_and_odd_ids_are_the_same_refusal_but_for_the_id(stubs: Stubs) -> None:
    raws = set()
    for odd in ("thread_missing", "%00", "' or 1=1", "../", "*", "{tag}"):
        with pytest.raises(grpc.RpcError) as caught:
            stubs.threads.GetThread(GetThreadRequest(thread_id=odd))
        told = refusal(caught.value)
        assert (told.code, told.message) == (grpc.StatusCode.NOT_FOUND, "no such thread")
        raws.add(len(told.raw) - len(odd))
    assert len(raws) == 1
