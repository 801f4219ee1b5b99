"""What breaks, and when: a schedule drawn from a seed."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping

from chaos.cluster import LEASE_SECONDS, Cluster
from chaos.journal import Journal, place
from chaos.processes import Replica

# Relative frequencies. Kills count most: the others are rarer in real life, too.
ALL_KINDS: Mapping[str, float] = {
    "kill": 6,
    "freeze": 2,
    "restart": 1.5,
    "valkey kill": 1,
    "valkey freeze": 1,
    "postgres restart": 0.7,
    "postgres kill": 0.7,
    "postgres freeze": 0.5,
}
# The rule that is broken when something does not come up again; there is no point in going on.
NOT_MENDED = "not mended"
_FREEZE_SECONDS = 1.5 * LEASE_SECONDS
_PAUSES = (0.6, 2.2)


class Faults:
    """Breaks one thing after the other until cancelled; then mends everything.

    Two replicas may be down at once, never all; PostgreSQL and Valkey are broken one at a time.
    """

    def __init__(self, *, cluster: Cluster, journal: Journal, rng: random.Random, mix: Mapping[str, float]) -> None:
        self._cluster = cluster
        self._journal = journal
        self._rng = rng
        self._mix = mix
        self._mending: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled. Call `mend` then."""
        # All kinds once, so that short trials have seen each, then by their frequencies.
        kinds = self._rng.sample(sorted(self._mix), len(self._mix))
        while self._mix:
            await asyncio.sleep(self._rng.uniform(*_PAUSES))
            kind = kinds.pop() if kinds else self._rng.choices(list(self._mix), list(self._mix.values()))[0]
            await self._break(kind)

    async def mend(self) -> None:
        """Returns once everything is up."""
        await asyncio.gather(*self._mending)

    async def _break(self, kind: str) -> None:
        of_replicas: Mapping[str, Callable[[Replica], Awaitable[None]]] = {
            "kill": self._kill,
            "freeze": self._freeze,
            "restart": self._restart,
        }
        if kind in of_replicas:
            healthy = self._cluster.healthy
            if len(healthy) < 2:
                return
            replica = self._rng.choice(healthy)
            replica.healthy = False
            task = asyncio.create_task(
                self._noted(f"replica {kind}", place(replica.number), of_replicas[kind](replica))
            )
        else:
            # Waited for: one store at a time.
            task = asyncio.create_task(self._noted(kind, "", self._of_stores(kind)))
        self._mending.add(task)
        task.add_done_callback(self._mending.discard)
        if kind not in of_replicas:
            await asyncio.shield(task)

    async def _noted(self, what: str, where: str, fault: Awaitable[None]) -> None:
        number = self._journal.begin_fault(what, where)
        try:
            await fault
        except Exception as error:  # noqa: BLE001 - a fault that cannot be mended is a finding, too
            self._journal.violate(NOT_MENDED, what, repr(error))
        finally:
            self._journal.end_fault(number)

    async def _kill(self, replica: Replica) -> None:
        self._journal.lost[replica.pid] = "killed", time.time()
        await replica.kill()
        await asyncio.sleep(self._rng.uniform(0.0, 2 * LEASE_SECONDS))
        await replica.start()

    async def _freeze(self, replica: Replica) -> None:
        self._journal.lost[replica.pid] = "frozen", time.time()
        replica.freeze()
        try:
            await asyncio.sleep(_FREEZE_SECONDS)
        finally:
            replica.thaw()
        self._journal.lost.pop(replica.pid, None)

    async def _restart(self, replica: Replica) -> None:
        await replica.terminate()
        await replica.start()

    async def _of_stores(self, kind: str) -> None:
        postgres, valkey = self._cluster.postgres, self._cluster.valkey
        match kind:
            case "valkey kill":
                await valkey.kill()
                await asyncio.sleep(self._rng.uniform(0.0, 2.0))
                await valkey.start()
            case "valkey freeze":
                async with valkey.frozen():
                    await asyncio.sleep(self._rng.uniform(0.5, 3.0))
            case "postgres restart":
                await asyncio.to_thread(postgres.restart)
            case "postgres kill":
                await asyncio.to_thread(postgres.kill)
                await asyncio.sleep(self._rng.uniform(0.0, 1.0))
                await asyncio.to_thread(postgres.start)
            case "postgres freeze":
                await asyncio.to_thread(postgres.freeze)
                try:
                    await asyncio.sleep(self._rng.uniform(0.2, 1.5 * LEASE_SECONDS))
                finally:
                    await asyncio.to_thread(postgres.thaw)
            case _:
                raise ValueError(kind)
