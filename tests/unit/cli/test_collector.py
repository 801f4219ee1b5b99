"""The garbage collector of a server's process."""

import os
import subprocess
import sys
from pathlib import Path

# In a process of its own: the collector is the process's.
SERVER = """
import asyncio, gc, sys
from pathlib import Path
from famulus_server.cli.serving import serving
from run_stage import stage_settings

async def main():
    async with serving(stage_settings(Path(sys.argv[1]), "http://127.0.0.1:1/v1")) as (server, _):
        await asyncio.wait([server.warming])
        await asyncio.sleep(0)
        print("spared", gc.get_freeze_count(), "looked at", len(gc.get_objects()))

asyncio.run(main())
"""


def test_it_does_not_look_again_and_again_through_what_has_been_imported(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = subprocess.run(
        [sys.executable, "-c", SERVER, str(tmp_path)], capture_output=True, text=True, check=True, env=environ
    )
    [line] = [line for line in told.stdout.splitlines() if line.startswith("spared")]
    spared, looked_at = int(line.split()[1]), int(line.split()[-1])
    assert spared > 20 * looked_at
