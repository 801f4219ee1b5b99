"""Each field of each request holds what nobody expects there."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from hostile.fields import Field, numbers, texts
from hostile.rpcs import RPCS, Rpc
from hostile.target import Target
from serving import Refusal

ODD_IDS = ("%00", "' or 1=1", "../", "*", "{tag}")
ODD_TEXTS = ("", "a\r\nb: c\x01\x1b[2J\x7f\x85", "\ufeff\u202e\u2028\uffff\U0010ffff", "x" * 10_240)
every_rpc = pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
# What is refused before a database is asked is the same on all of them.
on_one_database = pytest.mark.parametrize("target", ["SQLite"], indirect=True)
MARK = "QZQZ"
REQUESTS = {rpc.request.DESCRIPTOR for rpc in RPCS}


def own(rpc: Rpc, fields: Iterable[Field]) -> Iterator[Field]:
    """These fields, but for those of another RPC's request inside this one: they have their turn there."""
    return (field for field in fields if not any(inner.message_type in REQUESTS for inner in field.way))


def with_field(target: Target, rpc: Rpc, field: Field, value: Any) -> Message:
    request = target.seeds.of(rpc)
    field.put(request, value)
    return request


def odd_numbers(field: FieldDescriptor) -> Sequence[float]:
    if field.type == FieldDescriptor.TYPE_BOOL:
        return (True, False)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return (-1.0, -0.0, 1e308, math.inf, math.nan)
    bits = 63 if field.cpp_type == FieldDescriptor.CPPTYPE_INT64 else 31
    return (-1, 0, -(2**bits), 2**bits - 1)


def test_requests_to_begin_with_get_far(target: Target) -> None:
    target.check_seeds()


@every_rpc
def test_odd_text_in_any_field_is_taken_or_refused_as_documented(target: Target, rpc: Rpc) -> None:
    for field in own(rpc, texts(rpc.request)):
        for odd in (ODD_TEXTS + ODD_IDS) if field.way[-1].name.endswith("id") else ODD_TEXTS:
            target.send(rpc, with_field(target, rpc, field, odd))
    target.check_health()


@every_rpc
@on_one_database
def test_nul_in_any_field_is_refused_by_its_name(target: Target, rpc: Rpc) -> None:
    for field in own(rpc, texts(rpc.request)):
        answer = target.send(rpc, with_field(target, rpc, field, "a\0b"))
        assert isinstance(answer, Refusal), field.path
        assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field.path])


@every_rpc
@on_one_database
def test_megabyte_in_any_field_is_refused_or_forgotten(target: Target, rpc: Rpc) -> None:
    for field in own(rpc, texts(rpc.request)):
        answer = target.send(rpc, with_field(target, rpc, field, "x" * 1_000_000))
        # What was stored would come back.
        assert isinstance(answer, Refusal) or max(map(len, answer)) < 500_000, field.path
    target.check_health()


@every_rpc
def test_odd_number_in_any_field_is_taken_or_refused_as_documented(target: Target, rpc: Rpc) -> None:
    for field in own(rpc, numbers(rpc.request)):
        for odd in odd_numbers(field.way[-1]):
            answer = target.send(rpc, with_field(target, rpc, field, odd))
            if field.path == "page_size" and odd < 0:
                assert isinstance(answer, Refusal)
                assert answer.fields == ["page_size"]
    target.check_health()


@every_rpc
@on_one_database
def test_bytes_that_are_no_text_in_any_field_are_malformed(target: Target, rpc: Rpc) -> None:
    for field in own(rpc, texts(rpc.request)):
        data = with_field(target, rpc, field, MARK).SerializeToString()
        answer = target.send(rpc, data.replace(MARK.encode(), b"\xc3\x28\xff\xed"))
        assert isinstance(answer, Refusal), field.path
        assert answer.reason == "MALFORMED_REQUEST"


@every_rpc
@on_one_database
def test_request_that_breaks_off_is_malformed(target: Target, rpc: Rpc) -> None:
    answer = target.send(rpc, target.seeds.of(rpc).SerializeToString() + b"\x0a\x7fab")
    assert isinstance(answer, Refusal)
    assert answer.reason == "MALFORMED_REQUEST"
