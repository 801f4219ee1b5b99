"""Requests at random, over a socket: every answer is one of those that the documentation has."""

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from hostile.rpcs import RPCS, Rpc
from hostile.seeds import FUNCTION
from hostile.strategies import Random, garbled
from hostile.target import Target

EXAMPLES = 10
every_rpc = pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)


def random_for(target: Target, rpc: Rpc) -> Random:
    # What one test takes away, the next would miss.
    ids = () if rpc.name.startswith(("Delete", "Cancel")) else target.seeds.ids
    return Random([*ids, *target.seeds.tokens, "scripted", FUNCTION, "*", "metadata", "{}", ""])


def try_all(target: Target, rpc: Rpc, requests: st.SearchStrategy[bytes] | st.SearchStrategy[Message]) -> None:
    @settings(max_examples=EXAMPLES)
    @given(requests)
    def check(request: bytes | Message) -> None:
        target.send(rpc, request)

    check()
    target.check_health()


@every_rpc
def test_random_requests(target: Target, rpc: Rpc) -> None:
    try_all(target, rpc, random_for(target, rpc).messages(rpc.request))


@every_rpc
def test_good_requests_with_a_few_random_fields(target: Target, rpc: Rpc) -> None:
    try_all(target, rpc, random_for(target, rpc).mutated(target.seeds.of(rpc)))


@every_rpc
def test_random_bytes_and_garbled_requests(target: Target, rpc: Rpc) -> None:
    good = target.seeds.of(rpc).SerializeToString()
    try_all(target, rpc, st.binary(max_size=100) | garbled(st.just(good)))


def test_requests_to_begin_with_still_get_far(target: Target) -> None:
    target.check_seeds()
