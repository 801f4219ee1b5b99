"""Asking the models of a run for one turn: within the limits, in the order of its route, until one begins to answer."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import structlog

from famulus.v1.run_pb2 import Run, RunErrorCode, Usage
from famulus_server.engine import quotas
from famulus_server.engine.policy import Policies
from famulus_server.engine.prompt import Prompt
from famulus_server.engine.pseudonyms import Pseudonyms
from famulus_server.engine.routing import Router
from famulus_server.engine.run_metrics import RunMetrics
from famulus_server.errors import ModelError, ModelRateLimited, ModelRejectedRequest, ModelRemoved, ModelSuspended
from famulus_server.ports import (
    Allowance,
    Demand,
    Limit,
    Limiter,
    ModelEvent,
    ModelRequest,
    Retrying,
    TextChunk,
    TurnEnded,
    TurnOutcome,
)

# What an answer is taken to need where nobody limits it; what it really used is settled behind it.
_EXPECTED_ANSWER = 256
# A place with a model is nobody's any more after so long, if its holder died. Whoever takes the run over inherits it.
_PLACE_SECONDS = 900.0
# Who has to wait longer for a limit leaves his slot to others meanwhile.
_PATIENCE_SECONDS = 2.0
# What keeps runs away may be over before it was said to be: a limit may be raised, a model come back.
_LONGEST_PARK_SECONDS = 60.0
# Who stood in line for so long in vain comes again after this time; how often the first in line asks.
_LINE_SECONDS = 5.0
_LOOK_SECONDS = 0.1
# So that those who wait for the same do not come back together.
_JITTER = 0.2

_log = structlog.get_logger(__name__)


class Parked(Exception):
    """No model can be asked now, and the run is to be tried again after so many seconds."""

    def __init__(self, seconds: float, code: "RunErrorCode.ValueType") -> None:
        super().__init__(f"{seconds:.1f} s")
        self.seconds = min(seconds, _LONGEST_PARK_SECONDS)
        self.code = code


class _Busy(Exception):
    """A limit will have room again after so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"{seconds:.1f} s")
        self.seconds = seconds


@dataclass(slots=True, kw_only=True)
class Question:
    """A turn to be asked for; of a route, models to `avoid` come last. `variant` and `degraded` tell who answers."""

    tenant: str
    run: Run
    made: Prompt
    avoid: Collection[str] = ()
    variant: str = ""
    degraded: bool = False


class Asking:
    """Asks models."""

    def __init__(
        self,
        *,
        router: Router,
        limiter: Limiter,
        policies: Policies,
        pseudonyms: Pseudonyms,
        metrics: RunMetrics,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`chance` gives numbers from 0 to 1."""
        self._router = router
        self._limiter = limiter
        self._policies = policies
        self._pseudonyms = pseudonyms
        self._metrics = metrics
        self._chance = chance
        # Of each limit that somebody waits for: only the first of them asks for it, the others stand behind him.
        self._lines: WeakValueDictionary[Limit, asyncio.Lock] = WeakValueDictionary()
        self._errands: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Returns once everything that models said of their limits is told."""
        await asyncio.gather(*self._errands)

    async def stream(self, question: Question) -> AsyncGenerator[list[ModelEvent], None]:
        """As `ports.Model.stream`. Another model of the route is asked where one fails before it has said anything.

        Raises ModelError, or Parked.
        """
        failure: ModelError = ModelRemoved("no model of this name that can do what the run needs")
        waits: list[float] = []
        for model in self._router.candidates(question.run, avoid=question.avoid):
            begun = False
            try:
                async with aclosing(self._ask(question, model)) as stream:
                    async for events in stream:
                        if not begun and not isinstance(events[0], Retrying):
                            begun = True
                            self._metrics.spoke(question.tenant, question.run)
                        yield events
            except _Busy as busy:
                waits.append(busy.seconds)
            except ModelError as error:
                if begun or isinstance(error, ModelRejectedRequest):
                    raise
                _log.warning("model does not answer", run_id=question.run.id, model=model, error=type(error).__name__)
                failure = error
                if isinstance(error, ModelRateLimited) and (error.retry_after or 0.0) > _PATIENCE_SECONDS:
                    waits.append(error.retry_after or 0.0)
            else:
                return
        if waits:
            # A limit kills no run: its caller was let in.
            code = RunErrorCode.RUN_ERROR_CODE_RATE_LIMIT_EXCEEDED
            raise Parked(min(waits) * (1 + _JITTER * self._chance()), code)
        async for events in self._all_down(question, failure):
            yield events

    async def _all_down(self, question: Question, failure: ModelError) -> AsyncGenerator[list[ModelEvent], None]:
        """What the route does where none of its models answers."""
        route = self._router.route(question.run.model)
        if route is None or route.when_down == "fail" or isinstance(failure, ModelRejectedRequest):
            raise failure
        if route.when_down == "park":
            raise Parked(max(route.park_seconds, failure.retry_after or 0.0), failure.code)
        question.variant, question.degraded = "", True
        text = [{"type": "output_text", "text": route.reply}]
        reply = {"type": "message", "role": "assistant", "content": text}
        yield [TextChunk(0, 0, route.reply), TurnEnded(TurnOutcome.COMPLETED, [reply], Usage())]

    async def _ask(self, question: Question, model: str) -> AsyncGenerator[list[ModelEvent], None]:
        """Asks one model, once its limits allow it. Raises _Busy where that takes long."""
        if rest := self._router.rests(model):
            # Before anything is taken for a call that will not be made.
            self._metrics.spared(model)
            raise ModelSuspended("the model is not asked for a while", retry_after=rest)
        run = question.run
        request = _request(question, model, self._pseudonyms.of("provider", question.tenant, run.user_id))
        demands = await self._demands(question, request)
        key = f"{run.id}:{run.attempt}:{run.turns}:{model}"
        limit = await self._take(run, demands, key)
        if limit is not None:
            yield [Retrying(RunErrorCode.RUN_ERROR_CODE_RATE_LIMIT_EXCEEDED, _PATIENCE_SECONDS)]
            await self._stand_in_line(run, demands, key, limit)
        question.variant, question.degraded = model, self._router.is_degraded(run, model)
        last: ModelEvent | None = None
        try:
            async with aclosing(self._router.open(model).stream(request)) as stream:
                async for events in stream:
                    last = events[-1]
                    yield self._heed(model, events)
        except ModelError as error:
            if error.allowance is not None:
                self._start(self._observe(model, error.allowance))
            if isinstance(error, ModelRateLimited) and error.retry_after:
                self._start(self._pause(model, error.retry_after))
            raise
        finally:
            self._limiter.settle(demands, key=key, used=_used(last, question), holder=run.id)

    async def _demands(self, question: Question, request: ModelRequest) -> Sequence[Demand]:
        """What the turn needs of each limit that it has to keep to."""
        policy = self._policies.current
        answer = min(request.max_output_tokens or _EXPECTED_ANSWER, _EXPECTED_ANSWER)

        def demands(tokens: int) -> Sequence[Demand]:
            return quotas.limits_of_turn(policy, question.tenant, question.run, request.model, tokens + answer)

        estimated = demands(question.made.estimated_tokens)
        if not any(demand.limit.quantity == "tokens" for demand in estimated):
            return estimated
        counted = await self._router.open(request.model).count(request)
        return estimated if counted is None else demands(counted)

    async def _take(self, run: Run, demands: Sequence[Demand], key: str) -> Limit | None:
        """Takes what is demanded, and returns None; or the limit to stand in line for. Raises _Busy."""
        for demand in demands:
            if (line := self._lines.get(demand.limit)) is not None and line.locked():
                return demand.limit
        return await self._try(run, demands, key)

    async def _try(self, run: Run, demands: Sequence[Demand], key: str) -> Limit | None:
        refused = await self._limiter.take(demands, holder=run.id, seconds=_PLACE_SECONDS, key=key)
        if refused is not None and refused.retry_after > _PATIENCE_SECONDS:
            raise _Busy(refused.retry_after)
        return refused.limit if refused else None

    async def _stand_in_line(self, run: Run, demands: Sequence[Demand], key: str, limit: Limit) -> None:
        """Takes what is demanded, behind those who came before. Raises _Busy."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + _PATIENCE_SECONDS
        line = self._lines.get(limit)
        if line is None:
            line = self._lines[limit] = asyncio.Lock()
        try:
            async with asyncio.timeout_at(give_up_at):
                await line.acquire()
        except TimeoutError:
            raise _Busy(_LINE_SECONDS) from None
        try:
            while await self._try(run, demands, key) is not None:
                if loop.time() >= give_up_at:
                    raise _Busy(_LINE_SECONDS)
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            line.release()

    def _heed(self, model: str, events: list[ModelEvent]) -> list[ModelEvent]:
        """What the first of these events says of the model's limits is for all replicas, and nobody waits for that.
        Returns what is left for the run."""
        match events[0]:
            case Allowance() as allowance:
                self._start(self._observe(model, allowance))
                return events[1:]
            case Retrying() as retrying:
                self._metrics.retried(model, retrying.code)
                # Another request, which nobody has taken yet.
                self._start(self._retried(model, retrying))
        return events

    async def _observe(self, model: str, allowance: Allowance) -> None:
        for limit in self._limits(model):
            left = allowance.requests_left if limit.quantity == "requests" else allowance.tokens_left
            if left is not None:
                # Where nothing is left, the provider says by a 429 how long that holds.
                await self._limiter.observe(limit, left=max(1, left))

    async def _retried(self, model: str, event: Retrying) -> None:
        if event.code == RunErrorCode.RUN_ERROR_CODE_RATE_LIMIT_EXCEEDED:
            await self._pause(model, event.delay)
        await self._limiter.take([Demand(limit) for limit in self._limits(model) if limit.quantity == "requests"])

    async def _pause(self, model: str, seconds: float) -> None:
        await self._limiter.pause(self._limits(model), seconds=seconds)

    def _limits(self, model: str) -> Sequence[Limit]:
        return quotas.limits_of_model(self._policies.current, model)

    def _start(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)


def _request(question: Question, model: str, user: str) -> ModelRequest:
    """The turn as this model can read it: what another one reasoned is encrypted, and for that one only. `user` is a
    pseudonym."""
    run, request = question.run, question.made.request
    items: Sequence[Mapping[str, Any]] = request.items
    if run.degraded or run.variant not in ("", model):
        items = [item for item in items if item.get("type") != "reasoning"]
    return replace(request, model=model, items=items, user=user)


def _used(last: ModelEvent | None, question: Question) -> int:
    """The tokens that a turn has used whose last event this is, as far as it tells."""
    if isinstance(last, TurnEnded) and last.usage is not None:
        return last.usage.total_tokens
    # Whatever was said costs something, until the model tells how much.
    return 0 if last is None or isinstance(last, Retrying) else question.made.estimated_tokens
