"""The requests of UsageService."""

from famulus.v1.usage_service_pb2 import QueryUsageRequest, UsageBucket, UsageDimension
from famulus_server.api.validation.assistants import MOST_NAME
from famulus_server.api.validation.fields import Fields

_MOST_USER_ID = 256
# A token holds a user, an assistant, a model and a variant.
_MOST_TOKEN = 8_192


def check_query(request: QueryUsageRequest) -> None:
    with Fields() as fields:
        fields.page(request, most_token=_MOST_TOKEN)
        fields.time("start_time", request.start_time)
        fields.time("end_time", request.end_time)
        if fields.few("group_by", request.group_by, len(UsageDimension.values()) - 1):
            for index, dimension in enumerate(request.group_by):
                name = f"group_by[{index}]"
                fields.known(name, dimension, UsageDimension, required=True)
                if dimension in request.group_by[:index]:
                    fields.wrong(name, "is given twice")
        fields.known("bucket", request.bucket, UsageBucket)
        fields.text("user_id", request.user_id, most=_MOST_USER_ID)
        fields.id("assistant_id", request.assistant_id, required=False)
        fields.text("model", request.model, most=MOST_NAME)
        fields.text("variant", request.variant, most=MOST_NAME)
