"""What is wrong with a question about usage, by the path that is named."""

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from famulus.v1.usage_service_pb2 import QueryUsageRequest
from famulus_server.api.validation.usage import check_query
from famulus_server.errors import InvalidArgument


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"start_time": Timestamp(nanos=-1)}, "start_time"),
        ({"end_time": Timestamp(seconds=253_402_300_800)}, "end_time"),
        ({"group_by": [1, 0]}, "group_by[1]"),
        ({"group_by": [5]}, "group_by[0]"),
        ({"group_by": [2, 1, 2]}, "group_by[2]"),
        ({"group_by": [1] * 100_000}, "group_by"),
        ({"bucket": 3}, "bucket"),
        ({"user_id": "u" * 257}, "user_id"),
        ({"assistant_id": "a" * 129}, "assistant_id"),
        ({"assistant_id": "a\n"}, "assistant_id"),
        ({"model": "m" * 257}, "model"),
        ({"variant": "v" * 257}, "variant"),
        ({"page_size": -1}, "page_size"),
        ({"page_token": "t" * 8_193}, "page_token"),
    ],
)
def test_query_is_refused_for_the_one_field_that_is_wrong(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_query(QueryUsageRequest(**fields))
    assert [violation.field for violation in refused.value.violations] == [path]


def test_query_at_every_limit_is_accepted() -> None:
    check_query(QueryUsageRequest())
    largest: dict[str, Any] = {
        "group_by": [4, 3, 2, 1],
        "bucket": 2,
        "user_id": "u" * 256,
        "assistant_id": "a" * 128,
        "model": "m" * 256,
        "variant": "v" * 256,
        "page_size": 2**31 - 1,
        "page_token": "t" * 8_192,
    }
    check_query(QueryUsageRequest(**largest))
