"""A watcher that cuts its stream at random points and goes on at another replica, behind what it saw."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import grpc

from chaos.calls import SILENCE, Calls
from chaos.journal import Journal, Viewing, place
from famulus import FamulusError
from famulus.v1.run_event_pb2 import RunEvent
from famulus_server.engine import lifecycle

_PAUSES = (0.0, 0.2)

Ask = Callable[[int], Any]  # the request for what follows a sequence


class Watcher:
    """Follows one run to its end, or to the tombstone of its thread."""

    def __init__(self, *, calls: Calls, journal: Journal, rng: random.Random, cuts: float = 0.0, pause: float = 0.0):
        """`cuts` is the chance, after each response, of leaving; `pause` the seconds between two reads."""
        self._calls = calls
        self._journal = journal
        self._rng = rng
        self._cuts = cuts
        self._pause = pause

    async def follow(
        self, method: str, ask: Ask, viewing: Viewing, *, until: Callable[[RunEvent], bool] | None = None
    ) -> Viewing:
        """Watches until the stream ends OK, its thread is gone, or an event is what `until` looks for. Raises
        FamulusError for a refusal that is neither of these."""
        if viewing not in self._journal.viewings:
            self._journal.viewings.append(viewing)
        replica = self._calls.pick(self._rng)
        while not (viewing.ended or viewing.gone):
            viewing.joins.append((len(viewing.events), replica))
            call = self._calls.method(replica, method)(ask(viewing.cursor))
            try:
                if await self._read(call, viewing, until):
                    break
            except TimeoutError:
                self._journal.counts["silences"] += 1
            except grpc.RpcError as raised:
                self._left(FamulusError.from_rpc(raised), method, viewing)
            finally:
                call.cancel()
            replica = self._calls.pick(self._rng, other_than=replica)
            await asyncio.sleep(self._rng.uniform(*_PAUSES))
        return viewing

    async def _read(self, call: Any, viewing: Viewing, until: Callable[[RunEvent], bool] | None) -> bool:
        """Whether what was looked for came."""
        resumed = time.time() if viewing.events else None
        while True:
            async with asyncio.timeout(SILENCE):
                response = await call.read()
            if response is grpc.aio.EOF:
                viewing.ended = True
                self._check_end(viewing)
                return False
            if response.events:
                if resumed is not None:
                    self._note_resume(response.events[0], resumed, viewing.joins[-1][1])
                    resumed = None
                viewing.run_id = viewing.run_id or _run_id(response.events[0])
                viewing.events += response.events
                if until is not None and any(map(until, response.events)):
                    return True
            if self._rng.random() < self._cuts:
                self._journal.counts["cuts"] += 1
                return False
            if self._pause:
                await asyncio.sleep(self._pause)

    def _note_resume(self, first: RunEvent, resumed: float, replica: int) -> None:
        # Of events that were waiting only, and of a replica that nothing was done to; others take their own time.
        waiting = first.event_time.ToMicroseconds() / 1e6 < resumed and not first.HasField("snapshot")
        now = time.time()
        if waiting and not self._journal.faulty_between(resumed - 1, now, ("postgres", "valkey", place(replica))):
            self._journal.resume_seconds.append(now - resumed)

    def _left(self, error: FamulusError, method: str, viewing: Viewing) -> None:
        if error.code is grpc.StatusCode.NOT_FOUND and viewing.run_id:
            run = self._journal.runs.get(viewing.run_id)
            if run is None or self._journal.thread(run.thread_id).asked_to_delete is not None:
                viewing.gone = True
                return
            self._journal.violate("an acknowledged run is not found", viewing.run_id, f"{method}: {error}")
        if error.code is grpc.StatusCode.OUT_OF_RANGE:
            self._journal.violate("events that were seen are behind the end", viewing.run_id, f"{method}: {error}")
        self._calls.judge(error, method)

    def _check_end(self, viewing: Viewing) -> None:
        last = viewing.events[-1] if viewing.events else RunEvent()
        state = last.run_state_changed.run.state or last.snapshot.run.state
        if state not in lifecycle.FINAL:
            shown = str(last).replace("\n", " ")[:300]
            self._journal.violate("a stream ended OK before the run did", viewing.run_id, f"last event: {shown}")


def _run_id(event: RunEvent) -> str:
    return event.run_state_changed.run.id or event.snapshot.run.id
