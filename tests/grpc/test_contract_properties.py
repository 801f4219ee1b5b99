"""Random sequences of calls against a model of the contract: whatever callers do, in whatever order, both agree."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import grpc
import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from complaints import heard_complaints
from famulus.v1.assistant_service_pb2 import DeleteAssistantRequest
from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.run_service_pb2 import CancelRunRequest
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_service_pb2 import DeleteThreadRequest
from famulus.v1.thread_service_pb2_grpc import ThreadServiceStub
from famulus_server.engine.lifecycle import FINAL, IN_PROGRESS
from properties.machine import NO_KEY, Stage
from properties.resources import AssistantRules, ThreadRules
from properties.runs import RunRules
from properties.stage import SCENARIOS, UpstreamThread, server_settings
from serving import ServerThread, Stubs

STEPS = 60
EXAMPLES = 40
LEAST_STEPS = 2_000
# What the rules provoke. Rules that no longer do so test less than they say.
REFUSALS = {
    "RESOURCE_NOT_FOUND",
    "ETAG_MISMATCH",
    "REQUEST_ID_REUSED",
    "THREAD_HAS_ACTIVE_RUN",
    "NO_ASSISTANT",
    "RUN_NOT_WAITING",
    "RUN_NOT_FINISHED",
    "TOOL_OUTPUTS_INCOMPLETE",
    "TOOL_OUTPUT_CONFLICT",
    "UNKNOWN_TOOL_CALL",
    "SEQUENCE_OUT_OF_RANGE",
}
# How runs come to busy threads; AGAIN: where one that interrupted has not begun, or has just.
LINED_UP = {
    "BUSY_POLICY_ENQUEUE",
    "BUSY_POLICY_INTERRUPT",
    "BUSY_POLICY_INTERRUPT_AGAIN",
    "BUSY_POLICY_ROLLBACK",
    "BUSY_POLICY_ROLLBACK_AGAIN",
}


class ContractMachine(AssistantRules, ThreadRules, RunRules):
    """All rules, and what must hold when everybody has gone home."""

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self._delete_at_work()
                self._end_all_runs()
        finally:
            self._delete_everything()
        if sys.exc_info()[0] is None:
            for thread in self.model.threads:
                thread.gone = True
                self.driver.check_gone(thread)

    def play_each_scenario(self) -> None:
        """Plays every kind of run to its end; those with tools also with wrong outputs."""
        for _ in SCENARIOS:
            self.start_run_on_new_thread(scenario=0, assistant=1, key=NO_KEY, again=False)
        for _ in SCENARIOS:
            self.play_run_with_tools(scenario=0, thread=0, is_error=False)
        self._end_all_runs()
        self.teardown()

    def _delete_at_work(self) -> None:
        """Every other thread is deleted while its run is at work, or waits, and is watched."""
        for thread in self.model.threads[::2]:
            if thread.gone:
                continue
            active = self.model.active_run(thread)
            if active is not None:
                self.driver.watch(active, 0)
            self.driver.call(self.stage.stubs.threads.DeleteThread, DeleteThreadRequest(thread_id=thread.thread.id))
            thread.gone = True
            self.driver.check_gone(thread)

    def _end_all_runs(self) -> None:
        """Every run comes to an end, and every thread is as the model has it."""
        for run in self.model.runs:
            if run.gone:
                continue
            if run.state == IN_PROGRESS and run.scenario.stops:
                self.release(run)
            self.driver.settle(run)
            if run.state not in FINAL:
                request = CancelRunRequest(run_id=run.id)
                run.note_cancel(self.driver.call(self.stage.stubs.runs.CancelRun, request).run)
                self.driver.settle(run)
            assert run.state in FINAL, run.run
        for thread in self.model.threads:
            if not thread.gone:
                self.driver.check_thread(thread)
                self.driver.check_messages(thread)

    def _delete_everything(self) -> None:
        for thread in self.model.threads:
            with contextlib.suppress(grpc.RpcError):
                self.stage.stubs.threads.DeleteThread(DeleteThreadRequest(thread_id=thread.thread.id))
        for assistant in self.model.assistants:
            with contextlib.suppress(grpc.RpcError):
                self.stage.stubs.assistants.DeleteAssistant(DeleteAssistantRequest(assistant_id=assistant.newest.id))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    upstream = UpstreamThread()
    server = ServerThread(server_settings(tmp_path_factory.mktemp("properties"), upstream.start()))
    with heard_complaints() as complaints:
        try:
            with grpc.insecure_channel(server.start().address) as channel:
                stubs = Stubs(AssistantServiceStub(channel), ThreadServiceStub(channel), RunServiceStub(channel))
                yield Stage(stubs, upstream, complaints=complaints)
        finally:
            server.stop()
            upstream.stop()


@pytest.fixture
def profile() -> settings:
    return settings(max_examples=EXAMPLES, stateful_step_count=STEPS)


@pytest.mark.timeout(600)
def test_server_and_model_of_the_contract_agree_on_every_sequence_of_calls(
    stage: Stage, profile: settings, caplog: pytest.LogCaptureFixture
) -> None:
    # Chance leaves some kinds of runs out.
    ContractMachine(stage).play_each_scenario()
    assert stage.scenarios.keys() == SCENARIOS.keys(), stage.scenarios
    machine: Any = partial(ContractMachine, stage)
    run_state_machine_as_test(machine, settings=profile)
    assert not stage.complaints
    assert not [record for record in caplog.records if record.name == "asyncio" and record.levelno >= logging.ERROR]
    assert stage.steps.total() >= LEAST_STEPS, stage.steps
    if profile.derandomize:
        # The same examples every time, so what they cover is no matter of luck.
        assert stage.refusals.keys() >= REFUSALS, stage.refusals
        assert stage.lined_up.keys() == LINED_UP, stage.lined_up
