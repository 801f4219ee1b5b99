"""Asking the models of a run for one turn: within the limits, in the order of its route, until one begins to answer."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import structlog

from famulus.v1.run_pb2 import Run, RunErrorCode, Usage
from famulus_server.engine import quotas
from famulus_server.engine.policy import Policies
from famulus_server.engine.prompt import Prompt
from famulus_server.engine.routing import Router
from famulus_server.errors import ModelError, ModelRateLimited, ModelRejectedRequest
from famulus_server.ports import (
    Allowance,
    Demand,
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
# A place with a model is nobody's any more after so long, if its holder died.
_PLACE_SECONDS = 3_600.0
# A model whose own limit is used up for longer than this is left to others, where the route has others.
_PATIENCE_SECONDS = 1.0

_log = structlog.get_logger(__name__)


class Parked(Exception):
    """All models of the run's route are down, and the run is to be tried again after so many seconds."""

    def __init__(self, seconds: float, error: ModelError) -> None:
        super().__init__(str(error))
        self.seconds = seconds
        self.error = error


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

    def __init__(self, *, router: Router, limiter: Limiter, policies: Policies) -> None:
        self._router = router
        self._limiter = limiter
        self._policies = policies

    async def stream(self, question: Question) -> AsyncGenerator[list[ModelEvent], None]:
        """As `ports.Model.stream`. Another model of the route is asked where one fails before it has said anything.

        Raises ModelError, or Parked where the route says so.
        """
        candidates = self._router.candidates(question.run, avoid=question.avoid)
        failure: ModelError = ModelRejectedRequest("the configuration no longer has this model")
        for number, model in enumerate(candidates, start=1):
            question.variant, question.degraded = model, self._router.is_degraded(question.run, model)
            begun = False
            try:
                async with aclosing(self._ask(question, model, last=number == len(candidates))) as stream:
                    async for events in stream:
                        begun = begun or not all(isinstance(event, Retrying) for event in events)
                        yield events
            except ModelError as error:
                if begun or isinstance(error, ModelRejectedRequest):
                    raise
                failure = error
                _log.warning("model does not answer", run_id=question.run.id, model=model, error=type(error).__name__)
            else:
                return
        async for events in self._all_down(question, failure):
            yield events

    async def _all_down(self, question: Question, failure: ModelError) -> AsyncGenerator[list[ModelEvent], None]:
        """What the route does where none of its models answers."""
        route = self._router.route(question.run.model)
        if route is None or route.when_down == "fail" or isinstance(failure, ModelRejectedRequest):
            raise failure
        if route.when_down == "park":
            raise Parked(route.park_seconds, failure)
        question.variant, question.degraded = "", True
        text = [{"type": "output_text", "text": route.reply}]
        reply = {"type": "message", "role": "assistant", "content": text}
        yield [TextChunk(0, 0, route.reply), TurnEnded(TurnOutcome.COMPLETED, [reply], Usage())]

    async def _ask(self, question: Question, model: str, *, last: bool) -> AsyncGenerator[list[ModelEvent], None]:
        """Asks one model, once its limits allow it."""
        request = replace(question.made.request, model=model)
        demands = await self._demands(question, request)
        run = question.run
        key = f"{run.id}:{run.attempt}:{run.turns}:{model}"
        while refused := await self._limiter.take(demands, holder=key, seconds=_PLACE_SECONDS):
            if not last and refused.limit.subject == model and refused.retry_after > _PATIENCE_SECONDS:
                raise ModelRateLimited("our own limit of the model is used up", retry_after=refused.retry_after)
            # The run waits, and does not fail: its caller was let in.
            yield [Retrying(RunErrorCode.RUN_ERROR_CODE_RATE_LIMIT_EXCEEDED, refused.retry_after)]
            await asyncio.sleep(refused.retry_after)
        used = 0
        try:
            async with aclosing(self._router.open(model).stream(request)) as stream:
                async for events in stream:
                    used = _used(events, question) or used
                    shown: list[ModelEvent] = [event for event in events if not isinstance(event, Allowance)]
                    if shown:
                        yield shown
                    # Behind what is shown: nobody waits for it.
                    for event in events:
                        if isinstance(event, Allowance):
                            await self._observe(model, event)
        except ModelError as error:
            if error.allowance is not None:
                await self._observe(model, error.allowance)
            if isinstance(error, ModelRateLimited) and error.retry_after:
                limits = quotas.limits_of_model(self._policies.current, model)
                await self._limiter.pause(limits, seconds=error.retry_after)
            raise
        finally:
            await self._limiter.settle(demands, key=key, used=used)
            await self._limiter.release([demand.limit for demand in demands], holder=key)

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

    async def _observe(self, model: str, allowance: Allowance) -> None:
        """The provider's own word on what is left: for all replicas."""
        for limit in quotas.limits_of_model(self._policies.current, model):
            left, reset = {
                "requests": (allowance.requests_left, allowance.requests_reset),
                "tokens": (allowance.tokens_left, allowance.tokens_reset),
            }.get(limit.quantity, (None, None))
            if left is not None and reset is not None:
                # Where nothing is left, the provider says by a 429 how long that holds: `reset` is when all is back.
                await self._limiter.observe(limit, left=max(1, left))


def _used(events: Sequence[ModelEvent], question: Question) -> int:
    """The tokens that a turn with these events has used, as far as they tell."""
    last = events[-1]
    if isinstance(last, TurnEnded) and last.usage is not None:
        return last.usage.total_tokens
    # Whatever was said costs something, until the model tells how much.
    return 0 if isinstance(last, Retrying) else question.made.estimated_tokens
