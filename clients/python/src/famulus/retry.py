"""When to try again, and how long to wait before. No I/O."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from famulus.errors import FamulusError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a client bears outages. All times are in seconds.

    The wait before attempt n is `initial_delay * multiplier ** (n - 1)`, at most `max_delay`, made shorter or longer by
    up to `jitter` (a fraction). Where the service says when to come back, the wait is at least that long.
    After `give_up_after` seconds without progress the last error is raised. A stream that is silent
    for `silence` seconds, heartbeats included (the service sends one after 15), counts as broken.
    """

    initial_delay: float = 0.1
    multiplier: float = 2.0
    max_delay: float = 5.0
    jitter: float = 0.5
    give_up_after: float = 60.0
    silence: float = 45.0

    def __post_init__(self) -> None:
        if min(self.initial_delay, self.max_delay, self.give_up_after) < 0 or self.silence <= 0:
            raise ValueError("times must not be negative")
        if self.multiplier < 1 or not 0 <= self.jitter <= 1:
            raise ValueError("multiplier must be at least 1, jitter from 0 to 1")


class Outage:
    """Counts failures in a row, for one call or stream."""

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        clock: Callable[[], float] = time.monotonic,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """`clock` is in seconds and never goes back; `rand` gives numbers from 0 to 1."""
        self._policy = policy
        self._clock = clock
        self._rand = rand
        self._since: float | None = None
        self._backoff = policy.initial_delay

    def over(self) -> None:
        """There was progress: the next failure is a first one."""
        self._since = None
        self._backoff = self._policy.initial_delay

    def delay(self, error: FamulusError) -> float:
        """Seconds to wait before the next attempt. Raises `error` where there must be none."""
        if not error.transient:
            raise error
        policy, now = self._policy, self._clock()
        if self._since is None:
            self._since = now
        spread = policy.jitter * (2 * self._rand() - 1)
        if error.retry_after:
            # Never earlier than told; a little later, or all clients of a stopped replica would come at once.
            delay = max(error.retry_after, self._backoff) * (1 + abs(spread))
        else:
            delay = self._backoff * (1 + spread)
        if now + delay > self._since + policy.give_up_after:
            raise error
        self._backoff = min(self._backoff * policy.multiplier, policy.max_delay)
        return delay

    def delay_of_wait(self, error: FamulusError) -> float:
        """The same for a call that waits for something, where to run into the deadline of the call is no failure."""
        if error.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            return self.delay(error)
        self.over()
        return self._backoff
