"""What refusals and error events mean."""

from collections.abc import Callable
from typing import Any

import pytest

from famulus_server.errors import (
    ModelAuthenticationError,
    ModelError,
    ModelRateLimited,
    ModelRejectedRequest,
    ModelUnavailable,
)
from famulus_server.models.failures import from_error_object, from_status, read_retry_after


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Sun, 22 Nov 2026 12:00:07 GMT", "date": "Sun, 22 Nov 2026 12:00:00 GMT"}, 7.0),
        ({"retry-after": "Sun, 22 Nov 2026 11:00:00 GMT", "date": "Sun, 22 Nov 2026 12:00:00 GMT"}, 0.0),
        ({"retry-after": "Sun, 22 Nov 2026 12:00:07 GMT"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "3600"}, 3_600.0),
        ({"retry-after": "3601"}, None),
        ({"retry-after": "1763838427"}, None),
        ({"retry-after": "1e300"}, None),
        ({"retry-after-ms": "1763838427000"}, None),
        ({"retry-after": "Mon, 23 Nov 2026 12:00:00 GMT", "date": "Sun, 22 Nov 2026 12:00:00 GMT"}, None),
        ({"retry-after": "Sun, 06 Nov 2022 08:49:47 -0000", "date": "Sun, 06 Nov 2022 08:49:37 GMT"}, 10.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert read_retry_after(headers) == seconds


@pytest.mark.parametrize(
    ("error", "kind", "retried"),
    [
        ({"code": "rate_limit_exceeded"}, ModelRateLimited, True),
        ({"code": "insufficient_quota"}, ModelRateLimited, False),
        ({"code": "server_error"}, ModelUnavailable, True),
        ({"code": "invalid_prompt"}, ModelRejectedRequest, False),
        ({"code": "invalid_image_url"}, ModelRejectedRequest, False),
        ({"code": "image_too_large"}, ModelRejectedRequest, False),
        ({"code": "invalid_api_key"}, ModelAuthenticationError, False),
        ({"code": "new_word", "type": "invalid_request_error"}, ModelRejectedRequest, False),
        ({"code": 429}, ModelRateLimited, True),
        ({"code": 400}, ModelRejectedRequest, False),
        ({"code": 502}, ModelUnavailable, True),
        ({"code": "never_heard_of"}, ModelUnavailable, True),
        ({}, ModelUnavailable, True),
    ],
)
def test_error_events_are_typed(error: dict[str, Any], kind: type[ModelError], retried: bool) -> None:
    found = from_error_object(error)
    assert type(found) is kind
    assert found.may_retry is retried


def test_the_providers_word_about_retrying_counts() -> None:
    assert not from_status(500, {"x-should-retry": "false"}, None).may_retry
    assert from_status(400, {"x-should-retry": "true"}, None).may_retry


def test_redirects_are_refusals() -> None:
    assert type(from_status(302, {"location": "http://elsewhere"}, None)) is ModelRejectedRequest


@pytest.mark.parametrize("read", [from_error_object, lambda error: from_status(400, {}, error)])
def test_providers_names_get_into_the_log_but_none_of_its_sentences(
    read: Callable[[dict[str, Any]], ModelError],
) -> None:
    message = "Incorrect API key provided: abc; the prompt was 'my name is Ada'"
    names = {"code": "invalid_image_url", "type": "invalid_request_error", "param": "input[3].content[0].image_url"}
    told = str(read({"message": message} | names))
    assert all(f"{key}={name}" in told for key, name in names.items())
    assert "abc" not in told
    assert "Ada" not in told
    for sentence in (message, "line\nbreak", "x" * 65, {"quoted": message}, [message], "Ünicode"):
        told = str(read(dict.fromkeys(names, sentence)))
        assert told in {"error event", "HTTP 400"}
