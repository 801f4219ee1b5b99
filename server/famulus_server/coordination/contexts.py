"""Redis as the thread cache uses it: one string per thread."""

from collections.abc import Iterable, Sequence

from redis.exceptions import ResponseError

from famulus_server.coordination.connection import Command, Line, Reader, reason
from famulus_server.coordination.context_entries import TOMBSTONE
from famulus_server.coordination.errors import RedisUnavailable
from famulus_server.coordination.patience import Patience

_WRITE_TIMEOUT = 1.0

# Compare and set: what is there stays, unless it is older, as old and narrower, or unreadable. Whether Redis is full is
# asked before the first write, which therefore has to be the only one.
# KEYS: context. ARGV: value, seconds to keep it, revision, upto, floor.
_PUT = b"""
local held = redis.pcall('GETRANGE', KEYS[1], 0, 63)
if type(held) == 'string' then
  local revision, upto, floor = string.match(held, '^1 (%d+) (%d+) (%d+)\\n')
  if revision then
    local ours = {tonumber(ARGV[3]), tonumber(ARGV[4]), -tonumber(ARGV[5])}
    local theirs = {tonumber(revision), tonumber(upto), -tonumber(floor)}
    local i = 1
    while i < 3 and ours[i] == theirs[i] do i = i + 1 end
    if ours[i] <= theirs[i] then return 0 end
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""


class RedisContexts:
    """What is remembered of all threads behind one URL; each value for `seconds` from its last write.
    `patience` is that of its readers."""

    def __init__(self, *, url: str, patience: Patience, seconds: int) -> None:
        self._line = Line(url=url, timeout=_WRITE_TIMEOUT)
        self._reader = Reader(url=url, patience=patience)
        self._seconds = seconds

    async def close(self) -> None:
        """Closes the connections."""
        await self._line.close()
        await self._reader.close()

    async def read(self, tenant: str, thread_id: str) -> bytes | None:
        """The value of a thread, if there is one. Raises RedisUnavailable."""
        try:
            value: bytes | None = await self._reader.ask("GET", _key(tenant, thread_id))
        except RedisUnavailable as error:
            if str(error.__cause__).startswith("WRONGTYPE"):
                # A foreign kind of key is one thread's bad luck.
                return None
            raise
        return value

    async def write(self, forgotten: Iterable[tuple[str, str]], values: Sequence[tuple[str, str, bytes]]) -> None:
        """Forgets threads, named by (tenant, thread id), for good, then keeps what is newer than what is there: a value
        of a (tenant, thread id) each. Raises RedisUnavailable, and then nobody knows what was written."""
        commands: list[Command] = []
        for tenant, thread_id in forgotten:
            key = _key(tenant, thread_id)
            # A late worker must not bring back what was deleted (contract 24). A Redis that is full at least deletes.
            commands += [("DEL", key), ("SET", key, TOMBSTONE, "EX", self._seconds)]
        for tenant, thread_id, value in values:
            numbers = value.partition(b"\n")[0].split()[1:]
            commands.append(("EVAL", _PUT, 1, _key(tenant, thread_id), value, self._seconds, *numbers))
        await self._line.renew()
        for answer in await self._line.ask(commands):
            if isinstance(answer, ResponseError):
                await self._line.close()
                raise RedisUnavailable(reason(answer))


def _key(tenant: str, thread_id: str) -> bytes:
    return f"famulus:{{{thread_id}}}:{tenant}:context".encode()
