"""The PostgreSQL that tests run leaves nothing behind."""

import asyncio
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from postgres import PostgresServer, execute, query

OWNER = """
from postgres import PostgresServer
import sys, time
server = PostgresServer()
server.start()
print(server.postmaster.pid, server.folder, flush=True)
time.sleep(60)
"""


def test_server_goes_with_its_owner_however_that_ends() -> None:
    tests = str(Path(__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": tests}
    ) as owner:
        assert owner.stdout is not None
        pid, folder = owner.stdout.readline().split()
        postmaster = psutil.Process(int(pid))
        family = [postmaster, *postmaster.children(recursive=True)]
        owner.send_signal(signal.SIGKILL)
    _, left = psutil.wait_procs(family, timeout=10)
    shutil.rmtree(folder)
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []


async def test_killed_frozen_and_restarted_server_keeps_what_was_committed() -> None:
    with PostgresServer() as server:
        url = server.create_database()
        execute(url, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (1)")
        server.kill()
        assert not server.running
        with pytest.raises(ConnectionError):
            await query(url, "SELECT 1")
        server.start()
        server.freeze()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(query(url, "SELECT 1"), timeout=0.2)
        server.thaw()
        server.restart()
        assert await query(url, "SELECT n FROM kept") == 1
        folder = server.folder
    assert not folder.exists()
