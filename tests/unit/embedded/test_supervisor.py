"""Children that end by themselves are started again; real processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from structlog.testing import capture_logs

from famulus_server.embedded.child import ChildProcess
from famulus_server.embedded.errors import EmbeddedUnavailable
from famulus_server.embedded.supervisor import Child, keep_running
from famulus_server.embedded.valkey import EmbeddedValkey


class Naps:
    """Sleeps for no time, remembers how long it should have been, and says when it was asked often enough."""

    def __init__(self, *, enough: int) -> None:
        self.asked: list[float] = []
        self.enough = asyncio.Event()
        self._number = enough

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        if len(self.asked) >= self._number:
            self.enough.set()
            await asyncio.Event().wait()


class Command:
    """A command as a child; may be made to not start."""

    def __init__(self, *command: str, log: Path, refuse: Callable[[], bool] = lambda: False) -> None:
        self._command = command
        self._log = log
        self._refuse = refuse
        self._child: ChildProcess | None = None
        self.starts = 0

    async def start(self) -> str:
        self.starts += 1
        if self._refuse():
            raise EmbeddedUnavailable("it is not there", "Find it")
        self._child = await ChildProcess.start(self._command, log=self._log)
        return ""

    async def exited(self) -> int:
        assert self._child is not None
        return await self._child.exited()


@asynccontextmanager
async def supervised(child: Child, naps: Naps) -> AsyncIterator[None]:
    task = asyncio.create_task(keep_running(child, name="child", sleep=naps))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def path_of(command: str) -> str:
    found = shutil.which(command)
    assert found
    return found


async def test_child_that_ends_again_and_again_is_started_less_and_less_often(tmp_path: Path) -> None:
    child, naps = Command(path_of("false"), log=tmp_path / "log"), Naps(enough=8)
    await child.start()
    with capture_logs() as told:
        async with supervised(child, naps):
            await naps.enough.wait()
    assert naps.asked == [1, 2, 4, 8, 16, 30, 30, 30]
    assert child.starts == 8
    ends = [entry for entry in told if entry["event"] == "embedded server ended"]
    assert [(entry["name"], entry["exit_code"], entry["log_level"]) for entry in ends] == [("child", 1, "warning")] * 8
    assert [entry["restart_in"] for entry in ends] == naps.asked


async def test_child_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    child = Command(path_of("false"), log=tmp_path / "log", refuse=lambda: 1 < child.starts < 4)
    naps = Naps(enough=4)
    await child.start()
    with capture_logs() as told:
        async with supervised(child, naps):
            await naps.enough.wait()
    assert naps.asked == [1, 2, 4, 8]
    assert child.starts == 4
    failures = [entry["error"] for entry in told if entry["event"] == "embedded server does not start"]
    assert failures == ["it is not there. Find it"] * 2


async def test_child_that_has_run_for_long_is_started_again_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever ran at all has then run for long, and every delay but the first would be none.
    monkeypatch.setattr("famulus_server.embedded.supervisor._MAX_DELAY", 0.0)
    child, naps = Command(path_of("false"), log=tmp_path / "log"), Naps(enough=3)
    await child.start()
    async with supervised(child, naps):
        await naps.enough.wait()
    assert naps.asked == [1, 1, 1]


async def test_nothing_is_started_again_once_supervision_has_ended(tmp_path: Path) -> None:
    child, naps = Command(path_of("sleep"), "60", log=tmp_path / "log"), Naps(enough=1)
    await child.start()
    async with supervised(child, naps):
        await asyncio.sleep(0)
    assert child._child is not None
    await child._child.close()
    assert (child.starts, naps.asked) == (1, [])


async def test_killed_valkey_is_back_at_its_url_with_its_data(tmp_path: Path) -> None:
    valkey = EmbeddedValkey(data_dir=tmp_path)
    patient = Retry(ConstantBackoff(0.01), 1_000)
    async with Redis.from_url(await valkey.start(), retry=patient) as redis:
        await redis.set("key", "kept")
        process = int((await redis.info("server"))["process_id"])
        back = asyncio.Event()

        async def at_once(_: float) -> None:
            back.set()

        task = asyncio.create_task(keep_running(valkey, name="valkey", sleep=at_once))
        os.kill(process, signal.SIGKILL)
        await back.wait()
        assert await redis.get("key") == b"kept"
        assert int((await redis.info("server"))["process_id"]) != process
        task.cancel()
        await asyncio.wait([task])
    await valkey.close()
