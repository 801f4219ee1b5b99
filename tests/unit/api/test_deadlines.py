"""How long a unary call may take."""

import asyncio
import gc
import weakref
from contextvars import ContextVar
from typing import Any

import grpc
import pytest

from famulus_server.api.calls import Call, Method, Proceed
from famulus_server.api.deadlines import Deadlines

LONG = 60.0
SHORT = 0.01
GET_RUN = Method("/famulus.v1.RunService/GetRun", streams=False)


class Context:
    """Of a call without a deadline of its own."""

    def time_remaining(self) -> None:
        return None

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise grpc.aio.AbortError(code, details)


class Known:
    """Something that a call knows."""


def limited(seconds: float, proceed: Proceed) -> Proceed:
    return Deadlines(unary_seconds=seconds, patient=()).around(GET_RUN, proceed)


def a_call() -> Call:
    context: Any = Context()
    return Call(method=GET_RUN.name, context=context, received=None, headers=())


async def test_each_call_that_takes_too_long_is_ended_and_none_that_does_not() -> None:
    async def answer(call: Call) -> None:
        await asyncio.sleep(LONG if call.received == "late" else 0)

    async def late() -> None:
        call = a_call()
        call.received = "late"
        with pytest.raises(grpc.aio.AbortError):
            await limit(call)

    limit = limited(SHORT, answer)
    async with asyncio.timeout(5):
        for _ in range(3):
            first = asyncio.create_task(late())
            await limit(a_call())
            await asyncio.gather(first, late(), late())
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_time_out_of_something_inside_of_a_call_is_not_taken_for_its_own() -> None:
    async def answer(_: Call) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await limited(LONG, answer)(a_call())


async def test_nothing_keeps_what_a_call_knew_when_it_has_ended() -> None:
    variable: ContextVar[Known] = ContextVar("known")
    known: list[weakref.ref[Known]] = []

    async def answer(_: Call) -> None:
        thing = Known()
        variable.set(thing)
        known.append(weakref.ref(thing))

    async def serve() -> None:
        variable.set(Known())
        known.append(weakref.ref(variable.get()))
        await limit(a_call())

    limit = limited(LONG, answer)
    # The loop forgets cancelled timers in their turn: not before those that come first.
    first = asyncio.get_running_loop().call_later(LONG / 2, lambda: None)
    await asyncio.create_task(serve())
    # The loop itself has the task in its hands until then.
    await asyncio.sleep(0)
    gc.collect()
    assert [one() for one in known] == [None, None]
    first.cancel()
