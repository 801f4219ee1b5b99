"""Connections that are really cut, servers that really stop."""

import asyncio
import random
import threading
from collections.abc import Iterator, Sequence

from clients.python.conftest import Follow
from clients.python.cutting_proxy import CuttingProxy
from clients.python.scripted_runs import PATIENCE, ScriptedRuns, Stream, serving
from clients.python.story import COMPLETED, IN_PROGRESS, Story, call, with_tools
from famulus.v1.run_event_pb2 import RunEvent


def long_story() -> list[RunEvent]:
    words = [f"word {number} " for number in range(200)]
    return Story().state(IN_PROGRESS).begin().text(*words).end("".join(words)).state(COMPLETED).log


async def test_a_connection_that_is_reset_at_any_byte_loses_nothing(follow: Follow) -> None:
    log = long_story()
    rand = random.Random(7)
    shares = [rand.randrange(1, 6_000) for _ in range(12)]
    with serving(ScriptedRuns(log)) as target:
        proxy = CuttingProxy(target, shares)
        async with proxy.listening() as address:
            seen = await follow(address)
    assert seen.error is None
    assert seen.events == log
    assert proxy.cuts >= 3


async def test_tools_are_answered_once_through_a_connection_that_is_reset(follow: Follow) -> None:
    ran: list[int] = []

    def note(number: int) -> None:
        ran.append(number)

    log = with_tools(call("call_1", "note", '{"number": 1}'), call("call_2", "note", '{"number": 2}'))
    with serving(runs := ScriptedRuns(log)) as target:
        proxy = CuttingProxy(target, [150, 250, 350, 500, 700])
        async with proxy.listening() as address:
            seen = await follow(address, tools={"note": note})
    assert seen.error is None
    assert seen.events == log
    assert sorted(ran) == [1, 2]
    assert len({submitted.SerializeToString(deterministic=True) for submitted in runs.submitted}) == 1
    assert proxy.cuts >= 1


async def test_a_server_that_restarts_in_the_middle_is_not_noticed(follow: Follow) -> None:
    log = long_story()
    reached = threading.Event()

    def hold(stream: Stream) -> Iterator[Sequence[RunEvent]]:
        yield log[:50]
        reached.set()
        stream.closed.wait(PATIENCE)

    with serving(ScriptedRuns(log, [hold])) as target:
        following = asyncio.create_task(follow(target))
        assert await asyncio.to_thread(reached.wait, PATIENCE)
    with serving(again := ScriptedRuns(log), target):
        seen = await following
    assert seen.error is None
    assert seen.events == log
    assert 0 <= again.streams[0].after <= 50
