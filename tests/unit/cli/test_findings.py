"""What the demo must not let pass."""

import json

import pytest

from famulus.v1.run_event_pb2 import RunEvent, RunStateChanged, TextDelta
from famulus.v1.run_pb2 import (
    RUN_INCOMPLETE_REASON_MAX_COMPLETION_TOKENS,
    RUN_STATE_COMPLETED,
    RUN_STATE_FAILED,
    RUN_STATE_IN_PROGRESS,
    RUN_STATE_INCOMPLETE,
    Run,
    Usage,
)
from famulus_server.cli.findings import Findings


def ended(**fields: object) -> Run:
    defaults = {
        "state": RUN_STATE_COMPLETED,
        "last_sequence": 3,
        "usage": Usage(prompt_tokens=2, completion_tokens=1, total_tokens=3),
    }
    return Run(**{**defaults, **fields})  # type: ignore[arg-type]


def findings() -> Findings:
    return Findings(model="scripted", ready_ms=1.0)


def test_run_as_it_should_be_leaves_no_problem() -> None:
    found = findings()
    found.conclude(ended(), sequences=[1, 2, 3], streamed="Hello", stored="Hello")
    assert (found.ok, found.runs, found.prompt_tokens, found.completion_tokens) == (True, 1, 2, 1)


def test_limit_on_tokens_is_no_problem() -> None:
    run = ended(state=RUN_STATE_INCOMPLETE, incomplete_reason=RUN_INCOMPLETE_REASON_MAX_COMPLETION_TOKENS)
    found = findings()
    found.conclude(run, sequences=[1, 2, 3], streamed="Hello", stored="Hello")
    assert found.ok


@pytest.mark.parametrize(
    ("run", "sequences", "stored"),
    [
        (ended(), [1, 3], "Hello"),
        (ended(), [1, 2, 2, 3], "Hello"),
        (ended(), [1, 2], "Hello"),
        (ended(), [2, 1, 3], "Hello"),
        (ended(), [1, 2, 3], "Hell"),
        (ended(state=RUN_STATE_FAILED), [1, 2, 3], "Hello"),
        (ended(usage=Usage()), [1, 2, 3], "Hello"),
    ],
)
def test_gap_duplicate_wrong_end_and_wrong_text_are_problems(run: Run, sequences: list[int], stored: str) -> None:
    found = findings()
    found.conclude(run, sequences=sequences, streamed="Hello", stored=stored)
    assert len(found.problems) == 1
    assert json.loads(found.to_json())["ok"] is False


def test_states_are_told_once_each_in_the_order_seen_and_times_are_of_the_first() -> None:
    found = findings()
    found.start_clock()
    for state in (RUN_STATE_IN_PROGRESS, RUN_STATE_IN_PROGRESS, RUN_STATE_COMPLETED):
        found.see(RunEvent(run_state_changed=RunStateChanged(run=Run(state=state))))
    first = found.ttfe_ms
    assert found.first_text_ms is None
    found.see(RunEvent(text_delta=TextDelta(text="Hello")))
    assert (found.states, found.events, found.ttfe_ms) == (["IN_PROGRESS", "COMPLETED"], 4, first)
    assert found.first_text_ms is not None
