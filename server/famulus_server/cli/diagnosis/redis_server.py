"""Redis or Valkey: the one that is configured, or the embedded one where it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from famulus_server.cli.diagnosis.findings import Finding, fail, ok, warn

if TYPE_CHECKING:
    from famulus_server.config import Settings
    from famulus_server.coordination.inspection import RedisSight

_ANSWER_SECONDS = 2.0
# A caller waits for 50 ms at most, then the replica goes on without.
_SLOW_SECONDS = 0.005
_VERY_SLOW_SECONDS = 0.05
_MUCH = 0.8
_NEARLY_ALL = 0.95
_MEGABYTE = 1_000_000
_REMEDIES = {
    "AuthenticationError": "Correct user and password in [redis] url, best given as FAMULUS_REDIS_URL.",
    "AuthenticationWrongNumberOfArgsError": "Give a password in [redis] url, best as FAMULUS_REDIS_URL.",
    "ResponseError": "Correct user, password and number of the database in [redis] url.",
    "NoPermissionError": "Allow that user the commands INFO and PING, and those of streams, scripts and keys.",
    "TimeoutError": "Find out why it hangs, or what drops packets on the way.",
    "BusyLoadingError": "Wait: it loads its data.",
}


async def check_redis(settings: Settings) -> Sequence[Finding]:
    """What is there, and whether it is fit for limits, events and hints."""
    if settings.redis.url:
        return await _look(settings.redis.url)
    socket = settings.data_dir.resolve() / "valkey" / "valkey.sock"
    if socket.exists():
        return await _look(f"unix://{quote(str(socket))}", embedded=True)
    from famulus_server.embedded.errors import EmbeddedUnavailable
    from famulus_server.embedded.valkey import find_binary

    try:
        find_binary()
    except EmbeddedUnavailable as unavailable:
        return [fail("", unavailable.reason, f"{unavailable.remedy}.")]
    return [ok("", "an embedded Valkey server, which `serve` starts")]


async def _look(url: str, *, embedded: bool = False) -> list[Finding]:
    from famulus_server.cli.config_explanation import without_password
    from famulus_server.coordination.errors import RedisUnavailable
    from famulus_server.coordination.inspection import inspect_redis

    try:
        sight = await inspect_redis(url, timeout=_ANSWER_SECONDS)
    except RedisUnavailable as error:
        if embedded:
            return [ok("", "an embedded Valkey server, which does not run now; `serve` starts it")]
        remedy = _REMEDIES.get(str(error).partition(":")[0], "Start it, or correct [redis] url.")
        return [fail("", f"{without_password(url)}: {error}", remedy)]
    return list(_judge(without_password(url), sight))


def _judge(where: str, sight: RedisSight) -> Iterator[Finding]:
    yield ok("", f"{where}: {sight.software} {sight.version}")
    if sight.replica:
        yield fail("writes", "it is a replica, and takes no writes", "Give [redis] url the address of the primary.")
    if sight.cluster:
        yield warn("cluster", "it is a node of a cluster", "Use a server that is none: one connection serves all keys.")
    yield _of_latency(sight.ping_seconds)
    yield _of_policy(sight)
    yield _of_memory(sight)
    if sight.appends:
        yield ok("persistence", "it appends to a file")
    else:
        yield ok("persistence", "none: after its restart, streams begin with a Snapshot and limits are full again")


def _of_latency(seconds: float) -> Finding:
    seen = f"PING takes {seconds * 1_000:.2f} ms"
    remedy = "Bring it closer to the servers: each call waits for it, and replicas do without above 50 ms."
    if seconds >= _VERY_SLOW_SECONDS:
        return fail("latency", seen, remedy)
    return warn("latency", seen, remedy) if seconds >= _SLOW_SECONDS else ok("latency", seen)


def _of_policy(sight: RedisSight) -> Finding:
    thrown = f"; {sight.evicted:,} keys were thrown away since its start" if sight.evicted else ""
    seen = f"{sight.policy}{thrown}"
    if sight.policy == "noeviction" and not sight.evicted:
        return ok("memory policy", seen)
    return warn(
        "memory policy",
        seen,
        "Set maxmemory-policy to noeviction: thrown away limits let callers exceed them, and streams lose events.",
    )


def _of_memory(sight: RedisSight) -> Finding:
    used = f"{sight.used / _MEGABYTE:,.1f} MB"
    if not sight.limit:
        return warn("memory", f"{used} used, with no limit", "Set maxmemory, below what its machine has.")
    share = sight.used / sight.limit
    seen = f"{used} of {sight.limit / _MEGABYTE:,.1f} MB used"
    if share < _MUCH:
        return ok("memory", seen)
    remedy = "Raise maxmemory: once it is full, writes are refused and replicas go on as without Redis."
    return fail("memory", seen, remedy) if share >= _NEARLY_ALL else warn("memory", seen, remedy)
