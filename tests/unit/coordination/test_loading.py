"""The redis package, imported in a process that does not have it yet."""

import asyncio
import sys
from asyncio.subprocess import DEVNULL

_TOGETHER = """
import asyncio
import sys
from famulus_server.coordination.loading import load

async def main():
    assert "redis" not in sys.modules
    # Threads take turns so often that they meet in the middle of it.
    sys.setswitchinterval(1e-6)
    await asyncio.gather(load("streams"), load("channels"))
    assert "redis" in sys.modules

asyncio.run(main())
"""


async def test_all_who_need_the_redis_package_may_load_it_at_once() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _TOGETHER, stdin=DEVNULL)
    assert await process.wait() == 0
