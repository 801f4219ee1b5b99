"""What is remembered of threads, in Redis: any replica's next run on a thread begins with it.

Nothing here waits but a read, and that not for long (contract 27). One task writes; what it cannot write it drops, as
the next run brings it again - but not what is to be forgotten: that is tried again until Redis has heard of it.
"""

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

import structlog

from famulus_server.coordination.context_entries import Checksum, Unreadable, decode, encode
from famulus_server.coordination.errors import RedisUnavailable
from famulus_server.coordination.loading import load
from famulus_server.coordination.patience import Patience
from famulus_server.coordination.writer import Writer
from famulus_server.ports import Remembered, Sealer

if TYPE_CHECKING:
    from famulus_server.coordination.contexts import RedisContexts

_KEPT_SECONDS = 3_600
_MAX_BYTES = 1024 * 1024
# Each is some milliseconds of work for this process: more at a time would take each other's work for Redis's silence.
_READS_AT_A_TIME = 4
# What may wait to be written, by thread, and how much of it is sent at a time.
_MAX_PUTS = 256
_MAX_FORGOTTEN = 50_000
_PUTS_AT_A_TIME = 4
_FORGOTTEN_AT_A_TIME = 500

_log = structlog.get_logger(__name__)


class RedisThreadCache:
    """See `ports.ThreadCache`. Open and close it.

    What is remembered of a thread is kept for `seconds`, in at most `max_bytes`. `sealer` encrypts it. `patience` is
    that of this process's callers with Redis.
    """

    def __init__(
        self,
        *,
        url: str,
        patience: Patience,
        sealer: Sealer | None = None,
        seconds: int = _KEPT_SECONDS,
        max_bytes: int = _MAX_BYTES,
    ) -> None:
        self._url = url
        self._patience = patience
        self._sealer = sealer or Checksum()
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._puts: OrderedDict[tuple[str, str], Remembered] = OrderedDict()
        self._forgotten: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._writer: Writer[RedisContexts] = Writer(
            name="thread cache",
            connect=self._connect,
            is_due=lambda: bool(self._puts or self._forgotten),
            write=self._write,
            lost=self._give_up,
        )
        self._reads = asyncio.Semaphore(_READS_AT_A_TIME)
        # Counted since this was made: threads of which something was remembered, or nothing; of the former, those of
        # which it no longer held; calls of Redis that failed, and values that could not be read; bytes written.
        self.hits = 0
        self.misses = 0
        self.stale = 0
        self.errors = 0
        self.bytes = 0

    def open(self) -> None:
        """Starts the writer. Until it has connected, nothing is remembered."""
        self._writer.open()

    async def close(self) -> None:
        """Writes what is left, as far as Redis lets it, and closes the connections."""
        await self._writer.close()

    async def flush(self) -> None:
        """Returns once everything put or forgotten so far is written, or could not be."""
        await self._writer.flush()

    async def get(self, tenant: str, thread_id: str) -> Remembered | None:
        remembered = await self._get(tenant, thread_id)
        if remembered is None:
            self.misses += 1
        else:
            self.hits += 1
        return remembered

    def note_stale(self) -> None:
        self.stale += 1

    def put(self, tenant: str, thread_id: str, remembered: Remembered) -> None:
        thread = (tenant, thread_id)
        if thread in self._forgotten:
            return
        # Serialized by the writer: whoever puts is about to ask a model, and must not wait for it.
        self._puts[thread] = remembered
        self._puts.move_to_end(thread)
        if len(self._puts) > _MAX_PUTS:
            self._puts.popitem(last=False)
        self._writer.wake()

    def forget(self, tenant: str, thread_id: str) -> None:
        self._puts.pop((tenant, thread_id), None)
        self._forgotten[tenant, thread_id] = None
        if len(self._forgotten) > _MAX_FORGOTTEN:
            # What is kept of it expires.
            self._forgotten.popitem(last=False)
        self._writer.wake()

    async def _get(self, tenant: str, thread_id: str) -> Remembered | None:
        # A caller is not to wait for the import of a package.
        connecting = self._writer.connecting
        if connecting is None or not connecting.done():
            return None
        async with self._reads:
            if self._patience.is_spent:
                return None
            try:
                with self._patience.wait():
                    value = await (await connecting).read(tenant, thread_id)
            except RedisUnavailable:
                self.errors += 1
                return None
        try:
            return None if value is None else decode(tenant, thread_id, value, sealer=self._sealer)
        except Unreadable:
            self.errors += 1
            return None

    async def _connect(self) -> "RedisContexts":
        module = await load("contexts")
        contexts: RedisContexts = module.RedisContexts(url=self._url, patience=self._patience, seconds=self._seconds)
        return contexts

    def _give_up(self) -> None:
        self.errors += 1
        self._puts.clear()

    async def _write(self, contexts: "RedisContexts") -> None:
        """Writes some of what there is to write. Raises RedisUnavailable, and nothing else."""
        forgotten = [self._forgotten.popitem(last=False)[0] for _ in range(self._count_forgotten())]
        try:
            values = self._take_values()
            await contexts.write(forgotten, values)
        except Exception as error:
            self._forgotten.update(dict.fromkeys(forgotten))
            if isinstance(error, RedisUnavailable):
                raise
            _log.exception("thread cache cannot write")
            raise RedisUnavailable(type(error).__name__) from error
        self.bytes += sum(len(value) for *_, value in values)

    def _count_forgotten(self) -> int:
        return min(len(self._forgotten), _FORGOTTEN_AT_A_TIME)

    def _take_values(self) -> list[tuple[str, str, bytes]]:
        values = []
        for _ in range(min(len(self._puts), _PUTS_AT_A_TIME)):
            (tenant, thread_id), remembered = self._puts.popitem(last=False)
            value = encode(tenant, thread_id, remembered, sealer=self._sealer, max_bytes=self._max_bytes)
            if value is not None:
                values.append((tenant, thread_id, value))
        return values
