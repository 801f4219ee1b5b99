"""The requests of UserDataService."""

from famulus.v1.user_data_service_pb2 import (
    DeleteUserDataRequest,
    ExportUserDataRequest,
    GetDeletionReceiptRequest,
)
from famulus_server.api.validation.fields import Fields

_MOST_USER_ID = 256


def check_delete(request: DeleteUserDataRequest) -> None:
    with Fields() as fields:
        fields.request_id(request.request_id)
        fields.text("user_id", request.user_id, most=_MOST_USER_ID, required=True)


def check_get(request: GetDeletionReceiptRequest) -> None:
    with Fields() as fields:
        fields.id("receipt_id", request.receipt_id)


def check_export(request: ExportUserDataRequest) -> None:
    with Fields() as fields:
        fields.text("user_id", request.user_id, most=_MOST_USER_ID, required=True)
