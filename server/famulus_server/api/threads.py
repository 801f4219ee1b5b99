"""ThreadService."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import (
    CreateThreadRequest,
    CreateThreadResponse,
    DeleteThreadRequest,
    DeleteThreadResponse,
    ForkThreadRequest,
    ForkThreadResponse,
    GetThreadRequest,
    GetThreadResponse,
    ListThreadsRequest,
    ListThreadsResponse,
    UpdateThreadRequest,
    UpdateThreadResponse,
)
from famulus.v1.thread_service_pb2_grpc import ThreadServiceServicer
from famulus_server.api.calls import current_tenant
from famulus_server.api.errands import Errands
from famulus_server.api.messages import MessageMethods
from famulus_server.api.pages import Pages
from famulus_server.api.request_ids import repeat_key
from famulus_server.api.validation import threads as validation
from famulus_server.engine.messages import MessageDesk
from famulus_server.engine.threads import ThreadDesk
from famulus_server.ports import Cursor, ThreadFilter


class ThreadServicer(MessageMethods, ThreadServiceServicer):
    """Threads and, inherited, their messages."""

    def __init__(self, *, threads: ThreadDesk, messages: MessageDesk, pages: Pages, errands: Errands) -> None:
        super().__init__(messages=messages, pages=pages)
        self._threads = threads
        self._errands = errands

    async def CreateThread(self, request: CreateThreadRequest, _: object) -> CreateThreadResponse:
        validation.check_create(request)
        key = repeat_key("CreateThread", request)
        thread = await self._threads.create(current_tenant(), request.thread, request.messages, key)
        return CreateThreadResponse(thread=thread)

    async def GetThread(self, request: GetThreadRequest, _: object) -> GetThreadResponse:
        validation.check_get(request)
        return GetThreadResponse(thread=await self._threads.get(current_tenant(), request.thread_id))

    async def ListThreads(self, request: ListThreadsRequest, _: object) -> ListThreadsResponse:
        validation.check_list(request)
        tenant = current_tenant()
        page = self._pages.of(tenant, request)
        which = ThreadFilter(
            user_id=request.user_id,
            metadata=dict(request.metadata),
            active_after=_moment(request.active_after) if request.HasField("active_after") else None,
            active_before=_moment(request.active_before) if request.HasField("active_before") else None,
        )
        found = await self._threads.page(tenant, which, after=page.after, limit=page.limit)
        shown, token = page.close(found, _by_activity)
        return ListThreadsResponse(threads=shown, next_page_token=token)

    async def UpdateThread(self, request: UpdateThreadRequest, _: object) -> UpdateThreadResponse:
        paths = validation.check_update(request)
        thread = await self._threads.update(current_tenant(), request.thread, paths)
        return UpdateThreadResponse(thread=thread)

    async def DeleteThread(self, request: DeleteThreadRequest, _: object) -> DeleteThreadResponse:
        validation.check_delete(request)
        # Once it is deleted in the store, its run must be stopped and its watchers told, whoever goes away.
        await self._errands.see_through(self._threads.delete(current_tenant(), request.thread_id, request.etag))
        return DeleteThreadResponse()

    async def ForkThread(self, request: ForkThreadRequest, _: object) -> ForkThreadResponse:
        validation.check_fork(request)
        key = repeat_key("ForkThread", request)
        thread = await self._threads.fork(current_tenant(), request.thread_id, request.message_id, request.thread, key)
        return ForkThreadResponse(thread=thread)


def _moment(time: Timestamp) -> datetime:
    return time.ToDatetime(tzinfo=UTC)


def _by_activity(thread: Thread) -> Cursor:
    return Cursor(thread.last_activity_time.ToMicroseconds(), thread.id)
