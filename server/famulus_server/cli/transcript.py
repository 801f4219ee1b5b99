"""The events of a run, written for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from famulus.v1.run_event_pb2 import RunEvent
    from famulus.v1.run_pb2 import Run
    from famulus.v1.tool_pb2 import ToolCall

_INDENT = " " * 8


class Transcript:
    """Writes the text of a run as it comes, on standard output.

    With `details` each other event gets a line of its own there, with its sequence; without, only what a reader of the
    text must know is told, on standard error.
    """

    def __init__(self, *, details: bool) -> None:
        self._details = details
        self._inside_a_line = False

    def show(self, event: RunEvent) -> None:
        """Write one event. Unknown kinds are passed over."""
        match event.WhichOneof("event"):
            case "text_delta":
                self._write(event.text_delta.text)
            case "refusal_delta":
                self._write(event.refusal_delta.refusal)
            case "snapshot":
                self._restart("what follows stands for all that came before")
                for message in event.snapshot.messages:
                    self._write("".join(part.text.text for part in message.content))
            case "attempt_started":
                self._restart(f"a worker started over, attempt {event.attempt_started.attempt}")
            case "retry_scheduled":
                seconds = event.retry_scheduled.delay.ToTimedelta().total_seconds()
                self.remark(f"the model failed and is asked again in {seconds:.1f} s")
            case "message_completed":
                self.end_line()
                self._detail(event)
            case _:
                self._detail(event)

    def remark(self, text: str) -> None:
        """Write a line about the run."""
        self.end_line()
        click.secho(f"({text})", dim=True, err=not self._details)

    def end_line(self) -> None:
        """Go to a new line if the text has not done so."""
        if self._inside_a_line:
            click.echo()
        self._inside_a_line = False

    def _write(self, text: str) -> None:
        if not text:
            return
        if self._details:
            text = ("" if self._inside_a_line else _INDENT) + text.replace("\n", "\n" + _INDENT)
        click.echo(text, nl=False)
        self._inside_a_line = not text.endswith("\n")

    def _restart(self, why: str) -> None:
        self.remark(f"{why}; the text begins again")

    def _detail(self, event: RunEvent) -> None:
        text = _describe(event) if self._details else None
        if text:
            self.end_line()
            click.secho(f"{event.sequence:>6}  {text}", dim=True)


def state_of(run: Run) -> str:
    """The state of a run without its prefix, such as IN_PROGRESS."""
    from famulus.v1.run_pb2 import RunState

    return RunState.Name(run.state).removeprefix("RUN_STATE_")


def describe_end(run: Run) -> str:
    """How a run ended, with the reason."""
    from famulus.v1.run_pb2 import RunIncompleteReason

    state = state_of(run).lower().replace("_", " ")
    if run.HasField("error"):
        return f"{state}: {run.error.message}"
    if run.incomplete_reason:
        reason = RunIncompleteReason.Name(run.incomplete_reason).removeprefix("RUN_INCOMPLETE_REASON_")
        return f"{state}: {reason.lower().replace('_', ' ')}"
    return state


def describe_call(call: ToolCall) -> str:
    """A function call as one would write it."""
    return f"{call.function.name}({call.function.arguments_json})"


def _describe(event: RunEvent) -> str | None:
    from famulus.v1.run_step_pb2 import RunStepState

    match event.WhichOneof("event"):
        case "run_state_changed":
            return f"run {describe_end(event.run_state_changed.run)}"
        case "step_started":
            return f"step {event.step_started.step.position} started"
        case "step_completed":
            step = event.step_completed.step
            return f"step {step.position} {RunStepState.Name(step.state).removeprefix('RUN_STEP_STATE_').lower()}"
        case "message_started":
            return "message started"
        case "message_completed":
            return "message stored"
        case "tool_calls_requested":
            return f"wants {' and '.join(map(describe_call, event.tool_calls_requested.tool_calls))}"
        case "tool_output_received":
            outputs = (call.function.output for call in event.tool_output_received.tool_calls)
            return f"got {' and '.join(outputs)}"
    return None
