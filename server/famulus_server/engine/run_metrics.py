"""What is counted of runs.

Each fact is told here by whoever committed it, once it is committed: so it counts once over all replicas, and neither
again for a request that is repeated nor for a unit of work that is run again. What was committed although nobody heard
of it is not counted, and neither is a run that is deleted while it is active: it has no end.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import RatingVerdict, Run, RunErrorCode, RunRating, RunState, Usage
from famulus.v1.run_step_pb2 import RunStep
from famulus.v1.tool_pb2 import FunctionCallProblem
from famulus_server.engine import lifecycle
from famulus_server.engine.policy import Policies
from famulus_server.ports import Claimed, Clock, Metrics
from famulus_server.ports import metrics as catalogue

_PROBLEMS: Mapping["FunctionCallProblem.ValueType", str] = MappingProxyType(
    {
        FunctionCallProblem.FUNCTION_CALL_PROBLEM_UNSPECIFIED: "",
        FunctionCallProblem.FUNCTION_CALL_PROBLEM_ARGUMENTS_NOT_JSON: "malformed_arguments",
        FunctionCallProblem.FUNCTION_CALL_PROBLEM_UNKNOWN_FUNCTION: "unknown_tool",
        FunctionCallProblem.FUNCTION_CALL_PROBLEM_TOO_MANY_CALLS: "too_many_calls",
    }
)
_NANOS = 1_000_000_000


class RunMetrics:
    """Counts what happens to runs."""

    def __init__(self, *, metrics: Metrics, policies: Policies, clock: Clock) -> None:
        self._metrics = metrics
        self._policies = policies
        self._clock = clock

    def created(self, tenant: str, run: Run) -> None:
        """The run is stored."""
        self._metrics.add(catalogue.RUNS_CREATED, run.model, self._tier(tenant))

    def started(self, claimed: Claimed) -> None:
        """A worker begins to execute the run."""
        run = claimed.run
        if claimed.taken_over:
            # Of a run that its worker gave back, that does not count against the turn.
            if run.turn_attempt > 1:
                self._metrics.add(catalogue.RUN_TAKEOVERS)
        elif run.attempt == 1:
            waited = run.start_time.ToNanoseconds() - run.create_time.ToNanoseconds()
            self._metrics.observe(catalogue.RUN_QUEUE_SECONDS, _seconds(waited), self._tier(claimed.tenant))

    def spoke(self, tenant: str, run: Run) -> None:
        """A model begins to answer a turn of the run."""
        # Another attempt at the first turn follows one that was heard.
        if run.turns == 0 and run.turn_attempt == 1:
            now = self._clock.now()
            waited = (now - run.create_time.ToDatetime(now.tzinfo)) / timedelta(seconds=1)
            self._metrics.observe(catalogue.RUN_FIRST_EVENT_SECONDS, max(0.0, waited), run.model, self._tier(tenant))

    def retried(self, model: str, code: "RunErrorCode.ValueType") -> None:
        """A model is about to be asked again for a turn."""
        self._metrics.add(catalogue.UPSTREAM_RETRIES, model, _word(RunErrorCode.Name(code)))

    def spared(self, model: str) -> None:
        """A model was not asked, because it fails all the time."""
        self._metrics.add(catalogue.UPSTREAM_CALLS, model, "suspended")

    def used(self, tenant: str, run: Run, usage: Usage | None) -> None:
        """What a turn used is stored; the cost with it, by the model that answered."""
        if usage is None:
            return
        labels = run.variant, self._tier(tenant)
        kinds = {
            "prompt": usage.prompt_tokens,
            "cached_prompt": usage.cached_prompt_tokens,
            "completion": usage.completion_tokens,
            "reasoning": usage.reasoning_tokens,
        }
        for kind, tokens in kinds.items():
            if tokens:
                self._metrics.add(catalogue.TOKENS, kind, *labels, amount=tokens)
        if usage.cost_nanos:
            self._metrics.add(catalogue.COST, *labels, amount=usage.cost_nanos / _NANOS)

    def called(self, run: Run, steps: Iterable[RunStep]) -> None:
        """A turn is stored with these steps."""
        for step in steps:
            for call in step.tool_calls.tool_calls:
                if call.HasField("function"):
                    self._metrics.add(catalogue.TOOL_CALLS, _PROBLEMS[call.function.problem])
        if run.state == lifecycle.REQUIRES_ACTION:
            self._metrics.add(catalogue.TOOL_ROUNDS)

    def answered(self, facts: Sequence[RunEvent]) -> None:
        """Outputs are stored, with these facts."""
        for step in (event.step_completed.step for event in facts if event.HasField("step_completed")):
            waited = step.end_time.ToNanoseconds() - step.create_time.ToNanoseconds()
            self._metrics.observe(catalogue.TOOL_WAIT_SECONDS, _seconds(waited))

    def rated(self, rating: RunRating) -> None:
        """A rating is stored."""
        word = RatingVerdict.Name(rating.verdict).removeprefix("RATING_VERDICT_").lower()
        self._metrics.add(catalogue.RUN_RATINGS, word)

    def ended(self, tenant: str, run: Run) -> None:
        """A final state is stored."""
        state = RunState.Name(run.state).removeprefix("RUN_STATE_").lower()
        labels = state, run.model, run.variant, self._tier(tenant)
        self._metrics.add(catalogue.RUNS_ENDED, *labels)
        took = run.end_time.ToNanoseconds() - run.create_time.ToNanoseconds()
        self._metrics.observe(catalogue.RUN_SECONDS, _seconds(took), *labels)
        if run.HasField("error"):
            self._metrics.add(catalogue.RUN_ERRORS, _word(RunErrorCode.Name(run.error.code)), run.model)
        if run.degraded:
            self._metrics.add(catalogue.RUNS_DEGRADED, run.model)

    def _tier(self, tenant: str) -> str:
        return self._policies.current.tier_name(tenant)


def _seconds(nanos: int) -> float:
    # Clocks of replicas may differ.
    return max(0, nanos) / _NANOS


def _word(code: str) -> str:
    return code.removeprefix("RUN_ERROR_CODE_").lower()
