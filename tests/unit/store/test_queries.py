"""The file of queries keeps its own rules, and says what the code takes it to say."""

import re
from pathlib import Path

import pytest

from famulus.v1.run_pb2 import RunState
from famulus_server.engine import lifecycle
from famulus_server.store import queries

STORE = Path(queries.__file__).parent


def test_every_query_is_used_and_every_used_query_exists() -> None:
    sources = [path.read_text() for path in STORE.glob("*.py")]
    used = {name for source in sources for name in re.findall(r'"((?:[a-z]+_)+[a-z]+|ping)"', source)}
    written = {*queries.load("sqlite"), *queries.load("postgres")}
    assert written - used == set()
    called = {name for source in sources for name in re.findall(r'_session\.\w+\(\s*"(\w+)"', source)}
    assert len(called) > 30
    assert called - written == set()


def test_states_in_the_queries_are_those_of_the_lifecycle() -> None:
    # `queries.sql` and the migration name them by number: 1 QUEUED, 3 REQUIRES_ACTION.
    assert (RunState.Value("RUN_STATE_QUEUED"), RunState.Value("RUN_STATE_REQUIRES_ACTION")) == (1, 3)
    assert sorted(lifecycle.ACTIVE - lifecycle.OWNED) == [1, 3]


def test_both_engines_have_all_queries_but_those_of_one_alone() -> None:
    # Whoever opens a file is alone with it and keeps nobody away; a file has no clock of its own.
    holding = {name for name in queries.load("postgres") if name.endswith("_hold")}
    assert queries.load("sqlite").keys() ^ queries.load("postgres").keys() == {
        "runs_release_all",
        "database_time",
        *holding,
    }


def test_locks_are_in_force_only_in_the_statements_that_lock() -> None:
    text = "-- name: a\n-- One.\nSELECT 1 FROM t /* FOR UPDATE OF t */;\n\n-- name: b\n-- Two.\nSELECT 2;\n"
    plain = queries.load("postgres", text)
    assert plain["a"] == "SELECT 1 FROM t /* FOR UPDATE OF t */"
    assert dict(queries.locking(plain)) == {"a": "SELECT 1 FROM t FOR UPDATE OF t"}


def test_every_query_that_is_asked_to_lock_can() -> None:
    sources = "".join(path.read_text() for path in STORE.glob("*.py"))
    asked = set(re.findall(r'_session\.\w+\(\s*"(\w+)"[^()]*(?:\([^()]*\)[^()]*)*lock=', sources))
    assert len(asked) > 5
    assert asked - queries.locking(queries.load("postgres")).keys() == set()


def test_every_query_that_is_posted_only_adds_or_replaces_a_row() -> None:
    sources = "".join(path.read_text() for path in STORE.glob("*.py"))
    posted = set(re.findall(r'_session\.post\(\s*"(\w+)"', sources))
    assert len(posted) > 5
    for name in posted:
        text = queries.load("postgres")[name]
        assert text.startswith("INSERT INTO"), name
        assert "RETURNING" not in text, name


def test_queries_run_together_keep_their_arguments_apart() -> None:
    together = queries.together(["INSERT INTO a VALUES ($1, $2, $1)", "INSERT INTO b SELECT $2 WHERE $1"])
    assert together == (
        "WITH p0 AS (INSERT INTO a VALUES ($1, $2, $1) RETURNING 1),"
        " p1 AS (INSERT INTO b SELECT $4 WHERE $3 RETURNING 1)"
        " SELECT (SELECT count(*) FROM p0), (SELECT count(*) FROM p1)"
    )


def test_variant_is_picked_by_engine() -> None:
    text = "-- name: a [sqlite]\n-- One.\nSELECT 1;\n\n-- name: a [postgres]\n-- Two.\nSELECT 2;\n"
    assert dict(queries.load("sqlite", text)) == {"a": "SELECT 1"}
    assert dict(queries.load("postgres", text)) == {"a": "SELECT 2"}


@pytest.mark.parametrize(
    "text",
    [
        "-- name: a b\n-- Text.\nSELECT 1;",
        "-- name: a [oracle]\n-- Text.\nSELECT 1;",
        "-- name: a\nSELECT 1;",
        "-- name: a\n-- Text.\n",
        "-- name: a\n-- Text.\nSELECT 1",
        "-- name: a\n-- Text.\nSELECT 1;\n-- name: a\n-- Text.\nSELECT 2;",
    ],
)
def test_file_that_breaks_its_rules_is_refused(text: str) -> None:
    with pytest.raises(queries.BadQueryFile):
        queries.load("sqlite", text)
