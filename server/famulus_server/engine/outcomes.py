"""What follows from a model turn, however it ended."""

from dataclasses import dataclass, replace

from famulus.v1.message_pb2 import MessageIncompleteReason
from famulus.v1.run_pb2 import Run, RunIncompleteReason, RunState, Usage
from famulus.v1.run_step_pb2 import RunStepState
from famulus_server.engine import lifecycle, prompt, turn
from famulus_server.engine.asking import Question
from famulus_server.engine.settlement import Settlement
from famulus_server.engine.turn import TurnRecorder, TurnResult


@dataclass(frozen=True, slots=True)
class Break:
    """How a turn that was broken off marks its messages, its steps and the run."""

    message: "MessageIncompleteReason.ValueType"
    step: "RunStepState.ValueType"
    run: "RunIncompleteReason.ValueType" = RunIncompleteReason.RUN_INCOMPLETE_REASON_UNSPECIFIED


CANCELLED = Break(
    MessageIncompleteReason.MESSAGE_INCOMPLETE_REASON_RUN_CANCELLED, RunStepState.RUN_STEP_STATE_CANCELLED
)
EXPIRED = Break(MessageIncompleteReason.MESSAGE_INCOMPLETE_REASON_RUN_EXPIRED, RunStepState.RUN_STEP_STATE_EXPIRED)
MAX_TOKENS = Break(
    MessageIncompleteReason.MESSAGE_INCOMPLETE_REASON_MAX_TOKENS,
    RunStepState.RUN_STEP_STATE_INCOMPLETE,
    RunIncompleteReason.RUN_INCOMPLETE_REASON_MAX_COMPLETION_TOKENS,
)
CONTENT_FILTER = Break(
    MessageIncompleteReason.MESSAGE_INCOMPLETE_REASON_CONTENT_FILTER,
    RunStepState.RUN_STEP_STATE_INCOMPLETE,
    RunIncompleteReason.RUN_INCOMPLETE_REASON_CONTENT_FILTER,
)


def whole(run: Run, result: TurnResult) -> Settlement:
    """What follows from a turn that the model completed."""
    wanted = Settlement(
        state=lifecycle.COMPLETED,
        messages=result.messages,
        steps=result.steps,
    )
    if not result.has_calls:
        return wanted
    if run.turns + 1 >= run.max_turns:
        return out_of(RunIncompleteReason.RUN_INCOMPLETE_REASON_MAX_TURNS, wanted)
    if result.open_calls:
        return replace(wanted, state=lifecycle.REQUIRES_ACTION, open_calls=result.open_calls)
    return replace(wanted, state=lifecycle.IN_PROGRESS)


def out_of(reason: "RunIncompleteReason.ValueType", wanted: Settlement) -> Settlement:
    """The same work, but no further turn: calls that nobody will answer are closed, and not asked for."""
    for step in wanted.steps:
        if step.state == RunStepState.RUN_STEP_STATE_IN_PROGRESS:
            step.state = RunStepState.RUN_STEP_STATE_INCOMPLETE
    return replace(wanted, state=lifecycle.INCOMPLETE, open_calls=(), incomplete_reason=reason)


def out_of_prompt() -> Settlement:
    """No further turn: the next one would be too long."""
    reason = RunIncompleteReason.RUN_INCOMPLETE_REASON_MAX_PROMPT_TOKENS
    return Settlement(state=lifecycle.INCOMPLETE, incomplete_reason=reason)


def broken_off(
    recorder: TurnRecorder, question: Question | None, state: "RunState.ValueType", how: Break
) -> Settlement:
    """A turn that ends early and keeps what was written (contract 19)."""
    result = recorder.abandon(how.message, how.step)
    return Settlement(
        state=state,
        messages=result.messages,
        steps=result.steps,
        usage=estimate_usage(recorder, question),
        incomplete_reason=how.run,
        variant=question.variant if question else "",
        degraded=question is not None and question.degraded,
    )


def estimate_usage(recorder: TurnRecorder, question: Question | None) -> Usage | None:
    """What a turn cost that did not end as it should, or whose provider told nothing; None where it never began to
    answer."""
    if recorder.ended is not None and recorder.ended.usage is not None:
        return recorder.ended.usage
    if question is None or not recorder.heard:
        return None
    return turn.estimated_usage(question.made.estimated_tokens, prompt.estimate_length(recorder.characters))
