"""Limits that all replicas share through Redis, and what a replica does by itself while they cannot.

Whatever Redis says is remembered by the local limiter as well. So it goes on from there when Redis is away, instead of
allowing everything once more; and when Redis is back, it is told what was taken meanwhile.
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from famulus_server.coordination import limit_scripts as scripts
from famulus_server.coordination.buckets import LONGEST_PAUSE, name_of, to_seconds
from famulus_server.coordination.errors import RedisUnavailable
from famulus_server.coordination.loading import load
from famulus_server.coordination.local_limiter import LocalLimiter
from famulus_server.coordination.patience import Patience
from famulus_server.coordination.reachability import Reachability
from famulus_server.ports import Demand, Limit, Refused

if TYPE_CHECKING:
    from famulus_server.coordination.exchange import Exchange

# How often a replica tells that it is there. Those of a Redis that came back empty are all there after one round.
_ROUND_SECONDS = 2.0
_ROUNDS_REMEMBERED = 3
# A place that Redis has given is known here for no longer: nobody tells this process that it was given back elsewhere.
_HELD_SECONDS = 60.0
# Holders whose places could not be given back; beyond, places are free again when their time is over.
_MAX_UNRELEASED = 10_000

_log = structlog.get_logger(__name__)


class RedisLimiter:
    """See `ports.Limiter`. Open and close it; `owner` is the name of this process among all that share the limits, and
    `patience` that of its callers with Redis."""

    def __init__(self, *, url: str, patience: Patience, owner: str) -> None:
        self._url = url
        self._patience = patience
        self._owner = owner
        # What the last rounds have counted: of replicas that are not heard of for one, the share is not given away.
        self._replicas: deque[int] = deque([1], maxlen=_ROUNDS_REMEMBERED)
        self._local = LocalLimiter(share=lambda: self.replicas)
        # What was decided since this was made, by scope, quantity and decision.
        self.decisions = Counter[tuple[str, ...]]()
        self._unreleased: dict[str, set[Limit]] = {}
        self._exchange: Exchange | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def is_shared(self) -> bool:
        """Whether limits are counted in Redis now."""
        return self._exchange is not None and self._exchange.is_open

    @property
    def replicas(self) -> int:
        """How many processes share the limits, as far as known: at least 1."""
        return max(1, *self._replicas)

    def open(self) -> None:
        """Starts to connect. Until it has, limits are kept locally."""
        self._running = asyncio.create_task(self._run(), name="limiter")

    async def close(self) -> None:
        """Leaves the others, and closes the connection. What was to be carried out is, as far as Redis lets it."""
        if self._running is None:
            return
        # Goes last: its answer is that of all that was told before.
        await self._ask(scripts.leave(self._owner))
        self._running.cancel()
        await asyncio.wait([self._running])

    async def take(
        self, demands: Sequence[Demand], *, holder: str = "", seconds: float = 0.0, key: str = ""
    ) -> Refused | None:
        refused = await self._take(demands, holder=holder, seconds=seconds, key=key)
        if refused is not None:
            self.decisions[refused.limit.scope, refused.limit.quantity, "refused"] += 1
        else:
            self.decisions.update((demand.limit.scope, demand.limit.quantity, "granted") for demand in demands)
        return refused

    async def _take(self, demands: Sequence[Demand], *, holder: str, seconds: float, key: str) -> Refused | None:
        buckets = [demand for demand in demands if demand.limit.quantity != "runs"]
        ordered = [*buckets, *(demand for demand in demands if demand.limit.quantity == "runs")]
        if not ordered:
            return None
        command = scripts.take(ordered, buckets=len(buckets), holder=holder, seconds=seconds)
        try:
            answer = await self._ask(command)
        except asyncio.CancelledError:
            self._give_back(ordered[len(buckets) :], holder=holder)
            raise
        if answer is not None:
            number, wait, *debts = scripts.numbers_of(answer)
            self._remember(buckets, debts)
            if not number:
                limits = [demand.limit for demand in ordered]
                self._local.hold(limits, holder=holder, seconds=min(seconds, _HELD_SECONDS))
                self._unreleased.pop(holder, None)
                return None
            return Refused(ordered[number - 1].limit, to_seconds(wait))
        refused = await self._local.take(ordered, holder=holder, seconds=seconds, key=key)
        if refused is not None:
            self._give_back(ordered[len(buckets) :], holder=holder)
        return refused

    def settle(self, demands: Sequence[Demand], *, key: str, used: int, holder: str = "") -> None:
        tokens = [demand for demand in demands if demand.limit.quantity == "tokens"]
        runs = [demand.limit for demand in demands if demand.limit.quantity == "runs"] if holder else []
        if not tokens:
            self.release(runs, holder=holder)
            return

        def heard(answer: Any) -> None:
            if answer is not None:
                self._remember(tokens, scripts.numbers_of(answer))
                return
            self._local.settle(tokens, key=key, used=used)
            # One that is full refuses to count, and yet can be told this.
            self._release_later(runs, holder=holder)

        self._local.release(runs, holder=holder)
        self._tell(scripts.settle(tokens, key=key, used=used, places=runs, holder=holder), heard)

    def release(self, limits: Sequence[Limit], *, holder: str) -> None:
        runs = [limit for limit in limits if limit.quantity == "runs"]
        if not runs:
            return

        def heard(answer: Any) -> None:
            if answer is None:
                self._release_later(runs, holder=holder)

        self._local.release(runs, holder=holder)
        self._tell(scripts.release(runs, holder=holder), heard)

    async def observe(self, limit: Limit, *, left: int) -> None:
        if limit.quantity != "runs":
            await self._local.observe(limit, left=left)
            await self._ask(scripts.observe(limit, left=left))

    async def pause(self, limits: Sequence[Limit], *, seconds: float) -> None:
        if limits:
            seconds = min(LONGEST_PAUSE, seconds)
            await self._local.pause(limits, seconds=seconds)
            await self._ask(scripts.pause(limits, seconds=seconds))

    def _give_back(self, demands: Sequence[Demand], *, holder: str) -> None:
        """Of a take whose answer did not come: Redis may have given the holder new places, or may be about to."""
        new = [demand.limit for demand in demands if not self._local.holds(demand.limit, holder)]
        if new:
            self._release_later(new, holder=holder)

    def _release_later(self, runs: Sequence[Limit], *, holder: str) -> None:
        """Gives places back as soon as Redis can be told: those that the holder has not taken again meanwhile."""
        runs = [limit for limit in runs if not self._local.holds(limit, holder)]
        if not runs:
            return
        if self._exchange is not None:
            self._exchange.tell(scripts.release(runs, holder=holder))
        if holder in self._unreleased or len(self._unreleased) < _MAX_UNRELEASED:
            self._unreleased.setdefault(holder, set()).update(runs)

    async def _ask(self, command: scripts.Command) -> Any:
        """Redis's answer; None where it cannot be asked, or fails."""
        if self._exchange is None:
            return None
        with contextlib.suppress(RedisUnavailable):
            return await self._exchange.ask(command)
        return None

    def _tell(self, command: scripts.Command, heard: Callable[[Any], None]) -> None:
        """Nobody waits for Redis's answer: it is heard later, or None where there is none."""
        if self._exchange is None:
            heard(None)
        else:
            self._exchange.tell(command, heard)

    def _remember(self, demands: Sequence[Demand], debts: Sequence[int]) -> None:
        # Fewer debts: it was settled before.
        self._local.remember({name_of(demand.limit): debt for demand, debt in zip(demands, debts, strict=False)})

    async def _run(self) -> None:
        try:
            module = await load("exchange")
            self._exchange = exchange = module.Exchange(url=self._url, patience=self._patience)
        except Exception as error:  # noqa: BLE001 - its text may hold parts of the URL, and with them a password
            _log.warning("limits cannot be shared", error=type(error).__name__)
            return
        state = Reachability(name="limits")
        try:
            while True:
                try:
                    await self._share(exchange, state)
                except RedisUnavailable as error:
                    state.lost(error)
                except Exception:  # noqa: BLE001 - limits would not be shared for the rest of this process's life
                    _log.exception("sharing limits failed")
                await state.pause()
                await self._patience.regain()
        finally:
            await exchange.close()

    async def _share(self, exchange: "Exchange", state: Reachability) -> None:
        """Returns never; raises RedisUnavailable once limits cannot be shared any more."""
        unreleased, self._unreleased = self._unreleased, {}
        try:
            *_, replicas = await exchange.join(
                [
                    *scripts.owe(dict(self._local.debts())),
                    *(scripts.release(list(limits), holder=holder) for holder, limits in unreleased.items()),
                    scripts.register(self._owner),
                ]
            )
        except RedisUnavailable:
            self._unreleased = unreleased | self._unreleased
            raise
        self._replicas.append(replicas)
        # Those that came while it joined.
        for holder, limits in self._unreleased.items():
            exchange.tell(scripts.release(list(limits), holder=holder))
        state.found()
        registering = asyncio.create_task(self._register(), name="limiter-register")
        try:
            await exchange.serve()
        finally:
            registering.cancel()
            await asyncio.gather(registering, return_exceptions=True)

    async def _register(self) -> None:
        while True:
            await asyncio.sleep(_ROUND_SECONDS)
            told = list(self._unreleased)
            replicas = await self._ask(scripts.register(self._owner))
            if replicas is not None:
                self._replicas.append(replicas)
                # What it was told before has been done before.
                for holder in told:
                    self._unreleased.pop(holder, None)
