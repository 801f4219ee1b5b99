"""Rules about runs: how they start, what callers do meanwhile, and how they are read."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from hypothesis import strategies as st

from famulus.v1 import run_service_pb2 as runs_api
from famulus.v1.run_pb2 import RatingVerdict, Run, RunRating, RunState
from famulus.v1.run_service_pb2 import BusyPolicy
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import GetThreadRequest
from famulus.v1.tool_pb2 import FunctionTool, Tool, ToolOutput
from famulus_server.engine.lifecycle import ACTIVE, BORN, FINAL, IN_PROGRESS, REQUIRES_ACTION
from properties.machine import ETAG, KEY, NO_KEY, NUMBER, RARE, Machine, Stage, step
from properties.model import ENQUEUE, NOT_FINISHED, NOT_FOUND, OK, PATIENT, ROLLBACK, RunRecord, ThreadRecord
from properties.stage import FUNCTION, PATIENCE, SCENARIOS, Watcher, instructions
from serving import said

_ALL = tuple(SCENARIOS)
_WITH_TOOLS = tuple(name for name, scenario in SCENARIOS.items() if REQUIRES_ACTION in scenario.stops)
_WRONG = ("partial", "foreign", "repeated", "other")
POLICY = st.sampled_from(BusyPolicy.values())
INTERRUPT = BusyPolicy.BUSY_POLICY_INTERRUPT
WRONG_OUTPUTS = st.sampled_from(_WRONG)
_TOOLS = runs_api.ToolOverride(tools=[Tool(function=FunctionTool(name=FUNCTION))])


class RunRules(Machine):
    """Runs and their events."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._requested = 0

    @step(scenario=NUMBER, thread=NUMBER, assistant=NUMBER, key=KEY, again=st.booleans(), extra=st.integers(0, 2))
    def start_run(self, scenario: int, thread: int, assistant: int, key: int, again: bool, extra: int) -> None:
        request = self._request(_ALL, scenario, thread, assistant, extra)
        self._start(self.stage.stubs.runs.CreateRun, request, key, again)

    @step(
        thread=NUMBER, extra=st.integers(0, 2), policies=st.lists(POLICY, min_size=1, max_size=3), streams=st.booleans()
    )
    def start_runs_on_busy_thread(
        self, thread: int, extra: int, policies: "list[BusyPolicy.ValueType]", streams: bool
    ) -> None:
        busy = [record for record in self.model.threads if not record.gone and self.model.active_run(record)]
        for number, policy in enumerate(policies):
            request = self._request(_ALL, number, thread, 1, extra)
            if busy:
                request.thread_id = busy[thread % len(busy)].thread.id
            request.busy_policy = policy
            self._start(self._stream if streams else self.stage.stubs.runs.CreateRun, request)

    @step(scenario=NUMBER, thread=NUMBER, assistant=NUMBER, after=st.integers(0, 6))
    def start_run_and_wait(self, scenario: int, thread: int, assistant: int, after: int) -> None:
        request = self._request(_ALL, scenario, thread, assistant, 1)
        run = self._start(self.stage.stubs.runs.CreateRun, request)
        if run is not None:
            self.driver.watch(run, after)
            self.driver.settle(run)

    @step(scenario=NUMBER, assistant=NUMBER, key=KEY, again=st.booleans())
    def start_run_on_new_thread(self, scenario: int, assistant: int, key: int, again: bool) -> None:
        request = self._request(_ALL, scenario, 0, assistant, 1)
        request.new_thread.CopyFrom(Thread(user_id=self.user, title=self.fresh("Title")))
        self._start(self.stage.stubs.runs.CreateRun, request, key, again)

    @step(scenario=NUMBER, thread=NUMBER, assistant=NUMBER, key=KEY, again=st.booleans())
    def stream_run(self, scenario: int, thread: int, assistant: int, key: int, again: bool) -> None:
        self._start(self._stream, self._request(_ALL, scenario, thread, assistant, 1), key, again)

    @step(scenario=NUMBER, thread=NUMBER)
    def make_run_wait_for_outputs(self, scenario: int, thread: int) -> None:
        run = self._start(self._stream, self._request(_WITH_TOOLS, scenario, thread, 1, 1))
        if run is not None:
            self.driver.settle(run)

    @step(scenario=NUMBER, thread=NUMBER, is_error=st.booleans())
    def play_run_with_tools(self, scenario: int, thread: int, is_error: bool) -> None:
        run = self._start(self._stream, self._request(_WITH_TOOLS, scenario, thread, 1, 1))
        while run is not None and run.state not in FINAL:
            self.driver.settle(run)
            for kind in _WRONG:
                self._submit_to(run, kind, False, True)
            self._rate(run, RatingVerdict.RATING_VERDICT_GOOD)
            self._submit_to(run, "right", is_error, True)
            self._submit_to(run, "repeated", False, True)

    @step(which=NUMBER, is_error=st.booleans(), settles=st.booleans(), key=KEY, again=st.booleans())
    def submit_outputs(self, which: int, is_error: bool, settles: bool, key: int, again: bool) -> None:
        self._submit(which, "right", is_error, settles, key, again)

    @step(which=NUMBER, kind=WRONG_OUTPUTS)
    def submit_wrong_outputs(self, which: int, kind: str) -> None:
        self._submit(which, kind, False, True)

    def _submit(
        self, which: int, kind: str, is_error: bool, settles: bool, key: int = NO_KEY, again: bool = False
    ) -> None:
        run = self._pick_run(which, state=REQUIRES_ACTION)
        if run is None:
            outputs = [ToolOutput(call_id="call_unknown", output="?")]
            request = runs_api.SubmitToolOutputsRequest(run_id="run_unknown", tool_outputs=outputs)
            self.driver.call(self.stage.stubs.runs.SubmitToolOutputs, request, (NOT_FOUND,))
            return
        self._submit_to(run, kind, is_error, settles, key, again)

    def _submit_to(
        self, run: RunRecord, kind: str, is_error: bool, settles: bool, key: int = NO_KEY, again: bool = False
    ) -> None:
        self.driver.settle(run)
        outputs = self._outputs(run, kind, is_error)
        response = self.create(
            self.stage.stubs.runs.SubmitToolOutputs,
            runs_api.SubmitToolOutputsRequest(run_id=run.id, tool_outputs=outputs),
            key,
            again,
            name="SubmitToolOutputs",
            answers=lambda: self.model.answers_to_outputs(run, outputs),
            id_of=lambda response: str(response.run.id),
            alive=lambda _, run_id: self.model.run(run_id) is not None,
        )
        if response is None or all(output.call_id in run.answered for output in outputs):
            assert response is None or response.run.state in run.visible, response
            return
        assert response.run.state in BORN, response
        assert not response.run.HasField("required_action"), response
        run.answered |= {output.call_id: output for output in outputs}
        run.go_on()
        if settles:
            heard = [part.text.text for m in run.thread.messages for part in m.content if not m.run_id]
            self.driver.settle(run)
            asked = self.stage.upstream.bodies(run.number)[-1]
            unheard = [text for text in (*heard, *(output.output for output in outputs)) if text not in asked]
            assert not unheard, f"the turn after the outputs was not told {unheard}"

    @step(which=NUMBER, settles=st.booleans(), twice=st.booleans())
    def cancel_run(self, which: int, settles: bool, twice: bool) -> None:
        run = self._pick_run(which)
        if run and run.in_line:
            self.driver.settle(run)
        for _ in range(2 if twice else 1):
            request = runs_api.CancelRunRequest(run_id=run.id if run else "run_unknown")
            answers = OK if run and not run.gone else (NOT_FOUND,)
            response = self.driver.call(self.stage.stubs.runs.CancelRun, request, answers)
            if run and response:
                was_in_line = run.in_line
                run.note_cancel(response.run)
                if was_in_line:
                    self.driver.settle(run)
        if run and settles:
            self.driver.settle(run)

    @step(which=NUMBER, after=st.integers(0, 4), settles=st.booleans())
    def release_run(self, which: int, after: int, settles: bool) -> None:
        run = self._pick_run(which, state=IN_PROGRESS)
        if run is None:
            return
        if run.state == IN_PROGRESS and run.scenario.stops and not run.gone:
            self.release(run)
        if not run.gone and run.state is None:
            self.driver.watch(run, after if after <= 3 else 0)
        if settles:
            self.driver.settle(run)

    @step(which=NUMBER)
    def wait_for_run(self, which: int) -> None:
        run = self._pick_run(which)
        if run is not None:
            self.driver.settle(run)

    @step(which=NUMBER, after=st.integers(0, 12))
    def watch_run(self, which: int, after: int) -> None:
        run = self._pick_run(which)
        if run is None or run.gone:
            request = runs_api.WatchRunRequest(run_id=run.id if run else "run_unknown", after_sequence=after)
            self.driver.call(self._first, request, (NOT_FOUND,))
        elif run.state in FINAL:
            self.driver.check_resumed(run, after)
        else:
            self.driver.watch(run, after)

    @step(which=NUMBER, key=st.integers(0, 3))
    def resume_stream(self, which: int, key: int) -> None:
        known = self.model.requests.get(("CreateRun", f"{self.user} {key}"))
        if known is None:
            return
        request, run_id = known
        run = self.model.run(run_id)
        response = self.driver.call(self._stream, request, OK if run else (NOT_FOUND,))
        if run is not None:
            assert response.run.id == run_id, response.run
            if run.state in FINAL:
                response.watcher.wait()
                assert response.watcher.events == self.driver.events_behind(run, 0), "resumed, it told another story"
            else:
                run.watchers.append(response.watcher)

    @step(which=NUMBER, state=st.sampled_from([0, *ACTIVE, *FINAL]), size=st.integers(1, 4))
    def read_runs(self, which: int, state: "RunState.ValueType", size: int) -> None:
        run, stub = self._pick_run(which), self.stage.stubs.runs
        if run is None or run.gone:
            request = runs_api.GetRunRequest(run_id=run.id if run else "run_unknown")
            self.driver.call(stub.GetRun, request, (NOT_FOUND,))
            return
        found = self.driver.call(stub.GetRun, runs_api.GetRunRequest(run_id=run.id)).run
        if not run.in_line:
            assert found.state in run.visible, f"{found}\npossible: {run.visible}"
        assert dict(found.metadata) == run.metadata, found
        assert (found.rating.verdict, found.rating.comment) == (run.rated.verdict, run.rated.comment), found
        siblings = [other for other in reversed(self.model.runs) if other.thread is run.thread]
        for other in siblings:
            self.driver.settle(other)
        wanted = runs_api.ListRunsRequest(thread_id=run.thread.thread.id, states=[state] if state else [])
        listed = self.driver.page_through(stub.ListRuns, wanted, "runs", size)
        expected = [other.id for other in siblings if state in (0, other.state)]
        assert [other.id for other in listed] == expected, f"{listed}\nexpected: {expected}"

    @step(which=NUMBER, etag=ETAG)
    def update_run(self, which: int, etag: str) -> None:
        run = self._pick_run(which)
        if run is None or run.gone:
            request = runs_api.UpdateRunRequest(run=Run(id=run.id if run else "run_unknown"))
            self.driver.call(self.stage.stubs.runs.UpdateRun, request, (NOT_FOUND,))
            return
        self.driver.settle(run)
        old = self.driver.call(self.stage.stubs.runs.GetRun, runs_api.GetRunRequest(run_id=run.id)).run
        wanted = Run(id=run.id, metadata={"mark": self.fresh("mark")}, etag=self.pick_etag(etag, old.etag))
        answers = self.answers(gone=False, etag=etag)
        response = self.driver.call(self.stage.stubs.runs.UpdateRun, runs_api.UpdateRunRequest(run=wanted), answers)
        if response is not None:
            assert response.run.etag != old.etag, response
            run.metadata = dict(wanted.metadata)
            assert dict(response.run.metadata) == run.metadata, response

    @step(which=NUMBER, verdict=st.sampled_from([1, 2]), key=KEY, again=st.booleans())
    def rate_run(self, which: int, verdict: "RatingVerdict.ValueType", key: int, again: bool) -> None:
        run = self._pick_run(which)
        if run is not None:
            self.driver.settle(run)
            self._rate(run, verdict, key, again)

    def release(self, run: RunRecord) -> None:
        """Lets a held run go on, once its answer has begun."""
        watching = self.stage.stubs.runs.WatchRun(runs_api.WatchRunRequest(run_id=run.id), timeout=PATIENCE)
        begun = (event.HasField("text_delta") for response in watching for event in response.events)
        assert any(begun), "a held run ended"
        watching.cancel()
        self.stage.upstream.release(run.number)
        run.go_on()

    def _rate(self, run: RunRecord, verdict: "RatingVerdict.ValueType", key: int = NO_KEY, again: bool = False) -> None:
        rating = RunRating(verdict=verdict, comment=self.fresh("Comment"))
        response = self.create(
            self.stage.stubs.runs.RateRun,
            runs_api.RateRunRequest(run_id=run.id, rating=rating),
            key,
            again,
            name="RateRun",
            answers=lambda: (NOT_FOUND,) if run.gone else OK if run.state in FINAL else (NOT_FINISHED,),
            id_of=lambda response: str(response.run.id),
            alive=lambda _, run_id: self.model.run(run_id) is not None,
        )
        if response is not None:
            run.rated = rating
            assert response.run.rating.verdict == verdict, response

    def _request(
        self, scenarios: Sequence[str], which: int, thread: int, assistant: int, extra: int
    ) -> runs_api.CreateRunRequest:
        """A request for a run of one of these scenarios."""
        # Hypothesis likes to repeat what it drew before: so the scenarios take turns, and all that was drawn has a say.
        # Seven has no divisor in common with the numbers of scenarios.
        self._requested += 1
        scenario = scenarios[(which + thread + assistant + extra + 7 * self._requested) % len(scenarios)]
        number = next(self.stage.numbers)
        return runs_api.CreateRunRequest(
            thread_id=self.pick(self.model.threads, thread).thread.id,
            assistant_id=self.pick(self.model.assistants, assistant).newest.id if assistant % 5 else "",
            assistant_version=assistant // 64 if assistant % 3 == 0 else 0,
            additional_messages=[said(self.fresh("Added")) for _ in range(extra)],
            additional_instructions=instructions(scenario, number),
            max_turns=SCENARIOS[scenario].max_turns,
            tools=_TOOLS,
            metadata={"scenario": scenario, "number": str(number)},
        )

    def _start(
        self, method: Any, request: runs_api.CreateRunRequest, key: int = NO_KEY, again: bool = False
    ) -> RunRecord | None:
        """Starts a run if the contract lets it; None if not, or if it is there already."""
        self._make_certain(request)
        response = self.create(
            method,
            request,
            key,
            again,
            name="CreateRun",
            answers=lambda: self.model.answers_to_create_run(request),
            id_of=lambda response: str(response.run.id),
            alive=lambda _, run_id: self.model.run(run_id) is not None,
        )
        if response is None:
            return None
        run = response.run
        thread = self.model.thread(run.thread_id)
        if thread is None:
            assert request.HasField("new_thread"), run
            get = GetThreadRequest(thread_id=run.thread_id)
            thread = ThreadRecord(self.driver.call(self.stage.stubs.threads.GetThread, get).thread)
            self.model.threads.append(thread)
        before = self.model.active_run(thread)
        lines_up = before is not None and request.busy_policy in PATIENT
        if before is not None and not lines_up:
            # It went on by itself, and the server says that it has ended.
            self.driver.settle(before)
            assert before.state in FINAL, f"two active runs on a thread:\n{before.run}\n{run}"
        scenario, number = request.metadata["scenario"], int(request.metadata["number"])
        record = RunRecord(run.id, number, thread, scenario, set(), run=run, metadata=dict(request.metadata))
        self._check_started(run, request)
        self.stage.scenarios[scenario] += 1
        if lines_up:
            anew = "_AGAIN" if thread.line and thread.line[0].first and request.busy_policy != ENQUEUE else ""
            self.stage.lined_up[BusyPolicy.Name(request.busy_policy) + anew] += 1
            self.model.line_up(record, request.busy_policy, request.additional_messages)
        else:
            record.begin()
        self.model.runs.append(record)
        if not lines_up:
            self.note_messages(thread, request.additional_messages)
        if hasattr(response, "watcher"):
            record.watchers.append(response.watcher)
        return record

    def _make_certain(self, request: runs_api.CreateRunRequest) -> None:
        """Waits where the model could not say what the policy means for this request: only behind an interrupted run it
        may be anything, and comes to the same."""
        thread = self.model.thread(request.thread_id)
        if thread is None or not (thread.line or request.busy_policy in PATIENT):
            return
        interrupted = bool(thread.line) and thread.line[0].first
        if not interrupted or request.busy_policy not in (INTERRUPT, ROLLBACK):
            self.driver.settle_thread(thread)

    def _check_started(self, run: Run, request: runs_api.CreateRunRequest) -> None:
        thread = self.model.thread(run.thread_id)
        default = thread.thread.default_assistant_id if thread else ""
        assistant = self.model.assistant(request.assistant_id or default)
        assert assistant is not None, "an assistant that is gone answers"
        version = request.assistant_version or len(assistant.versions)
        frozen = assistant.versions[version - 1]
        assert run.state in BORN, run
        assert (run.assistant_id, run.assistant_version) == (frozen.id, version), run
        asked = [frozen.instructions, request.additional_instructions]
        assert run.instructions == "\n\n".join(filter(None, asked)), run
        assert run.metadata == request.metadata, run
        assert run.expire_time.ToDatetime() > run.create_time.ToDatetime(), run

    def _outputs(self, run: RunRecord, kind: str, is_error: bool) -> list[ToolOutput]:
        right = [
            ToolOutput(call_id=call_id, output=self.fresh("Output"), is_error=is_error) for call_id in run.open_calls
        ]
        others = [ToolOutput(call_id=call_id, output=self.fresh("Other")) for call_id in run.answered]
        foreign = [ToolOutput(call_id="call_foreign", output=self.fresh("Foreign"))]
        outputs = {
            "right": right,
            "partial": right[:-1],
            "foreign": right + foreign,
            "repeated": list(run.answered.values()),
            "other": right + others[-1:],
        }[kind]
        return outputs or right or foreign

    def _pick_run(self, which: int, *, state: "RunState.ValueType | None" = None) -> RunRecord | None:
        """A run, one in this state if there is one; None where there is none at all."""
        wanted = [run for run in self.model.runs if run.state == state and not run.gone]
        pool = wanted if state is not None and wanted and which % 8 != RARE else self.model.runs
        return self.pick(pool, which) if pool else None

    def _first(self, request: runs_api.WatchRunRequest, *, timeout: float) -> runs_api.WatchRunResponse:
        return next(iter(self.stage.stubs.runs.WatchRun(request, timeout=timeout)))

    def _stream(self, create: runs_api.CreateRunRequest, *, timeout: float) -> "Streamed":
        """Opens a stream by StreamRun."""
        request = runs_api.StreamRunRequest(create=create)
        responses = iter(self.stage.stubs.runs.StreamRun(request, timeout=3 * timeout))
        first = next(responses)
        return Streamed(first.events[0].run_state_changed.run, Watcher(chain([first], responses), 0))


class Streamed:
    """A run that was started by StreamRun, and its stream."""

    def __init__(self, run: Run, watcher: Watcher) -> None:
        self.run = run
        self.watcher = watcher
