"""What can be seen of a Redis or Valkey server, for whoever looks for what is wrong. Changes nothing."""

import asyncio
import statistics
from dataclasses import dataclass
from typing import Any

from famulus_server.coordination.connection import Line
from famulus_server.coordination.errors import RedisUnavailable

_PINGS = 21


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSight:
    """Sizes in bytes. `ping_seconds` is what the median of some PINGs took."""

    software: str
    version: str
    replica: bool  # of another server, so it takes no writes
    cluster: bool
    policy: str  # what it does where its memory is full
    used: int
    limit: int  # 0: none
    evicted: int  # keys that it threw away for want of memory
    appends: bool  # to a file on disk
    ping_seconds: float


async def inspect_redis(url: str, *, timeout: float) -> RedisSight:
    """What is there; an answer may take `timeout` seconds. Raises RedisUnavailable."""
    line = Line(url=url, timeout=timeout)
    try:
        await line.renew()
        [told] = await line.ask([("INFO",)])
        if isinstance(told, Exception):
            raise RedisUnavailable(type(told).__name__)
        ping_seconds = statistics.median([await _ping(line) for _ in range(_PINGS)])
    finally:
        await line.close()
    return _read(told, ping_seconds)


async def _ping(line: Line) -> float:
    now = asyncio.get_running_loop().time
    started = now()
    await line.ask([("PING",)])
    return now() - started


def _read(told: Any, ping_seconds: float) -> RedisSight:
    pairs = (text.partition(":") for text in bytes(told).decode(errors="replace").splitlines())
    info = {key: value.strip() for key, _, value in pairs}
    valkey = info.get("valkey_version", "")
    return RedisSight(
        software="Valkey" if valkey else "Redis",
        version=valkey or info.get("redis_version", ""),
        replica=info.get("role") == "slave",
        cluster=info.get("cluster_enabled") == "1",
        policy=info.get("maxmemory_policy", ""),
        used=int(info.get("used_memory", 0)),
        limit=int(info.get("maxmemory", 0)),
        evicted=int(info.get("evicted_keys", 0)),
        appends=info.get("aof_enabled") == "1",
        ping_seconds=ping_seconds,
    )
