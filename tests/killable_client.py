"""A client in a process of its own, which kills itself in the middle of a stream. `python -m killable_client TARGET RUN
COUNT` watches a run, writes each event as a line of hexadecimal digits, and is gone by SIGKILL after COUNT events."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE

from famulus import FamulusClient
from famulus.v1.run_event_pb2 import RunEvent


async def watch_and_die(target: str, run_id: str, count: int) -> list[RunEvent]:
    """What a client saw of a run before it was killed by the last of `count` events."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "killable_client", target, run_id, str(count)),
        stdout=PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    told, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    return [RunEvent.FromString(bytes.fromhex(line.decode())) for line in told.split()]


async def _watch(target: str, run_id: str, count: int) -> None:
    async with FamulusClient(target) as client, client.watch_run(run_id) as stream:
        async for event in stream:
            print(event.SerializeToString().hex(), flush=True)  # noqa: T201 - how the test learns it
            count -= 1
            if not count:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(_watch(sys.argv[1], sys.argv[2], int(sys.argv[3])))
