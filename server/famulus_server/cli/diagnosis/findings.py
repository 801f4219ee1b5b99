"""What a check finds, and how bad it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

# A clock that is off by more is told, and by less not even mentioned.
_MOST_SECONDS = 1.0
_SHOWN_SECONDS = 0.01

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at. `seen` and `remedy` are sentences for the operator, without secrets; where all is
    well there is no remedy."""

    point: str  # of the check, such as "latency"; empty: the thing itself
    verdict: Verdict
    seen: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One part of the world. `look` may take `seconds`; what it raises is a finding, too."""

    name: str
    look: Callable[[], Awaitable[Sequence[Finding]]]
    seconds: float
    when_late: str = "Find out what it waits for: a firewall that drops packets, a machine that hangs."


def ok(point: str, seen: str) -> Finding:
    """As it should be."""
    return Finding(point=point, verdict="ok", seen=seen)


def warn(point: str, seen: str, remedy: str) -> Finding:
    """A server runs with it, but not as well as it could."""
    return Finding(point=point, verdict="warn", seen=seen, remedy=remedy)


def fail(point: str, seen: str, remedy: str) -> Finding:
    """A server does not start with it, or does not do its work."""
    return Finding(point=point, verdict="fail", seen=seen, remedy=remedy)


def judge_clock(seconds_ahead: float, *, whose: str) -> Finding:
    """Of a clock that is so much ahead of this machine's."""
    seen = f"{whose} is {abs(seconds_ahead):.3g} s {'ahead of' if seconds_ahead > 0 else 'behind'} this machine's"
    if abs(seconds_ahead) <= _MOST_SECONDS:
        return ok("clock", seen if abs(seconds_ahead) >= _SHOWN_SECONDS else f"{whose} agrees with this machine's")
    return warn("clock", seen, "Have both set by NTP: tokens and certificates are judged by this machine's clock.")
