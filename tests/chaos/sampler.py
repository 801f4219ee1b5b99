"""Looks into the database all the time: two active runs on a thread, and who takes over from whom."""

import asyncio
import re
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import asyncpg

from chaos.cluster import REPLICAS
from chaos.journal import Journal, place
from postgres import EVERYBODY

_PAUSE = 0.1
_TIMEOUT = 2.0
# States, not the column `active`, which is the service's own word for it.
_BUSY = """
SELECT id, thread_id, attempt, COALESCE(lease_owner, '') AS owner
FROM runs WHERE state IN (2, 3, 4) OR (state = 1 AND line IS NULL)
"""
_PID = re.compile(r"-(\d+)-[0-9a-f]+$")


@dataclass(slots=True)
class _Seen:
    attempt: int
    owner: int  # a process id, 0 for nobody


@dataclass(frozen=True, slots=True)
class _Orphan:
    """A run whose owner was lost: which process, how, and when."""

    owner: int
    how: str
    since: float


class Sampler:
    """Samples until cancelled; outages of the database are waited out."""

    def __init__(self, *, database: str, journal: Journal) -> None:
        self._database = database
        self._journal = journal
        self._seen: dict[str, _Seen] = {}
        self._orphaned: dict[str, _Orphan] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                connection = await asyncpg.connect(
                    self._database, timeout=_TIMEOUT, command_timeout=_TIMEOUT, server_settings=EVERYBODY
                )
                try:
                    while True:
                        self._look(await connection.fetch(_BUSY))
                        await asyncio.sleep(_PAUSE)
                finally:
                    connection.terminate()
            except Exception:  # noqa: BLE001 - a database that dies makes the driver raise all kinds
                await asyncio.sleep(_PAUSE)

    def _look(self, rows: list[Any]) -> None:
        self._journal.counts["samples"] += 1
        threads = Counter(row["thread_id"] for row in rows)
        for thread_id, count in threads.items():
            if count > 1:
                runs = [row["id"] for row in rows if row["thread_id"] == thread_id]
                self._journal.violate("two active runs on a thread", thread_id, f"{count}: {runs}")
        seen = {row["id"]: _Seen(row["attempt"], _pid(row["owner"])) for row in rows}
        for run_id, now in seen.items():
            before = self._seen.get(run_id)
            if before is not None and now.attempt < before.attempt:
                self._journal.violate("an attempt went back", run_id, f"{before.attempt} to {now.attempt}")
            self._time_takeover(run_id, now)
        for run_id in self._orphaned.keys() - seen.keys():
            del self._orphaned[run_id]
        self._seen = seen

    def _time_takeover(self, run_id: str, now: _Seen) -> None:
        lost = self._journal.lost.get(now.owner)
        if lost is not None:
            self._orphaned.setdefault(run_id, _Orphan(now.owner, *lost))
            return
        orphan = self._orphaned.pop(run_id, None)
        # An owner that was thawed in time goes on; no database, or nobody who is well, means no takeover.
        if orphan is None or orphan.owner == now.owner or not now.owner:
            return
        moment, before = time.time(), orphan.since - 1
        somebody = any(not self._journal.faulty_between(before, moment, (place(one),)) for one in range(REPLICAS))
        if somebody and not self._journal.faulty_between(before, moment, ("postgres",)):
            self._journal.takeover_seconds.setdefault(orphan.how, []).append(moment - orphan.since)


def _pid(owner: str) -> int:
    found = _PID.search(owner)
    return int(found[1]) if found else 0
