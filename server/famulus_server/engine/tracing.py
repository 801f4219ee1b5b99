"""What the trace and the log tell of an attempt at a run, on whatever replica it is made. Never what was said."""

from collections.abc import Sequence
from contextvars import Context

import structlog

from famulus.v1.run_pb2 import Run, RunErrorCode, RunState
from famulus_server.engine import lifecycle
from famulus_server.ports import Claimed, ModelEvent, Retrying, Span, SpanKind, Tracer

# What the log knows of the call that an attempt was started by, and that is still of use then.
_KEPT = "request_id"


def apart() -> Context:
    """What an attempt knows of the call that happens to start it, and that it would otherwise keep until its end: its
    request id, for the log."""
    context = Context()
    if (kept := structlog.contextvars.get_contextvars().get(_KEPT)) is not None:
        context.run(structlog.contextvars.bind_contextvars, **{_KEPT: kept})
    return context


def begin(tracer: Tracer, claimed: Claimed) -> Span:
    """The span of an attempt, below that of the call that created the run. All lines that this task logs from now on
    name the run and the attempt."""
    run = claimed.run
    log_attempt(run)
    span = tracer.start(
        "invoke_agent",  # a run knows its assistant by the id alone, and names of spans are to be few
        SpanKind.INTERNAL,
        {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": "famulus",
            "gen_ai.agent.id": run.assistant_id,
            "gen_ai.agent.version": str(run.assistant_version),
            "gen_ai.conversation.id": run.thread_id,
            "gen_ai.request.model": run.model,
            "famulus.run.id": run.id,
            "famulus.attempt": run.attempt,
        },
        parent=run.traceparent,
    )
    if run.attempt == 1:
        span.note({"famulus.queue_seconds": (_micros(run, "start_time") - _micros(run, "create_time")) / 1e6})
    if claimed.taken_over:
        span.tell("famulus.attempt_started", {"famulus.attempt": run.attempt, "famulus.taken_over": True})
    return span


def log_attempt(run: Run) -> None:
    """Lines name this attempt at the run from now on."""
    structlog.contextvars.bind_contextvars(run_id=run.id, thread_id=run.thread_id, attempt=run.attempt)


def start_over(span: Span, run: Run) -> None:
    """The turn broke off after it had been shown, and begins once more, as another attempt."""
    log_attempt(run)
    span.tell("famulus.attempt_started", {"famulus.attempt": run.attempt, "famulus.taken_over": False})


def retry(span: Span, code: "RunErrorCode.ValueType", seconds: float) -> None:
    """The model is asked once more, after some seconds."""
    span.tell("famulus.retry_scheduled", _waiting(code, seconds))


def retries(span: Span, events: Sequence[ModelEvent]) -> None:
    """What a model says of its retries; each stands alone."""
    if isinstance(first := events[0], Retrying):
        retry(span, first.code, first.delay)


def park(span: Span, code: "RunErrorCode.ValueType", seconds: float) -> None:
    """The run leaves its slot to others, for some seconds."""
    span.tell("famulus.parked", _waiting(code, seconds))


def release(span: Span, run: Run) -> dict[str, str | int]:
    """The worker lets go of the run: what its log tells then."""
    state = RunState.Name(run.state).removeprefix("RUN_STATE_")
    span.note({"famulus.run.state": state.lower(), "famulus.variant": run.variant, "famulus.degraded": run.degraded})
    if run.state == lifecycle.FAILED:
        span.fail(_word(run.error.code))
    return {
        "state": state,
        "model": run.model,
        "turns": run.turns,
        "prompt_tokens": run.usage.prompt_tokens,
        "completion_tokens": run.usage.completion_tokens,
    }


def _waiting(code: "RunErrorCode.ValueType", seconds: float) -> dict[str, str | float]:
    return {"famulus.reason": _word(code), "famulus.delay_seconds": seconds}


def _word(code: "RunErrorCode.ValueType") -> str:
    return RunErrorCode.Name(code).removeprefix("RUN_ERROR_CODE_").lower()


def _micros(run: Run, name: str) -> int:
    moment: int = getattr(run, name).ToMicroseconds()
    return moment
