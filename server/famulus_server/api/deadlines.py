"""Calls that nobody waits for any more, or that take too long."""

import asyncio
from collections.abc import Collection

import grpc

from famulus_server.api.calls import Call, Method, Proceed


class Deadlines:
    """The layer that refuses a call whose deadline has passed before it came to its turn, and ends a unary call that
    takes longer than `unary_seconds`, unless its method is one of `patient`. A caller's shorter deadline is enforced
    by gRPC, which cancels the call. Neither ever ends a run (contract 23)."""

    def __init__(self, *, unary_seconds: float, patient: Collection[str]) -> None:
        self._unary_seconds = unary_seconds
        self._patient = frozenset(patient)

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
                async with asyncio.timeout(self._unary_seconds) as within:
                    await proceed(call)
            except TimeoutError:
                if not within.expired():
                    raise
                await call.context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the call took too long")

        return limit
