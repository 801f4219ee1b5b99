"""AssistantService."""

from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import (
    CreateAssistantRequest,
    CreateAssistantResponse,
    DeleteAssistantRequest,
    DeleteAssistantResponse,
    EnsureAssistantRequest,
    EnsureAssistantResponse,
    GetAssistantRequest,
    GetAssistantResponse,
    ListAssistantsRequest,
    ListAssistantsResponse,
    ListAssistantVersionsRequest,
    ListAssistantVersionsResponse,
    UpdateAssistantRequest,
    UpdateAssistantResponse,
)
from famulus.v1.assistant_service_pb2_grpc import AssistantServiceServicer
from famulus_server.api.calls import current_tenant
from famulus_server.api.pages import Pages
from famulus_server.api.request_ids import repeat_key
from famulus_server.api.validation import assistants as validation
from famulus_server.engine.assistants import AssistantDesk
from famulus_server.ports import Cursor


class AssistantServicer(AssistantServiceServicer):
    """Assistants and their versions."""

    def __init__(self, *, assistants: AssistantDesk, pages: Pages) -> None:
        self._assistants = assistants
        self._pages = pages

    async def CreateAssistant(self, request: CreateAssistantRequest, _: object) -> CreateAssistantResponse:
        validation.check_create(request)
        key = repeat_key("CreateAssistant", request)
        assistant = await self._assistants.create(current_tenant(), request.assistant, key)
        return CreateAssistantResponse(assistant=assistant)

    async def EnsureAssistant(self, request: EnsureAssistantRequest, _: object) -> EnsureAssistantResponse:
        validation.check_ensure(request)
        assistant, created = await self._assistants.ensure(current_tenant(), request.assistant)
        return EnsureAssistantResponse(assistant=assistant, created=created)

    async def GetAssistant(self, request: GetAssistantRequest, _: object) -> GetAssistantResponse:
        validation.check_get(request)
        assistant = await self._assistants.get(current_tenant(), request.assistant_id, request.version)
        return GetAssistantResponse(assistant=assistant)

    async def ListAssistants(self, request: ListAssistantsRequest, _: object) -> ListAssistantsResponse:
        validation.check_list(request)
        tenant = current_tenant()
        page = self._pages.of(tenant, request)
        found = await self._assistants.page(tenant, after=page.after, limit=page.limit)
        shown, token = page.close(found, _by_time)
        return ListAssistantsResponse(assistants=shown, next_page_token=token)

    async def ListAssistantVersions(
        self, request: ListAssistantVersionsRequest, _: object
    ) -> ListAssistantVersionsResponse:
        validation.check_versions(request)
        tenant = current_tenant()
        page = self._pages.of(tenant, request)
        found = await self._assistants.versions(tenant, request.assistant_id, after=page.after, limit=page.limit)
        shown, token = page.close(found, _by_version)
        return ListAssistantVersionsResponse(assistants=shown, next_page_token=token)

    async def UpdateAssistant(self, request: UpdateAssistantRequest, _: object) -> UpdateAssistantResponse:
        paths = validation.check_update(request)
        assistant = await self._assistants.update(current_tenant(), request.assistant, paths)
        return UpdateAssistantResponse(assistant=assistant)

    async def DeleteAssistant(self, request: DeleteAssistantRequest, _: object) -> DeleteAssistantResponse:
        validation.check_delete(request)
        await self._assistants.delete(current_tenant(), request.assistant_id, request.etag)
        return DeleteAssistantResponse()


def _by_time(assistant: Assistant) -> Cursor:
    return Cursor(assistant.create_time.ToMicroseconds(), assistant.id)


def _by_version(assistant: Assistant) -> Cursor:
    return Cursor(assistant.version, assistant.id)
