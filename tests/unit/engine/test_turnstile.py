"""Some at a time, but nobody for ever behind others."""

import asyncio

from famulus_server.engine.turnstile import Turnstile


async def pass_through(turnstile: Turnstile, passed: list[int], number: int, may_leave: asyncio.Event) -> None:
    async with turnstile.turn():
        passed.append(number)
        await may_leave.wait()


async def test_so_many_have_their_turn_and_the_others_come_behind_them() -> None:
    turnstile, passed, may_leave = Turnstile(most=2, seconds=60.0), list[int](), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for number in range(5):
            tasks.create_task(pass_through(turnstile, passed, number, may_leave))
        for _ in range(10):
            await asyncio.sleep(0)
        assert passed == [0, 1]
        may_leave.set()
    assert passed == [0, 1, 2, 3, 4]


async def test_nobody_waits_for_ever_behind_those_who_do_not_leave() -> None:
    turnstile, passed, may_leave = Turnstile(most=1, seconds=0.01), list[int](), asyncio.Event()
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(10.0):
        stuck = tasks.create_task(pass_through(turnstile, passed, 0, may_leave))
        async with turnstile.turn():
            assert not stuck.done()
        # Who went past without a turn has none to give back.
        async with turnstile.turn():
            assert not stuck.done()
        may_leave.set()


async def test_who_is_cancelled_in_the_queue_takes_nobodys_place() -> None:
    turnstile, passed, may_leave = Turnstile(most=1, seconds=60.0), list[int](), asyncio.Event()
    first, second, third = (
        asyncio.create_task(pass_through(turnstile, passed, number, may_leave)) for number in range(3)
    )
    await asyncio.sleep(0)
    second.cancel()
    may_leave.set()
    await asyncio.wait([first, second, third])
    assert (passed, second.cancelled()) == ([0, 2], True)
