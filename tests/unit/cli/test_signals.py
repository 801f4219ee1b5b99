"""What a signal ends, and what it does not."""

import asyncio
import os
import signal

import pytest

from famulus_server.cli.signals import Hangups, Stopped, StopSignals


async def _wait_for_ever(signals: StopSignals) -> None:
    with signals.interrupting():
        await asyncio.Event().wait()


async def test_signal_interrupts_what_is_meant_to_be_interrupted() -> None:
    with StopSignals() as signals:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            await _wait_for_ever(signals)
        await signals.wait()


async def test_signal_that_came_before_keeps_the_next_thing_from_starting() -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        await signals.wait()
        with pytest.raises(Stopped), signals.interrupting():
            pytest.fail("it started")


async def test_signal_outside_interrupts_nothing() -> None:
    with StopSignals() as signals:
        with signals.interrupting():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        await signals.wait()
        await asyncio.sleep(0)


async def test_cancellation_from_elsewhere_stays_one() -> None:
    with StopSignals() as signals:
        task = asyncio.create_task(_wait_for_ever(signals))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_hangup_is_heard_while_something_wants_to_and_ends_nothing_otherwise() -> None:
    heard: asyncio.Queue[int] = asyncio.Queue()
    with Hangups() as hangups:
        os.kill(os.getpid(), signal.SIGHUP)
        await delivered()
        with hangups.calling(lambda: heard.put_nowait(1)):
            assert await heard.get()
            os.kill(os.getpid(), signal.SIGHUP)
            assert await heard.get()
        os.kill(os.getpid(), signal.SIGHUP)
        await delivered()
    assert heard.empty()


async def delivered() -> None:
    """Returns when the loop has handled the signals of before: they are handled in order."""
    came = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, came.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await came.wait()
    asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)
