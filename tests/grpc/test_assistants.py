import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import (
    CreateAssistantRequest,
    DeleteAssistantRequest,
    EnsureAssistantRequest,
    GetAssistantRequest,
    ListAssistantsRequest,
    ListAssistantVersionsRequest,
    UpdateAssistantRequest,
)
from serving import Stubs, refusal


def test_assistant_is_created_read_updated_and_deleted(stubs: Stubs) -> None:
    made = stubs.new_assistant(name="first", metadata={"k": "v"})
    assert made.version == 1
    update = UpdateAssistantRequest(
        assistant=Assistant(id=made.id, name="second", etag=made.etag), update_mask=FieldMask(paths=["name"])
    )
    changed = stubs.assistants.UpdateAssistant(update).assistant
    assert (changed.version, changed.name, dict(changed.metadata)) == (2, "second", {"k": "v"})
    old = stubs.assistants.GetAssistant(GetAssistantRequest(assistant_id=made.id, version=1)).assistant
    assert old.name == "first"
    stubs.assistants.DeleteAssistant(DeleteAssistantRequest(assistant_id=made.id, etag=changed.etag))
    with pytest.raises(grpc.RpcError) as caught:
        stubs.assistants.GetAssistant(GetAssistantRequest(assistant_id=made.id))
    assert refusal(caught.value).code == grpc.StatusCode.NOT_FOUND


def test_stale_etag_is_aborted(stubs: Stubs) -> None:
    made = stubs.new_assistant()
    with pytest.raises(grpc.RpcError) as caught:
        stubs.assistants.DeleteAssistant(DeleteAssistantRequest(assistant_id=made.id, etag="stale"))
    told = refusal(caught.value)
    assert (told.code, told.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")


def test_versions_come_newest_first_in_pages(stubs: Stubs) -> None:
    made = stubs.new_assistant(name="0")
    for name in "123":
        stubs.assistants.UpdateAssistant(UpdateAssistantRequest(assistant=Assistant(id=made.id, name=name)))
    seen: list[int] = []
    token = ""
    while True:
        answer = stubs.assistants.ListAssistantVersions(
            ListAssistantVersionsRequest(assistant_id=made.id, page_size=3, page_token=token)
        )
        seen += [assistant.version for assistant in answer.assistants]
        token = answer.next_page_token
        if not token:
            break
    assert seen == [4, 3, 2, 1]


def test_list_pages_through_all_assistants_once(stubs: Stubs) -> None:
    made = {stubs.new_assistant().id for _ in range(5)}
    seen: list[str] = []
    token = ""
    while True:
        answer = stubs.assistants.ListAssistants(ListAssistantsRequest(page_size=2, page_token=token))
        assert len(answer.assistants) <= 2
        seen += [assistant.id for assistant in answer.assistants]
        token = answer.next_page_token
        if not token:
            break
    assert made <= set(seen)
    assert len(seen) == len(set(seen))


def test_page_token_of_another_list_is_refused(stubs: Stubs) -> None:
    made = [stubs.new_assistant() for _ in range(2)]
    token = stubs.assistants.ListAssistants(ListAssistantsRequest(page_size=1)).next_page_token
    with pytest.raises(grpc.RpcError) as caught:
        stubs.assistants.ListAssistantVersions(ListAssistantVersionsRequest(assistant_id=made[0].id, page_token=token))
    told = refusal(caught.value)
    assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")


def test_ensure_returns_the_same_assistant_for_the_same_configuration(stubs: Stubs) -> None:
    request = EnsureAssistantRequest(assistant=Assistant(model="scripted", name="ensured once"))
    first, second = stubs.assistants.EnsureAssistant(request), stubs.assistants.EnsureAssistant(request)
    assert first.assistant.id == second.assistant.id
    assert (first.created, second.created) == (True, False)


def test_request_id_makes_a_repeated_create_return_the_same_assistant(stubs: Stubs) -> None:
    request = CreateAssistantRequest(assistant=Assistant(model="scripted"), request_id="assistant-once")
    first = stubs.assistants.CreateAssistant(request).assistant
    assert stubs.assistants.CreateAssistant(request).assistant.id == first.id
    request.assistant.name = "another"
    with pytest.raises(grpc.RpcError) as caught:
        stubs.assistants.CreateAssistant(request)
    told = refusal(caught.value)
    assert (told.code, told.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
