"""Calls that nobody waits for any more, or that take too long."""

import asyncio
from collections.abc import Collection
from contextvars import Context

import grpc

from famulus_server.api.calls import Call, Method, Proceed


class Deadlines:
    """The layer that refuses a call whose deadline has passed before it came to its turn, and ends a unary call that
    takes longer than `unary_seconds`, unless its method is one of `patient`. A caller's shorter deadline is enforced
    by gRPC, which cancels the call. Neither ever ends a run (contract 23)."""

    def __init__(self, *, unary_seconds: float, patient: Collection[str]) -> None:
        self._unary_seconds = unary_seconds
        self._patient = frozenset(patient)
        # Those that are limited, with the times at which they end; whoever began first stands first.
        self._limited: dict[asyncio.Timeout, float] = {}
        self._watching = False

    def around(self, method: Method, proceed: Proceed) -> Proceed:
        patient = method.streams or method.name in self._patient

        async def limit(call: Call) -> None:
            remaining = call.context.time_remaining()
            if remaining is not None and remaining <= 0:
                await call.context.abort(
                    grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline had passed before the call began"
                )
            if patient:
                await proceed(call)
                return
            try:
                async with asyncio.timeout(None) as within:
                    self._watch(within)
                    try:
                        await proceed(call)
                    finally:
                        self._limited.pop(within, None)
            except TimeoutError:
                if not within.expired():
                    raise
                await call.context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the call took too long")

        return limit

    def _watch(self, within: asyncio.Timeout) -> None:
        """Ends the call in time. One timer does so for all: set for each, the loop would keep them, and the calls with
        them, long after these have ended."""
        loop = asyncio.get_running_loop()
        self._limited[within] = loop.time() + self._unary_seconds
        if not self._watching:
            self._watching = True
            loop.call_later(self._unary_seconds, self._end_late, context=Context())

    def _end_late(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._limited:
            within, end = next(iter(self._limited.items()))
            if end > now:
                loop.call_at(end, self._end_late)
                return
            del self._limited[within]
            within.reschedule(now)
        self._watching = False
