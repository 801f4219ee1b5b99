"""Writing the audit log behind the calls, so that none of them waits for it."""

import asyncio
import contextlib
from collections import deque
from itertools import islice

import structlog

from famulus_server.ports import AuditEntry, Clock, Ids, Store

# Of callers whom nobody knows, so many are noted in a window of so many seconds; the others are counted.
_MOST_STRANGERS = 100
_WINDOW_SECONDS = 10.0
_BATCH = 500
_RETRY_SECONDS = 1.0
_CLOSE_SECONDS = 5.0

_log = structlog.get_logger(__name__)


class AuditTrail:
    """Takes entries at once and appends them soon, in batches, from one task.

    While the store is away they wait. What waits when the process is killed is lost; `close` writes it.
    """

    def __init__(self, *, store: Store, clock: Clock, ids: Ids, most: int = 10_000, pause: float = 0.05) -> None:
        """Where `most` entries wait, the trail is full. Entries gather for `pause` seconds before they are written."""
        self._store = store
        self._clock = clock
        self._ids = ids
        self._most = most
        self._pause = pause
        self._waiting: deque[AuditEntry] = deque()
        self._noted = asyncio.Event()
        self._strangers = 0
        self._left_out = 0
        self._window_ends = 0.0
        self._closing = False
        self._told = False
        self._writer: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Starts writing."""
        self._writer = asyncio.create_task(self._write(), name="audit")

    async def close(self) -> None:
        """Writes what waits, for a few seconds if the store lets it; the log says how much was lost otherwise."""
        self._closing = True
        self._noted.set()
        if self._writer is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._writer, _CLOSE_SECONDS)
        if lost := len(self._waiting):
            _log.error("audit entries lost", entries=lost)

    @property
    def full(self) -> bool:
        """Whether what must be noted is not to be done now."""
        return len(self._waiting) >= self._most

    def note(self, entry: AuditEntry, *, must: bool) -> None:
        """Takes an entry. Those that need not be there are only counted while the trail is full."""
        if must or not self.full:
            self._waiting.append(entry)
        else:
            self._left_out += 1
        self._noted.set()

    def note_stranger(self, entry: AuditEntry) -> None:
        """Takes an entry of a caller whom nobody knows. Of a flood of them most are only counted."""
        now = asyncio.get_running_loop().time()
        if now >= self._window_ends:
            self._strangers, self._window_ends = 0, now + _WINDOW_SECONDS
        self._strangers += 1
        if self._strangers <= _MOST_STRANGERS:
            self.note(entry, must=False)
        else:
            self._left_out += 1
            self._noted.set()

    async def _write(self) -> None:
        while not (self._closing and not self._waiting and not self._left_out):
            await self._wait()
            self._tell_left_out()
            while self._waiting:
                batch = list(islice(self._waiting, _BATCH))
                await self._append(batch)
                for _ in batch:
                    self._waiting.popleft()

    async def _wait(self) -> None:
        """Until there is something to write, and a bit more has gathered."""
        if not self._closing:
            # What was left out is told once the window is over, also where nothing else happens.
            until = self._window_ends if self._left_out else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._noted.wait()
            await asyncio.sleep(self._pause)
        self._noted.clear()

    def _tell_left_out(self) -> None:
        over = self._closing or asyncio.get_running_loop().time() >= self._window_ends
        if self._left_out and over:
            entry = AuditEntry(id=self._ids.new("audit"), time=self._clock.now(), left_out=self._left_out)
            self._waiting.append(entry)
            self._left_out = 0

    async def _append(self, batch: list[AuditEntry]) -> None:
        """Tries until it is done: only then may other entries follow."""
        while True:
            try:
                await self._store.write(lambda tx: tx.audit.append(batch))
            except Exception as error:  # noqa: BLE001 - whatever it is, no entry may be lost by it
                if not self._told:
                    _log.error(
                        "the audit log cannot be written", error=type(error).__name__, waiting=len(self._waiting)
                    )
                self._told = True
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                if self._told:
                    self._told = False
                    _log.info("the audit log is written again")
                return
