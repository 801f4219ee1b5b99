"""Limits in numbers. What has been taken of requests and tokens is one number: the time at which all of it will have
come back, in microseconds. As long as that lies ahead, the bucket is not full; further ahead than its capacity, it is
in debt."""

import math

from famulus_server.ports import Limit, Quantity, Scope

Name = tuple[Scope, Quantity, str]

LONGEST_WAIT_FOR_RUNS = 1_000_000
"""In microseconds: nobody knows when a run ends, so whoever was refused a place asks again after this at the latest."""
LONGEST_PAUSE = 60.0
"""In seconds: whoever asked for more says so again when he is asked again."""
SETTLED_SECONDS = 3_600
"""For so long it is known that something was settled."""

_MICROSECONDS = 1_000_000
# Less than this is an error of the division.
_NOISE = 1e-6


def name_of(limit: Limit) -> Name:
    """What a limit limits: the same, whatever the policy says how much it is."""
    return limit.scope, limit.quantity, limit.subject


def price_of(limit: Limit, amount: int) -> int:
    """The microseconds in which so much comes back. Rounded up, so that what is taken bit by bit is never too much."""
    return math.ceil(amount * _MICROSECONDS / limit.per_second - _NOISE)


def to_microseconds(seconds: float) -> int:
    """Seconds, as they are counted here."""
    return math.ceil(seconds * _MICROSECONDS - _NOISE)


def to_seconds(microseconds: int) -> float:
    """And back."""
    return microseconds / _MICROSECONDS
