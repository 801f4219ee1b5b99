"""Workers with executions that do as they are told."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

from contract.samples import TENANT, add_run, add_thread, run
from famulus.v1.run_pb2 import RunState
from famulus_server.engine.clock import SystemClock
from famulus_server.engine.control import Control, Interrupted, Interruption
from famulus_server.engine.feed import Feed
from famulus_server.engine.policy import Policies
from famulus_server.engine.worker import Worker
from famulus_server.ports import Claimed, Lease, Store
from unit.engine.alone import NoEventLog, NoHints, NoThreadCache, ledger, run_metrics

LEASE = Lease(owner="me", seconds=0.15)


class Executions:
    """Stands for the executor: remembers what it was given, and does what the test says."""

    def __init__(self, act: Callable[[Claimed, Control], Awaitable[None]]) -> None:
        self._act = act
        self.given: list[Claimed] = []

    async def execute(self, claimed: Claimed, control: Control) -> None:
        self.given.append(claimed)
        await self._act(claimed, control)


class Working:
    """Stands for the executor, too: works until it is interrupted, and then until the `end`."""

    def __init__(self) -> None:
        self.interrupted: list[tuple[str, Interruption]] = []
        self.end = asyncio.Event()
        self._begun: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._given_up = asyncio.Event()

    async def execute(self, claimed: Claimed, control: Control) -> None:
        self._begun[claimed.run.id].set()
        try:
            with control.interruptible():
                await asyncio.Event().wait()
        except Interrupted as interrupted:
            self.interrupted.append((claimed.run.id, interrupted.why))
            self._given_up.set()
        await self.end.wait()

    async def begun(self, run_id: str) -> None:
        """Returns once it works on this run."""
        await self._begun[run_id].wait()

    async def given_up(self) -> None:
        """Returns once any run was interrupted."""
        await self._given_up.wait()


def open_worker(
    store: Store,
    executions: Any,
    *,
    slots: int = 8,
    event_log: NoEventLog | None = None,
    thread_cache: NoThreadCache | None = None,
    lease: Lease = LEASE,
) -> Worker:
    feed = Feed(event_log=event_log or NoEventLog())
    made = Worker(
        store=store,
        feed=feed,
        ledger=ledger(store, feed),
        thread_cache=thread_cache or NoThreadCache(),
        executor=executions,
        hints=NoHints(),
        lease=lease,
        slots=slots,
        policies=Policies(),
        metrics=run_metrics(),
        clock=SystemClock(),
    )
    made.open()
    return made


async def end(store: Store, claimed: Claimed) -> None:
    ended = await store.read(lambda tx: tx.runs.get(TENANT, claimed.run.id))
    ended.state = RunState.RUN_STATE_COMPLETED
    await store.write(lambda tx: tx.runs.replace(TENANT, ended, attempt=claimed.run.attempt))


async def queue(store: Store, *run_ids: str) -> None:
    for run_id in run_ids:
        await add_thread(store, f"thread_{run_id}")
        await add_run(store, run(run_id, thread_id=f"thread_{run_id}", lives=None))
