"""UserDataService."""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import msgspec
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from famulus.v1.user_data_service_pb2 import (
    DeleteUserDataRequest,
    DeleteUserDataResponse,
    ExportUserDataRequest,
    ExportUserDataResponse,
    GetDeletionReceiptRequest,
    GetDeletionReceiptResponse,
)
from famulus.v1.user_data_service_pb2_grpc import UserDataServiceServicer
from famulus_server.api.calls import current_tenant
from famulus_server.api.draining import Drain
from famulus_server.api.errands import Errands
from famulus_server.api.request_ids import repeat_key
from famulus_server.api.validation import user_data as validation
from famulus_server.engine.export import Export
from famulus_server.engine.user_data import UserDataDesk

# Lines are sent together up to this size, in characters.
_RESPONSE_CHARACTERS = 64 * 1024
_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")
_TYPES = {"UsageRow": "usage", "ExportSummary": "summary"}


class UserDataServicer(UserDataServiceServicer):
    """What is stored of one user."""

    def __init__(self, *, user_data: UserDataDesk, export: Export, drain: Drain, errands: Errands) -> None:
        self._user_data = user_data
        self._export = export
        self._drain = drain
        self._errands = errands

    async def DeleteUserData(self, request: DeleteUserDataRequest, _: object) -> DeleteUserDataResponse:
        validation.check_delete(request)
        key = repeat_key("DeleteUserData", request)
        # What is deleted in the store must be dropped elsewhere, whoever goes away.
        receipt = await self._errands.see_through(self._user_data.delete(current_tenant(), request.user_id, key))
        return DeleteUserDataResponse(receipt=receipt)

    async def GetDeletionReceipt(self, request: GetDeletionReceiptRequest, _: object) -> GetDeletionReceiptResponse:
        validation.check_get(request)
        return GetDeletionReceiptResponse(receipt=await self._user_data.get(current_tenant(), request.receipt_id))

    async def ExportUserData(self, request: ExportUserDataRequest, _: object) -> AsyncIterator[ExportUserDataResponse]:
        validation.check_export(request)
        gathered: list[str] = []
        size = 0
        async with aclosing(self._lines(current_tenant(), request.user_id)) as lines:
            async for line in self._drain.until_started(lines):
                if gathered and size + len(line) > _RESPONSE_CHARACTERS:
                    yield ExportUserDataResponse(json_lines=gathered)
                    gathered, size = [], 0
                gathered.append(line)
                size += len(line)
        yield ExportUserDataResponse(json_lines=gathered)

    async def _lines(self, tenant: str, user_id: str) -> AsyncGenerator[str, None]:
        async for resource in self._export.of_user(tenant, user_id):
            yield _line(resource)


def _line(resource: Message) -> str:
    told = {"type": _type(resource), "resource": MessageToDict(resource, preserving_proto_field_name=True)}
    return msgspec.json.encode(told).decode()


def _type(resource: Message) -> str:
    name = resource.DESCRIPTOR.name
    return _TYPES.get(name) or _CAPITAL.sub("_", name).lower()
