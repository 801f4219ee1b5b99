import asyncio

import pytest
from structlog.testing import capture_logs

from famulus_server.api.errands import Errands


async def test_errand_ends_although_its_call_is_cancelled_and_its_result_is_handed_over() -> None:
    errands, go, received = Errands(), asyncio.Event(), list[int]()

    async def work() -> int:
        await go.wait()
        return 7

    async def receive(result: int) -> None:
        received.append(result)

    call = asyncio.create_task(errands.see_through(work(), abandoned=receive))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    go.set()
    await errands.finish(seconds=5)
    assert received == [7]


async def test_result_and_failure_reach_a_call_that_waits() -> None:
    errands = Errands()

    async def fail() -> None:
        raise LookupError

    assert await errands.see_through(asyncio.sleep(0, 7)) == 7
    with capture_logs() as logs, pytest.raises(LookupError):
        await errands.see_through(fail())
    assert not logs


async def test_failure_that_nobody_awaits_is_logged() -> None:
    errands = Errands()

    async def fail() -> None:
        raise LookupError

    with capture_logs() as logs:
        errands.start(fail())
        await errands.finish(seconds=5)
    assert [line["event"] for line in logs] == ["errand failed"]


async def test_stop_does_not_wait_for_ever() -> None:
    errands, ended = Errands(), asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    errands.start(hang())
    await asyncio.sleep(0)
    await errands.finish(seconds=0.01)
    assert ended.is_set()
