"""What may befall the Redis that replicas share."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from redis.asyncio import Redis
from redis.exceptions import RedisError

from famulus.v1.run_event_pb2 import RunEvent
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.engine.packing import events_of, unpack


class Valkey:
    """The server that the replicas share, and what may befall it."""

    def __init__(self, embedded: EmbeddedValkey, folder: Path, url: str) -> None:
        self._embedded = embedded
        self._folder = folder
        self._url = url
        self._process: psutil.Process | None = None

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Redis]:
        async with Redis.from_url(self._url) as client:
            yield client

    async def kill(self) -> None:
        async with self.client() as client:
            os.kill((await client.info("server"))["process_id"], signal.SIGKILL)
        await self._embedded.exited()

    async def come_back_empty(self) -> None:
        shutil.rmtree(self._folder / "appendonlydir")
        await self._embedded.start()

    async def freeze(self) -> None:
        async with self.client() as client:
            self._process = psutil.Process((await client.info("server"))["process_id"])
        self._process.suspend()

    async def thaw(self) -> None:
        if self._process is not None:
            self._process.resume()
            self._process = None

    async def deny_writes(self) -> None:
        async with self.client() as client:
            # The replica of a server that is not there.
            await client.replicaof("127.0.0.1", 1)

    async def allow_writes(self) -> None:
        async with self.client() as client:
            await client.replicaof("NO", "ONE")

    async def fill(self) -> None:
        async with self.client() as client:
            await client.config_set("maxmemory", 1)

    async def make_room(self) -> None:
        async with self.client() as client:
            await client.config_set("maxmemory", 256 * 1024 * 1024)

    async def until_it_has(self, run_id: str, events: Sequence[RunEvent]) -> None:
        """Returns once the stream of a run holds these events, from the first on."""
        wanted = list(events)
        async with self.client() as client:
            while True:
                entries: Any = []
                with suppress(RedisError):
                    entries = await client.xrange(f"famulus:{{{run_id}}}:events")
                if events_of(unpack(fields[b"e"]) for _, fields in entries)[: len(wanted)] == wanted:
                    return
                await asyncio.sleep(0.02)


Step = Callable[[Valkey], Awaitable[None]]
FAULTS: dict[str, tuple[Step, Step]] = {
    "killed and back empty": (Valkey.kill, Valkey.come_back_empty),
    "frozen": (Valkey.freeze, Valkey.thaw),
    "read-only": (Valkey.deny_writes, Valkey.allow_writes),
    "out of memory": (Valkey.fill, Valkey.make_room),
}
