"""The time-out for the reads of a stream."""

import asyncio
import gc
import weakref
from contextvars import ContextVar

import pytest

from famulus_server.engine.timer import Timer

LONG = 60.0
SHORT = 0.01


class Known:
    """Something that a task knows."""


@pytest.fixture(name="rung")
async def wait_for_another_timer() -> asyncio.Event:
    """Set once every timer of SHORT that was set before has rung."""
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(3 * SHORT, event.set)
    return event


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_wait_that_takes_too_long_is_broken_off() -> None:
    timer = Timer(SHORT)
    with pytest.raises(TimeoutError), timer:
        await forever()
    current = asyncio.current_task()
    assert current is not None
    assert not current.cancelling()


async def test_time_that_was_allowed_since_counts_and_no_other(rung: asyncio.Event) -> None:
    timer = Timer(SHORT)
    with timer:
        await asyncio.sleep(0)
    timer.allow(LONG)
    with timer:
        await rung.wait()
    timer.allow(SHORT)
    with pytest.raises(TimeoutError), timer:
        await forever()


async def test_time_between_waits_breaks_nothing_off_until_somebody_waits(rung: asyncio.Event) -> None:
    timer = Timer(SHORT)
    with timer:
        await asyncio.sleep(0)
    await rung.wait()
    with pytest.raises(TimeoutError), timer:
        await forever()


async def test_cancelling_is_no_time_out_even_if_both_come_at_once() -> None:
    async def wait() -> None:
        with Timer(SHORT):
            try:
                await forever()
            except asyncio.CancelledError:
                # The timer was first; now somebody else comes.
                waiting.cancel()
                raise

    waiting = asyncio.create_task(wait())
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert waiting.cancelled()


async def test_many_waits_set_one_timer_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, times = asyncio.get_running_loop(), []
    call_at = loop.call_at

    def count(when: float, *args: object, **more: object) -> asyncio.TimerHandle:
        times.append(when)
        return call_at(when, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_at", count)
    timer = Timer(LONG)
    for _ in range(100):
        with timer:
            await asyncio.sleep(0)
        timer.allow(LONG)
    assert len(times) == 1
    timer.close()


async def test_closed_timer_keeps_nothing_that_its_task_knew() -> None:
    variable: ContextVar[Known] = ContextVar("known")

    async def wait() -> weakref.ref[Known]:
        variable.set(Known())
        timer = Timer(LONG)
        with timer:
            await asyncio.sleep(0)
        timer.close()
        return weakref.ref(variable.get())

    # The loop forgets cancelled timers in their turn: not before those that come first.
    first = asyncio.get_running_loop().call_later(LONG / 2, lambda: None)
    known = await asyncio.create_task(wait())
    # The loop itself has the task in its hands until then.
    await asyncio.sleep(0)
    gc.collect()
    assert known() is None
    first.cancel()
