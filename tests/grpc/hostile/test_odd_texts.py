"""Each text of each request is one that nobody expects there."""

from collections.abc import Iterator

import grpc
import pytest

from hostile.fields import Field, texts
from hostile.rpcs import RPCS, Rpc
from hostile.target import Target
from serving import Refusal

ODD = (
    "",
    "%00",
    "' or 1=1",
    "../",
    "*",
    "{tag}",
    "a\r\nb: c",
    "\x01\x1b[2J\x7f\x85",
    "\ufeff\u202e\u2028\uffff\U0010ffff",
    "x" * 10_240,
)
REQUESTS = {rpc.request.DESCRIPTOR for rpc in RPCS}


def texts_of(rpc: Rpc) -> Iterator[Field]:
    """Its texts, but for those of another RPC's request inside it: they have their turn there."""
    for field in texts(rpc.request):
        if not any(inner.message_type in REQUESTS for inner in field.way):
            yield field


def sent(target: Target, rpc: Rpc, field: Field, value: str) -> list[bytes] | Refusal:
    request = target.seeds.of(rpc)
    field.put(request, value)
    return target.send(rpc, request)


def test_requests_to_begin_with_are_accepted(target: Target) -> None:
    """Else the others would not get far."""
    refused = {
        (rpc.name, answer.reason)
        for rpc in RPCS
        if rpc.name in target.seeds.requests and isinstance(answer := target.send(rpc, target.seeds.of(rpc)), Refusal)
    }
    assert refused == {
        ("DeleteAssistant", "RESOURCE_NOT_FOUND"),
        ("DeleteThread", "RESOURCE_NOT_FOUND"),
        ("DeleteMessage", "RESOURCE_NOT_FOUND"),
        ("SubmitToolOutputs", "UNKNOWN_TOOL_CALL"),
    }


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
def test_odd_text_in_any_field_is_taken_or_refused_as_documented(target: Target, rpc: Rpc) -> None:
    for field in texts_of(rpc):
        for odd in ODD:
            sent(target, rpc, field, odd)
    target.check_health()


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
def test_nul_in_any_field_is_refused_by_its_name(target: Target, rpc: Rpc) -> None:
    for field in texts_of(rpc):
        answer = sent(target, rpc, field, "a\0b")
        assert isinstance(answer, Refusal), field.path
        assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field.path])


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
def test_megabyte_in_any_field_is_refused_or_never_looked_at(target: Target, rpc: Rpc) -> None:
    for field in texts_of(rpc):
        sent(target, rpc, field, "x" * 1_000_000)
    target.check_health()
