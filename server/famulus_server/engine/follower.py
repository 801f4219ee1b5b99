"""Brings the logs of runs that are executed elsewhere up to date, for all watchers of this process (contract 12).

One task does so, however many watch. A hint says which run has news, and the EventLog is read right behind what is
here. Hints may be lost: each second everything that is followed is read. The EventLog may be lost, too: each second the
store tells which runs have changed, and a log that stays behind what is stored goes on from there; its watchers get a
Snapshot.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from famulus.v1.run_pb2 import Run
from famulus_server.engine import lifecycle
from famulus_server.engine.feed import Feed, RunLog
from famulus_server.errors import NotFound, Unavailable
from famulus_server.ports import STOP, EventLog, Hints, Store, Transaction, events_topic

_POLL_SECONDS = 1.0
# Of so many followed runs each second: with more of them a round takes longer, and does not cost more.
_RUNS_PER_SECOND = 2_000
_RUNS_PER_READ = 500
_BATCHES_PER_READ = 64

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Followed:
    """A run that is watched here. `behind` tells at which sequence its log was found behind the store, and when."""

    tenant: str
    log: RunLog
    watchers: int = 0
    etag: str = ""
    behind: tuple[int, float] | None = None
    stop_listening: Callable[[], None] | None = None


class Follower:
    """Keeps the logs of watched runs up to date. Where only one process has the store, there is nothing to follow: do
    not `open` it."""

    def __init__(self, *, store: Store, feed: Feed, event_log: EventLog, hints: Hints) -> None:
        self._store = store
        self._feed = feed
        self._event_log = event_log
        self._hints = hints
        self._followed: dict[str, _Followed] = {}
        self._hinted: set[str] = set()
        self._suspected: set[str] = set()
        self._wake = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._deaf: Callable[[], None] | None = None

    def open(self) -> None:
        """Starts following."""
        self._deaf = self._hints.listen(STOP, self._hear_stop)
        self._following = asyncio.create_task(self._follow_loop(), name="follow")

    async def close(self) -> None:
        """Stops following."""
        if self._following is not None and self._deaf is not None:
            self._deaf()
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def following(self, tenant: str, run: Run) -> AsyncIterator[RunLog]:
        """The log of a run, kept up to date for as long as this is entered. Raises NotFound."""
        fresh = self._feed.find(run.id) is None
        with self._feed.using(run) as log:
            if fresh:
                await self._check_deleted(tenant, run.id)
            if self._following is None:
                yield log
                return
            followed = self._followed.setdefault(run.id, _Followed(tenant, log))
            followed.watchers += 1
            if not log.owned:
                self._listen(run.id, followed, wanted=True)
                self._hear(run.id)
            try:
                yield log
            finally:
                followed.watchers -= 1
                if not followed.watchers:
                    self._listen(run.id, followed, wanted=False)
                    if self._followed.get(run.id) is followed:
                        del self._followed[run.id]

    async def _check_deleted(self, tenant: str, run_id: str) -> None:
        """Whoever deleted the thread before its run's log was here found no watcher to tell."""
        try:
            await self._store.read(lambda tx: tx.runs.get(tenant, run_id))
        except NotFound:
            self._feed.drop(run_id)
            raise

    def _hear(self, run_id: str) -> None:
        self._hinted.add(run_id)
        self._wake.set()

    def _hear_stop(self, run_id: str) -> None:
        # Without a name: hints may have been missed.
        if not run_id or run_id in self._followed:
            self._suspected |= {run_id} if run_id else set(self._followed)
            self._wake.set()

    async def _follow_loop(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            self._wake.clear()
            if loop.time() >= due:
                await self._attempt(self._round)
                due = loop.time() + max(_POLL_SECONDS, len(self._followed) / _RUNS_PER_SECOND)
            else:
                await self._attempt(self._follow_hints)

    async def _attempt(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except Unavailable:
            _log.warning("store unavailable, watched runs are not compared with it")
        except Exception:  # noqa: BLE001 - a loop that died would be missed by nobody until streams hang
            _log.exception("following failed")

    async def _follow_hints(self) -> None:
        hinted, self._hinted = self._hinted, set()
        suspected, self._suspected = self._suspected, set()
        await self._read(hinted)
        await self._compare(suspected)

    async def _round(self) -> None:
        self._hinted.clear()
        self._suspected.clear()
        run_ids = list(self._followed)
        for start in range(0, len(run_ids), _RUNS_PER_READ):
            some = run_ids[start : start + _RUNS_PER_READ]
            await self._read(some)
            await self._compare(some)

    async def _read(self, run_ids: Iterable[str]) -> None:
        """Takes over what the EventLog has behind the logs of these runs."""
        waiting = {followed_id: log.last_sequence for followed_id, _, log in self._elsewhere(run_ids)}
        while waiting:
            some = dict(list(waiting.items())[:_RUNS_PER_READ])
            found = await self._event_log.read_many(some, limit=_BATCHES_PER_READ)
            for run_id in some:
                del waiting[run_id]
            for run_id, _, log in self._elsewhere(found):
                before = log.last_sequence
                self._feed.copy(run_id, log, found[run_id])
                if log.last_sequence > before and len(found[run_id]) == _BATCHES_PER_READ:
                    waiting[run_id] = log.last_sequence

    async def _compare(self, run_ids: Iterable[str]) -> None:
        """Brings logs that stay behind what is stored up to that."""
        for run_id in run_ids:
            if followed := self._followed.get(run_id):
                self._listen(run_id, followed, wanted=not followed.log.owned)
        elsewhere = {(followed.tenant, run_id): followed for run_id, followed, _ in self._elsewhere(run_ids)}
        if not elsewhere:
            return
        etags = await self._store.read(lambda tx: tx.runs.versions(list(elsewhere)))
        for (_, run_id), followed in elsewhere.items():
            if (followed.tenant, run_id) not in etags:
                self._feed.drop(run_id)
        changed = {
            key: followed
            for key, followed in elsewhere.items()
            if key in etags and (etags[key] != followed.etag or followed.behind is not None)
        }
        for key, run in (await self._runs(list(changed))).items():
            followed = changed[key]
            followed.etag = run.etag
            self._catch_up(run, followed)

    async def _runs(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Run]:
        async def unit(tx: Transaction) -> dict[tuple[str, str], Run]:
            found = {}
            for key in keys:
                with contextlib.suppress(NotFound):
                    found[key] = await tx.runs.get(*key)
            return found

        return await self._store.read(unit) if keys else {}

    def _catch_up(self, run: Run, followed: _Followed) -> None:
        log = followed.log
        if log.owned or log.ended:
            return
        if log.last_sequence >= run.last_sequence:
            followed.behind = None
            if run.state in lifecycle.FINAL:
                log.end()
        elif followed.behind is None or followed.behind[0] != log.last_sequence:
            # What is stored is told right after: it may be on its way.
            followed.behind = log.last_sequence, time.monotonic()
        elif time.monotonic() - followed.behind[1] > _POLL_SECONDS / 2:
            followed.behind = None
            log.forget(run.last_sequence)
            if run.state in lifecycle.FINAL:
                log.end()

    def _elsewhere(self, run_ids: Iterable[str]) -> list[tuple[str, _Followed, RunLog]]:
        """Those of these runs that are followed, and not executed here."""
        found = [(run_id, self._followed[run_id]) for run_id in run_ids if run_id in self._followed]
        return [(run_id, one, one.log) for run_id, one in found if not one.log.owned and not one.log.ended]

    def _listen(self, run_id: str, followed: _Followed, *, wanted: bool) -> None:
        if wanted and followed.stop_listening is None:
            followed.stop_listening = self._hints.listen(events_topic(run_id), lambda _: self._hear(run_id))
        elif not wanted and followed.stop_listening is not None:
            followed.stop_listening()
            followed.stop_listening = None
