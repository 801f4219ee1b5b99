"""Every query on a table that has tenants keeps to one of them, or says why it does not.

The check reads the text as far as these queries need it: a table is bound where its `tenant` equals `$1`, or that of a
table which is bound, by a condition that must hold: outside of parentheses, in a WHERE or in the ON of its own join.
"""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from famulus_server.store import queries, schema
from famulus_server.store.queries import Engine, Scope

ENGINES: tuple[Engine, Engine] = ("sqlite", "postgres")
# An alias is no keyword.
NAMED = re.compile(
    r"\b(?:FROM|JOIN|UPDATE|INTO)\s+(?P<table>[a-z_]+)\b(?:\s+(?:AS\s+)?(?P<alias>(?-i:[a-z_]+))\b)?", re.IGNORECASE
)
CONDITION = re.compile(r"(?P<left>(?:\w+\.)?tenant) = (?P<right>\$1(?!\d)|\w+\.tenant)")
CLAUSE = re.compile(r"\b(?=LEFT JOIN\b|WHERE\b)|(?<!LEFT )\b(?=JOIN\b)")
# What the check would misread.
TOO_MUCH = re.compile(r"\bFROM \w+(?: \w+)?\s*,|\bUNION\b")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """The tables that have a column `tenant`."""
    path = tmp_path_factory.mktemp("schema") / "famulus.db"
    schema.upgrade_file(path)
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT m.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE c.name = 'tenant'"
        return frozenset(name for (name,) in connection.execute(query))


def test_every_query_keeps_to_its_tenant_or_says_why_not(tables: frozenset[str]) -> None:
    assert {"threads", "runs", "messages", "request_ids"} <= tables
    for engine in ENGINES:
        for name, scope in queries.scopes(engine).items():
            found = list(unbound(queries.load(engine)[name], tables))
            assert scope is Scope.ACROSS or not found, f"{name} [{engine}] does not bind the tenant of {found}"


def test_query_without_tenant_touches_no_table_that_has_tenants(tables: frozenset[str]) -> None:
    for engine in ENGINES:
        without = [name for name, scope in queries.scopes(engine).items() if scope is Scope.NONE]
        assert "secrets_get" in without
        for name in without:
            touched = {match["table"] for match in NAMED.finditer(queries.load(engine)[name])}
            assert not touched & tables, name


def test_query_that_touches_no_table_with_tenants_says_so(tables: frozenset[str]) -> None:
    """Its first argument would be taken for a tenant."""
    for engine in ENGINES:
        for name, scope in queries.scopes(engine).items():
            touched = {match["table"] for match in NAMED.finditer(queries.load(engine)[name])}
            # A lock by a name begins with the tenant as well.
            assert touched & tables or scope is Scope.NONE or name == "requests_hold", name


def test_query_across_tenants_must_be_one(tables: frozenset[str]) -> None:
    """A mark that is not needed would let the query see more than it asks for."""
    for engine in ENGINES:
        for name, scope in queries.scopes(engine).items():
            # Each row of these names its tenant, but one call of them is about many.
            if scope is Scope.ACROSS and name not in ("runs_claim", "data_keys_rewrap"):
                assert list(unbound(queries.load(engine)[name], tables)), name


def test_check_notices_each_condition_that_is_taken_away(tables: frozenset[str]) -> None:
    taken = 0
    for engine in ENGINES:
        for name, scope in queries.scopes(engine).items():
            statement = queries.load(engine)[name]
            for match in CONDITION.finditer(statement) if scope is Scope.TENANT else ():
                for instead in ("TRUE", f"({match[0]} OR TRUE)", match[0].replace("$1", "$2") + " OR TRUE"):
                    mutated = statement[: match.start()] + instead + statement[match.end() :]
                    assert list(unbound(mutated, tables)), f"{name} [{engine}]: {mutated}"
                    taken += 1
    assert taken > 300


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT body FROM runs",
        "SELECT body FROM runs WHERE tenant = $2",
        "SELECT body FROM runs WHERE tenant = $1 OR id = $2",
        "SELECT body FROM runs r WHERE r.tenant = r.tenant",
        "SELECT tenant = $1 FROM runs",
        "SELECT body FROM runs, threads WHERE tenant = $1",
        "SELECT id FROM runs UNION SELECT id FROM threads WHERE tenant = $1",
        "SELECT r.body FROM runs r JOIN threads t ON t.id = r.thread_id WHERE t.tenant = $1",
        "SELECT r.body FROM runs r LEFT JOIN threads t ON t.tenant = r.tenant AND r.tenant = $1",
        "SELECT 1 WHERE EXISTS (SELECT 1 FROM runs WHERE id = $2)",
        "SELECT r.body FROM runs r WHERE r.tenant = $1 AND r.id IN (SELECT t.id FROM threads t)",
        "UPDATE runs SET tenant = $1",
        "DELETE FROM runs WHERE id = $1",
        "INSERT INTO runs (id, tenant) VALUES ($1, $2)",
        "INSERT INTO runs (tenant, id) VALUES ($2, $1)",
        "INSERT INTO runs (tenant, id) SELECT t.id, t.tenant FROM threads t WHERE t.tenant = $1",
        "INSERT INTO runs (tenant, id) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET id = $2",
    ],
)
def test_check_notices_a_query_that_is_not_bound(tables: frozenset[str], statement: str) -> None:
    assert list(unbound(statement, tables))


def test_scope_is_read_from_the_header() -> None:
    text = (
        "-- name: a\n-- One.\nSELECT 1;\n\n-- name: b\n-- Two.\n-- across tenants: for all.\nSELECT 2;\n\n"
        "-- name: c\n-- Three.\n-- without tenant: of none.\nSELECT 3;\n\n"
        "-- name: d\n-- Without a reason.\n-- across tenants:\nSELECT 4;\n"
    )
    scopes = {"a": Scope.TENANT, "b": Scope.ACROSS, "c": Scope.NONE, "d": Scope.TENANT}
    assert dict(queries.scopes("postgres", text)) == scopes


def unbound(statement: str, tables: frozenset[str]) -> Iterator[str]:
    """The tables that have tenants and that the statement binds to none."""
    text, _, conflict = re.sub(r"/\*.*?\*/", "", statement).partition("ON CONFLICT")
    into = re.match(r"INSERT INTO (\w+) \((\w+),[^)]*\)\s+(?:VALUES \(|SELECT )([^,]+),", text)
    if into and into[1] in tables:
        elsewhere = conflict and not conflict.startswith(" (tenant, ")
        if into[2] != "tenant" or into[3] not in ("$1", "tenant") or elsewhere:
            yield into[1]
    yield from _unbound_in(re.sub(r"^INSERT INTO \w+ \([^)]*\)", "", text), tables, frozenset({"$1"}))


def _unbound_in(text: str, tables: frozenset[str], outer: frozenset[str]) -> Iterator[str]:
    """The same of one query of a statement, in which these sides of conditions are bound already."""
    inner, flat = _apart(text)
    if TOO_MUCH.search(flat):
        yield flat
    found = {f"{match['alias'] or match['table']}": match["table"] for match in NAMED.finditer(flat)}
    # A row of a table without an alias is spoken of as `tenant`; there is never more than one such table.
    sides = {alias: "tenant" if alias == table else f"{alias}.tenant" for alias, table in found.items()}
    bound = {side for side in outer if side not in sides.values()}
    while new := {side for side in _bound_by(flat, bound) if side not in bound}:
        bound |= new
    for alias, table in found.items():
        if table in tables and sides[alias] not in bound:
            yield table
    for query in inner:
        yield from _unbound_in(query, tables, frozenset(bound))


def _bound_by(flat: str, bound: set[str]) -> Iterator[str]:
    for clause in CLAUSE.split(flat)[1:]:
        if re.search(r"\bOR\b", clause):
            continue
        joined = NAMED.search(clause)
        for match in CONDITION.finditer(clause):
            for one, other in (match.group("left", "right"), match.group("right", "left")):
                # The other side of a LEFT JOIN stays, whatever its ON says.
                is_joined = joined is not None and one == f"{joined['alias']}.tenant"
                if other in bound and (is_joined or not clause.startswith("LEFT")):
                    yield one


def _apart(text: str) -> tuple[list[str], str]:
    """The queries in parentheses, and the text without anything in parentheses."""
    inner: list[tuple[int, str]] = []
    flat, opened = [], [0]
    for place, sign in enumerate(text):
        if sign == "(":
            opened.append(place + 1)
        elif sign == ")":
            start = opened.pop()
            if re.match(r"\s*(?:SELECT|WITH)\b", text[start:]):
                # Its own inner queries are looked at with it.
                inner = [query for query in inner if query[0] < start] + [(start, text[start:place])]
        elif len(opened) == 1:
            flat.append(sign)
    return [query for _, query in inner], "".join(flat)
