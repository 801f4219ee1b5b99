"""The guard and its owner's side, with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from famulus_server.embedded import child as child_module
from famulus_server.embedded.child import ChildProcess
from famulus_server.embedded.errors import EmbeddedUnavailable
from famulus_server.embedded.lock import lock

GUARD = Path(child_module.__file__).with_name("guard.py")
SECONDS = 10.0

TELLS_ITS_PID_AND_WAITS = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
WAITS = "import signal; signal.pause()"
IGNORES_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + TELLS_ITS_PID_AND_WAITS
HAS_A_CHILD = (
    "import subprocess, sys, time\n"
    f"subprocess.Popen([sys.executable, '-c', {TELLS_ITS_PID_AND_WAITS!r}])\n"
    "time.sleep(60)"
)
OWNER = """
    import asyncio, sys
    from pathlib import Path
    from famulus_server.embedded.child import ChildProcess

    async def own():
        child = await ChildProcess.start(
            [sys.executable, "-c", sys.argv[1]], log=Path(sys.argv[2]), reports=True
        )
        print(await child.report(), flush=True)
        await child.exited()

    asyncio.run(own())
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def is_gone(process: psutil.Process) -> bool:
    """Whether it ends in time; one that nobody has reaped yet counts as ended."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)  # the end of a process that is not one's child cannot be awaited
    return False


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    arguments = python(textwrap.dedent(OWNER), HAS_A_CHILD, str(tmp_path / "log"))
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_whole_family_dies_with_an_owner_killed_by_sigkill(owner: subprocess.Popen[str]) -> None:
    assert owner.stdout is not None
    grandchild = psutil.Process(int(owner.stdout.readline()))
    family = psutil.Process(owner.pid).children(recursive=True)
    assert grandchild in family
    assert len(family) == 3  # the guard, the command, the command's child

    owner.kill()

    assert [member for member in family if not is_gone(member)] == []


def test_guard_kills_a_command_that_ignores_sigterm_after_the_grace() -> None:
    command = [sys.executable, "-I", "-S", str(GUARD), "0.1", *python(IGNORES_SIGTERM)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as guard:
        assert guard.stdin is not None
        assert guard.stdout is not None
        stubborn = psutil.Process(int(guard.stdout.readline()))
        guard.stdin.close()

        assert is_gone(stubborn)
        assert guard.wait(SECONDS) == -signal.SIGKILL  # it went with its group


async def test_command_is_closed_by_sigterm_first(tmp_path: Path) -> None:
    says_goodbye = (
        "import signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "print('up', flush=True)\n"
        "signal.sigwait([signal.SIGTERM])\n"
        "sys.exit(7)"
    )
    child = await ChildProcess.start(python(says_goodbye), log=tmp_path / "log", reports=True)
    assert await child.report() == "up"
    assert await child.close() == 7
    assert await child.close() == 7


async def test_exit_code_is_passed_through(tmp_path: Path) -> None:
    child = await ChildProcess.start(python("raise SystemExit(3)"), log=tmp_path / "log")
    assert await child.exited() == 3


async def test_end_by_a_signal_is_told_as_shells_do(tmp_path: Path) -> None:
    suicide = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    child = await ChildProcess.start(python(suicide), log=tmp_path / "log")
    assert await child.exited() == 128 + signal.SIGKILL


async def test_command_does_not_survive_the_killing_of_its_guard(tmp_path: Path) -> None:
    child = await ChildProcess.start(python(IGNORES_SIGTERM), log=tmp_path / "log", reports=True)
    command = psutil.Process(int(await child.report()))
    guard = command.parent()
    assert guard is not None

    guard.kill()

    assert await child.exited() == 128 + signal.SIGKILL
    assert await asyncio.to_thread(is_gone, command)


@pytest.mark.parametrize("steps", range(2, 12))
async def test_start_that_is_cancelled_at_any_step_leaves_no_command(tmp_path: Path, steps: int) -> None:
    told = tmp_path / "told"
    command = python(
        f"import os; os.write(os.open({str(told)!r}, os.O_CREAT | os.O_WRONLY), b'%d' % os.getpid())\n{WAITS}"
    )
    starting = asyncio.create_task(ChildProcess.start(command, log=tmp_path / "log"))
    for _ in range(steps):
        await asyncio.sleep(0)
    # The loop stands still, so that the guard has started the command before asyncio knows of the guard.
    pid = _told(told)
    starting.cancel()

    with contextlib.suppress(asyncio.CancelledError):
        await (await starting).close()

    assert pid is None or not psutil.pid_exists(pid) or await asyncio.to_thread(is_gone, psutil.Process(pid))


def _told(file: Path) -> int | None:
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        if file.exists() and (text := file.read_text()):
            return int(text)
        time.sleep(0.01)
    return None


async def test_frozen_guard_does_not_keep_the_owner_from_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(child_module, "_SLACK_SECONDS", 0.1)
    child = await ChildProcess.start(python(TELLS_ITS_PID_AND_WAITS), log=tmp_path / "log", reports=True)
    command = psutil.Process(int(await child.report()))
    guard = command.parent()
    assert guard is not None
    guard.suspend()

    await child.close()

    assert await asyncio.to_thread(is_gone, command)


async def test_command_that_cannot_be_run_says_so_in_the_log(tmp_path: Path) -> None:
    child = await ChildProcess.start([str(tmp_path / "absent")], log=tmp_path / "log")
    assert await child.exited() == 127
    assert "No such file" in (tmp_path / "log").read_text()


async def test_output_is_appended_to_the_log(tmp_path: Path) -> None:
    for word in ("one", "two"):
        both = f"import os; os.write(1, b'{word} '); os.write(2, b'{word}!\\n')"
        child = await ChildProcess.start(python(both), log=tmp_path / "log")
        await child.exited()
    assert (tmp_path / "log").read_text() == "one one!\ntwo two!\n"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
async def test_command_inherits_no_ignored_signal_and_no_stray_file(tmp_path: Path) -> None:
    looks = "cat /proc/self/status; ls /proc/self/fd"
    child = await ChildProcess.start(["/bin/sh", "-c", looks], log=tmp_path / "log")
    assert await child.exited() == 0
    lines = (tmp_path / "log").read_text().splitlines()
    ignored = next(line.split()[1] for line in lines if line.startswith("SigIgn"))
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGCHLD):
        assert int(ignored, 16) >> (number - 1) & 1 == 0
    assert lines[-4:] == ["0", "1", "2", "3"]  # the last is the folder that ls reads


async def test_child_that_ends_before_it_is_ready_is_told_with_its_last_words(tmp_path: Path) -> None:
    dies = "import sys; sys.exit('the disk is full')"
    child = await ChildProcess.start(python(dies), log=tmp_path / "store.log")
    with pytest.raises(EmbeddedUnavailable, match="store ended with code 1: the disk is full") as raised:
        await child.until(asyncio.Event().wait(), within=SECONDS)
    assert str(tmp_path / "store.log") in raised.value.remedy


async def test_child_that_ends_without_its_report_is_told_with_its_last_words(tmp_path: Path) -> None:
    dies = "import sys; sys.exit('no such model')"
    child = await ChildProcess.start(python(dies), log=tmp_path / "model.log", reports=True)
    with pytest.raises(EmbeddedUnavailable, match="no such model"):
        await child.until(child.report(), within=SECONDS)


async def test_child_that_is_not_ready_in_time_is_closed(tmp_path: Path) -> None:
    child = await ChildProcess.start(python(TELLS_ITS_PID_AND_WAITS), log=tmp_path / "log", reports=True)
    await child.report()
    with pytest.raises(EmbeddedUnavailable, match=r"not ready in 0\.01 s"):
        await child.until(asyncio.Event().wait(), within=0.01)
    assert await child.exited() == 128 + signal.SIGTERM


async def test_successor_starts_only_when_its_predecessor_is_gone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    slow_to_end = (
        "import os, signal, time\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "print('up', flush=True)\n"
        "signal.sigwait([signal.SIGTERM])\n"  # unlike a handler and `pause`, it misses none that comes before
        "time.sleep(0.3)\n"
        "os.write(2, b'first ends\\n')"
    )
    first = await ChildProcess.start(python(slow_to_end), log=log, reports=True)
    await first.report()
    closing = asyncio.create_task(first.close())
    second = await ChildProcess.start(python("import os; os.write(2, b'second starts\\n')"), log=log)
    await second.exited()
    await closing
    assert log.read_text() == "first ends\nsecond starts\n"


async def test_directory_in_use_by_another_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    child = await ChildProcess.start(python(TELLS_ITS_PID_AND_WAITS), log=log, reports=True)
    await child.report()
    monkeypatch.setattr(child_module, "_GRACE_SECONDS", 0.05)
    monkeypatch.setattr(child_module, "_SLACK_SECONDS", 0.0)
    with pytest.raises(EmbeddedUnavailable, match="another server uses this directory"):
        await ChildProcess.start(python("pass"), log=log)
    monkeypatch.undo()
    await child.close()


async def test_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedUnavailable, match="cannot be written"):
        await ChildProcess.start(python("pass"), log=tmp_path / "file" / "log")


async def test_lock_waits_for_its_holder(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    try:
        await lock(first, patience=0)
        with pytest.raises(TimeoutError):
            await lock(second, patience=0.03)
        waiting = asyncio.create_task(lock(second, patience=SECONDS))
        await asyncio.sleep(0)
        os.close(first)
        await waiting
    finally:
        os.close(second)
