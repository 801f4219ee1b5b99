"""docs/crash-matrix.md says what the tests show, and leaves nothing out."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from famulus.v1.run_pb2 import RunState
from famulus_server.engine import lifecycle
from replicas import test_crash_matrix

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs/crash-matrix.md").read_text(encoding="utf-8")
OURS = f"replicas/{Path(test_crash_matrix.__file__).name}"


def rows() -> list[list[str]]:
    """The cells of all rows, without the heads of the tables."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines if not line.startswith("| edge |")]


def named() -> list[tuple[str, str, str]]:
    """File, name and case of every test that the page names."""
    return re.findall(r"`([\w/]+\.py)::(\w+)(?:\[([^\]`]+)\])?`", PAGE)


def shown() -> set[tuple[str, str]]:
    """Name and case of all tests beside this page."""
    found = set()
    for name, test in inspect.getmembers(test_crash_matrix, inspect.isfunction):
        if name.startswith("test_"):
            marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
            cases = [case for mark in marks for case in mark.kwargs.get("ids") or map(str, mark.args[1])]
            found |= {(name, case) for case in cases or [""]}
    return found


def test_every_row_says_what_dies_what_holds_and_which_test_shows_it() -> None:
    assert len(rows()) > 50
    for row in rows():
        assert len(row) == 4, row
        assert all(row), row
        assert "::test_" in row[3], row


@pytest.mark.parametrize("file", sorted({file for file, _, _ in named()}))
def test_named_tests_exist(file: str) -> None:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert {name for other, name, _ in named() if other == file} <= functions


def test_every_case_has_its_row() -> None:
    assert {(name, case) for file, name, case in named() if file == OURS} == shown()


def test_every_edge_of_the_lifecycle_has_its_rows_and_no_other_has() -> None:
    edges = {edge for row in rows() for edge in re.findall(r"([\w()]+) → (\w+)", row[0])}
    states = {state: RunState.Name(state).removeprefix("RUN_STATE_") for state in lifecycle.TRANSITIONS}
    assert edges == {("(born)", states[state]) for state in lifecycle.BORN} | {
        (states[state], states[following]) for state in states for following in lifecycle.TRANSITIONS[state]
    }
