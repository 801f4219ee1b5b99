"""Chores are done again and again, whatever becomes of them."""

import asyncio

from famulus_server.engine.upkeep import Chore, Upkeep
from famulus_server.store.refusals import unavailable


async def test_chore_that_fails_is_done_again_and_does_not_disturb_others() -> None:
    failed, done = asyncio.Event(), asyncio.Event()
    failures, rounds = [OSError("gone"), unavailable()], 0

    async def fails() -> None:
        if failures:
            raise failures.pop()
        failed.set()

    async def works() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            done.set()

    upkeep = Upkeep([Chore(fails, 0.001), Chore(works, 0.001)])
    upkeep.open()
    await asyncio.wait_for(asyncio.gather(failed.wait(), done.wait()), 5.0)
    await upkeep.close()


async def test_close_breaks_off_what_is_being_done() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def lasts() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    upkeep = Upkeep([Chore(lasts, 1.0)])
    upkeep.open()
    await begun.wait()
    await upkeep.close()
    assert ended.is_set()
