"""The two kinds of request ids: the one that a log line has, and the one that makes a call safe to repeat."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any

from famulus_server.ports import RequestKey

REQUEST_ID_HEADER = "x-request-id"
_ACCEPTED = re.compile(r"[!-~]{1,128}")


def logged_id(headers: Iterable[tuple[str, str | bytes]]) -> str:
    """What the caller sent as `x-request-id`; empty where it sent none that can stand in a log line."""
    for key, value in headers:
        if key == REQUEST_ID_HEADER and isinstance(value, str) and _ACCEPTED.fullmatch(value):
            return value
    return ""


def repeat_key(method: str, request: Any) -> RequestKey | None:
    """The key of a request with a `request_id` (contract 5); None where it is empty. The fingerprint covers all other
    fields, those included that this version does not know."""
    if not request.request_id:
        return None
    rest = type(request)()
    rest.CopyFrom(request)
    rest.ClearField("request_id")
    fingerprint = hashlib.sha256(rest.SerializeToString(deterministic=True)).digest()
    return RequestKey(method, request.request_id, fingerprint)
