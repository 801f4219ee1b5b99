"""The clients of all languages do the same, and the suite sees it when one does not."""

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from conformance import transcript
from conformance.languages import examine, postgres_if_here
from conformance.mutant import FAULTS
from conformance.scenario import CLIENTS, FOLDER, Line, Scenario, ScenarioFile, all_scenarios
from conformance.trial import perform
from conformance.world import World

PYTHON = CLIENTS / "python/conformance/runner"
# A scenario for each fault, in which it must show.
SHOWN_BY = {
    "drops_an_event": "create_and_stream",
    "repeats_an_event": "create_and_stream",
    "forgets_its_place": "cut_at_each_event",
    "gives_up": "cut_at_each_event",
    "misreads_an_error": "error_not_found",
    "loses_what_is_in_an_error": "error_models",
    "leaks_an_exception": "tool_refuses",
    "hides_that_a_tool_failed": "tool_unknown",
    "answers_one_by_one": "tools_in_parallel",
    "keeps_what_was_discarded": "run_starts_over",
}


@pytest.fixture(autouse=True)
def _same_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World.opened(tmp_path, None) as opened:
        yield opened


@pytest.mark.timeout(300)
async def test_python_client_does_what_every_scenario_says(tmp_path: Path) -> None:
    # `make conformance` asks the other languages, too.
    with postgres_if_here(say=print) as postgres:
        report = await examine("python", PYTHON, list(all_scenarios()), tmp_path, postgres, say=lambda _: None)
    assert not report.differences, "\n".join(f"{name}:\n{text}" for name, text in report.differences.items())
    assert report.passed


def test_every_fault_has_a_scenario_that_shows_it() -> None:
    assert SHOWN_BY.keys() == FAULTS.keys()


@pytest.mark.parametrize(("fault", "name"), SHOWN_BY.items())
async def test_suite_sees_a_client_that(fault: str, name: str, world: World, tmp_path: Path) -> None:
    mutant = tmp_path / "runner"
    mutant.write_text(f'#!/bin/sh\nexec "$PYTHON" -m conformance.mutant {fault} "$@"\n')
    mutant.chmod(0o755)
    file = ScenarioFile.load(FOLDER / f"{name}.json")
    outcome = await perform(world, mutant, file)
    assert transcript.difference(file.scenario.expected, outcome.lines)
    sound = await perform(world, PYTHON, file)
    assert not transcript.difference(file.scenario.expected, sound.lines)


def test_order_of_events_that_are_not_compared_is_checked() -> None:
    def line(sequence: int, kind: str = "text_delta") -> Line:
        return {"step": 0, "event": {"sequence": sequence, "kind": kind}}

    assert not transcript.check_order([line(3), line(4), line(90, "attempt_started"), line(91)])
    assert transcript.check_order([line(3), line(5)])
    assert transcript.check_order([line(3), line(3)])
    assert transcript.check_order([line(3), line(2, "snapshot")])


def test_ids_are_named_and_what_the_transport_says_is_left_out() -> None:
    lines = [
        {"step": 0, "page": ["msg_01m82myz3vsm2cmh3b2fj102vg", "msg_01m82myz3vzavgycy0nsd82e20"]},
        {"step": 0, "page": ["msg_01m82myz3vsm2cmh3b2fj102vg", "thread_01m82myz3vzavgycy0nsd82e20"]},
        {"step": 0, "error": {"code": "UNAVAILABLE", "reason": "", "message": "socket closed", "metadata": {}}},
    ]
    scenario = Scenario(about="", steps=())
    assert transcript.comparable(lines, scenario, {"thread": "thread_01m82myz3vzavgycy0nsd82e20"}) == [
        {"step": 0, "page": ["<msg 1>", "<msg 2>"]},
        {"step": 0, "page": ["<msg 1>", "$thread"]},
        {"step": 0, "error": {"code": "UNAVAILABLE", "reason": ""}},
    ]


def test_what_is_no_json_is_no_transcript() -> None:
    for output in (b"hello", b"[1]", b"\xff"):
        with pytest.raises(transcript.Unreadable):
            transcript.read(output)
