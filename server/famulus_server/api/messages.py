"""The RPCs of ThreadService about messages."""

from famulus.v1.message_pb2 import Message
from famulus.v1.thread_service_pb2 import (
    CreateMessageRequest,
    CreateMessageResponse,
    DeleteMessageRequest,
    DeleteMessageResponse,
    GetMessageRequest,
    GetMessageResponse,
    ListMessagesRequest,
    ListMessagesResponse,
    ListOrder,
    UpdateMessageRequest,
    UpdateMessageResponse,
)
from famulus_server.api.calls import current_tenant
from famulus_server.api.pages import Page, Pages
from famulus_server.api.request_ids import repeat_key
from famulus_server.api.validation import messages as validation
from famulus_server.engine.messages import MessageDesk
from famulus_server.ports import Cursor


class MessageMethods:
    """Messages of threads. ThreadServicer inherits these: the contract has one service for both nouns."""

    def __init__(self, *, messages: MessageDesk, pages: Pages) -> None:
        self._messages = messages
        self._pages = pages

    async def CreateMessage(self, request: CreateMessageRequest, _: object) -> CreateMessageResponse:
        validation.check_create(request)
        key = repeat_key("CreateMessage", request)
        message = await self._messages.create(current_tenant(), request.thread_id, request.message, key)
        return CreateMessageResponse(message=message)

    async def GetMessage(self, request: GetMessageRequest, _: object) -> GetMessageResponse:
        validation.check_get(request)
        message = await self._messages.get(current_tenant(), request.thread_id, request.message_id)
        return GetMessageResponse(message=message)

    async def ListMessages(self, request: ListMessagesRequest, _: object) -> ListMessagesResponse:
        validation.check_list(request)
        tenant = current_tenant()
        page = self._pages.of(tenant, request)
        descending = request.order != ListOrder.LIST_ORDER_ASCENDING
        after, before = _bounds(request, page, descending)
        found = await self._messages.page(
            tenant,
            request.thread_id,
            limit=page.limit,
            after_sequence=after,
            before_sequence=before,
            descending=descending,
            run_id=request.run_id,
        )
        shown, token = page.close(found, _by_sequence)
        return ListMessagesResponse(messages=shown, next_page_token=token)

    async def UpdateMessage(self, request: UpdateMessageRequest, _: object) -> UpdateMessageResponse:
        validation.check_update(request)
        message = await self._messages.update(current_tenant(), request.thread_id, request.message)
        return UpdateMessageResponse(message=message)

    async def DeleteMessage(self, request: DeleteMessageRequest, _: object) -> DeleteMessageResponse:
        validation.check_delete(request)
        await self._messages.delete(current_tenant(), request.thread_id, request.message_id)
        return DeleteMessageResponse()


def _bounds(request: ListMessagesRequest, page: Page, descending: bool) -> tuple[int, int | None]:
    """The sequences between which the page lies, both excluded; None: no upper one."""
    if page.after is None:
        return request.after_sequence, None
    return (request.after_sequence, page.after.number) if descending else (page.after.number, None)


def _by_sequence(message: Message) -> Cursor:
    return Cursor(message.sequence, message.id)
