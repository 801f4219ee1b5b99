"""The transition table of runs."""

from itertools import product

import pytest

from famulus.v1.run_pb2 import RunState
from famulus_server.engine import lifecycle
from famulus_server.engine.lifecycle import IllegalTransition

REAL = [state for state in RunState.values() if state != RunState.RUN_STATE_UNSPECIFIED]


def reachable(start: "RunState.ValueType") -> set["RunState.ValueType"]:
    seen, todo = {start}, [start]
    while todo:
        for following in lifecycle.TRANSITIONS[todo.pop()] - seen:
            seen.add(following)
            todo.append(following)
    return seen


def test_table_knows_every_state_of_the_api() -> None:
    assert set(lifecycle.TRANSITIONS) == set(REAL)


def test_states_are_final_or_active_and_active_ones_owned_or_waiting() -> None:
    assert set(REAL) == lifecycle.FINAL | lifecycle.ACTIVE
    assert not lifecycle.FINAL & lifecycle.ACTIVE
    assert lifecycle.OWNED | lifecycle.WAITING == lifecycle.ACTIVE
    assert not lifecycle.OWNED & lifecycle.WAITING


def test_five_states_are_final() -> None:
    names = {RunState.Name(state).removeprefix("RUN_STATE_") for state in lifecycle.FINAL}
    assert names == {"CANCELLED", "FAILED", "COMPLETED", "INCOMPLETE", "EXPIRED"}


def test_nothing_follows_a_final_state() -> None:
    for old, new in product(lifecycle.FINAL, REAL):
        with pytest.raises(IllegalTransition):
            lifecycle.check(old, new)


def test_check_allows_exactly_what_the_table_says() -> None:
    for old, new in product(REAL, REAL):
        if new in lifecycle.TRANSITIONS[old]:
            lifecycle.check(old, new)
        else:
            with pytest.raises(IllegalTransition, match=RunState.Name(new)):
                lifecycle.check(old, new)


@pytest.mark.parametrize("state", sorted(lifecycle.ACTIVE))
def test_every_active_state_can_end(state: "RunState.ValueType") -> None:
    assert reachable(state) & lifecycle.FINAL


def test_every_state_can_be_reached_from_a_state_that_runs_are_born_in() -> None:
    assert set.union(*map(reachable, lifecycle.BORN)) == set(REAL)


def test_cancelled_run_never_becomes_anything_else() -> None:
    assert reachable(lifecycle.CANCELLING) == {lifecycle.CANCELLING, lifecycle.CANCELLED}
