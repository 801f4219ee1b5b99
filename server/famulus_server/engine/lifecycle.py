"""The life of a run: which state may follow which. The only place that knows.

             ┌──────────────────────────────────────────────┐
(born) ──► QUEUED ◄─► IN_PROGRESS ──► REQUIRES_ACTION ──────┘ outputs came: QUEUED, or a free slot at once
   └─────────────────────►┤  │               │
                          │  └► CANCELLING   └► CANCELLED, EXPIRED
                          └► COMPLETED, INCOMPLETE, FAILED, EXPIRED

Back from IN_PROGRESS to QUEUED goes a run that is parked. Whatever is QUEUED may become CANCELLED or EXPIRED.
"""

from collections.abc import Mapping
from types import MappingProxyType

from famulus.v1.run_pb2 import RunState

QUEUED = RunState.RUN_STATE_QUEUED
IN_PROGRESS = RunState.RUN_STATE_IN_PROGRESS
REQUIRES_ACTION = RunState.RUN_STATE_REQUIRES_ACTION
CANCELLING = RunState.RUN_STATE_CANCELLING
CANCELLED = RunState.RUN_STATE_CANCELLED
FAILED = RunState.RUN_STATE_FAILED
COMPLETED = RunState.RUN_STATE_COMPLETED
INCOMPLETE = RunState.RUN_STATE_INCOMPLETE
EXPIRED = RunState.RUN_STATE_EXPIRED

TRANSITIONS: Mapping["RunState.ValueType", frozenset["RunState.ValueType"]] = MappingProxyType(
    {
        QUEUED: frozenset({IN_PROGRESS, CANCELLED, EXPIRED}),
        IN_PROGRESS: frozenset(
            {IN_PROGRESS, QUEUED, REQUIRES_ACTION, CANCELLING, COMPLETED, INCOMPLETE, FAILED, EXPIRED}
        ),
        REQUIRES_ACTION: frozenset({QUEUED, IN_PROGRESS, CANCELLED, EXPIRED}),
        CANCELLING: frozenset({CANCELLED}),
        CANCELLED: frozenset(),
        FAILED: frozenset(),
        COMPLETED: frozenset(),
        INCOMPLETE: frozenset(),
        EXPIRED: frozenset(),
    }
)
BORN = frozenset({QUEUED, IN_PROGRESS})
FINAL = frozenset(state for state, following in TRANSITIONS.items() if not following)
ACTIVE = frozenset(TRANSITIONS) - FINAL
# A worker holds a lease on a run in these states, and only in these.
OWNED = frozenset({IN_PROGRESS, CANCELLING})
# Active, and nobody works on it.
WAITING = ACTIVE - OWNED


class IllegalTransition(Exception):
    """The engine tried to move a run where the table does not allow it: a fault of ours."""


def check(old: "RunState.ValueType", new: "RunState.ValueType") -> None:
    """Raises IllegalTransition unless `new` may follow `old`."""
    if new not in TRANSITIONS[old]:
        raise IllegalTransition(f"{RunState.Name(old)} -> {RunState.Name(new)}")
