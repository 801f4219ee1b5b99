"""Which calls the audit log of a whole server has, and what of them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from click.testing import CliRunner, Result
from google.protobuf.field_mask_pb2 import FieldMask

from famulus.v1 import error_reason_pb2 as reasons
from famulus.v1.run_service_pb2 import (
    CancelRunRequest,
    CreateRunRequest,
    GetRunRequest,
    StreamRunRequest,
    StreamRunResponse,
)
from famulus.v1.run_service_pb2_grpc import RunServiceServicer, RunServiceStub, add_RunServiceServicer_to_server
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import (
    DeleteThreadRequest,
    GetThreadRequest,
    ListThreadsRequest,
    UpdateThreadRequest,
)
from famulus_server.api.access_log import AccessLog
from famulus_server.api.audit import Audit, ids_in, may_change
from famulus_server.api.calls import Call, Caller, Method, Proceed, current_call
from famulus_server.api.errors import Errors
from famulus_server.api.pipeline import Pipeline
from famulus_server.cli import main
from famulus_server.config import AuditSettings, Settings
from famulus_server.embedded.upstream import Scene, ScriptedUpstream
from famulus_server.engine.audit import AuditTrail
from famulus_server.engine.clock import SystemClock, TimeOrderedIds
from famulus_server.engine.pseudonyms import Pseudonyms
from famulus_server.errors import FamulusError, PermissionDenied, Unauthenticated, Unavailable
from famulus_server.store.sqlite import SqliteStore
from run_stage import Stage, open_stage, stage_settings
from serving import refusal

MARK = "xyzzy-content"


def settings_in(folder: Path, upstream: ScriptedUpstream, calls: str = "changes") -> Settings:
    made = stage_settings(folder, upstream.base_url)
    return msgspec.structs.replace(made, audit=AuditSettings(calls=calls))  # type: ignore[arg-type]


def audit(folder: Path, *arguments: str) -> Result:
    return CliRunner(env={"FAMULUS_CONFIG": None}).invoke(main, ["audit", *arguments, "--data-dir", str(folder)])


def shown(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    result = audit(folder, "show", *arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@asynccontextmanager
async def server(folder: Path, calls: str = "changes") -> AsyncIterator[Stage]:
    async with (
        ScriptedUpstream() as upstream,
        open_stage(settings_in(folder, upstream, calls), upstream, [Scene(text=f"{MARK} answer")]) as stage,
    ):
        yield stage


# The command has an event loop of its own, so what it prints is looked at in tests without one.
@pytest.fixture(scope="module")
def conversation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The data of a server that was used and stopped, and the ids of what was made."""
    import asyncio

    folder = tmp_path_factory.mktemp("audited")

    async def talk() -> dict[str, str]:
        async with server(folder) as stage:
            thread = await stage.thread(f"{MARK} question", user_id=f"{MARK} ann", title=f"{MARK} title")
            changed = Thread(id=thread.id, title=f"{MARK} other")
            update = UpdateThreadRequest(thread=changed, update_mask=FieldMask(paths=["title"]))
            await stage.threads.UpdateThread(update, metadata=(("x-request-id", "req-of-mine"),))
            await stage.threads.GetThread(GetThreadRequest(thread_id=thread.id))
            await stage.threads.ListThreads(ListThreadsRequest())
            events = await stage.stream(await stage.wanted(f"{MARK} hello", thread_id=thread.id))
            run = events[0].run_state_changed.run
            await stage.watch(run.id)
            await stage.cancel(run.id)
            with pytest.raises(grpc.aio.AioRpcError):
                await stage.threads.DeleteThread(DeleteThreadRequest(thread_id=f"' or 1=1 {'y' * 500}"))
            with pytest.raises(grpc.aio.AioRpcError):
                await stage.runs.CancelRun(CancelRunRequest(run_id="run_of_nobody"))
        return {"thread": thread.id, "run": run.id}

    return folder, asyncio.run(talk())


def test_changes_are_noted_with_ids_and_outcome_and_reads_are_not(conversation: tuple[Path, dict[str, str]]) -> None:
    folder, ids = conversation
    rows = shown(folder)
    thread, run = ids["thread"], ids["run"]
    assert [(row["method"], row["code"], row["reason"]) for row in rows] == [
        ("ThreadService.CreateThread", "OK", ""),
        ("ThreadService.UpdateThread", "OK", ""),
        ("AssistantService.CreateAssistant", "OK", ""),
        ("RunService.StreamRun", "OK", ""),
        ("RunService.CancelRun", "OK", ""),
        ("ThreadService.DeleteThread", "INVALID_ARGUMENT", "INVALID_FIELD"),
        ("RunService.CancelRun", "NOT_FOUND", "RESOURCE_NOT_FOUND"),
    ]
    created, updated, _, streamed, cancelled, deleted, _ = (row["resources"] for row in rows)
    assert created["thread_id"] == updated["thread_id"] == streamed["thread_id"] == thread
    assert streamed["run_id"] == cancelled["run_id"] == run
    assert deleted == {"thread_id": f"' or 1=1 {'y' * 247}"}
    assert rows[1]["request_id"] == "req-of-mine"
    assert {row["tenant"] for row in rows} == {"default"}
    assert all(row["peer"].startswith("ipv4:127.0.0.1:") for row in rows)


def test_neither_content_nor_names_of_users_get_into_the_log(conversation: tuple[Path, dict[str, str]]) -> None:
    folder, _ = conversation
    assert MARK not in json.dumps(shown(folder))
    mine = shown(folder, "--tenant", "default", "--user", f"{MARK} ann")
    assert "ThreadService.CreateThread" in [row["method"] for row in mine]
    assert shown(folder, "--tenant", "default", "--user", "bob") == []
    assert audit(folder, "show", "--user", "bob").exit_code == 2


def test_rows_are_chosen_by_tenant_time_method_and_number(conversation: tuple[Path, dict[str, str]]) -> None:
    folder, _ = conversation
    whole = shown(folder)
    assert shown(folder, "--tenant", "default") == whole
    assert shown(folder, "--tenant", "other") == []
    assert shown(folder, "--method", "StreamRun") == shown(folder, "--method", "RunService.StreamRun") == [whole[3]]
    assert shown(folder, "--since", "2026-01-01") == whole
    assert shown(folder, "--since", "2999-01-01") == []
    assert shown(folder, "--after", "5") == whole[5:]


def test_log_is_verified_and_its_head_can_be_noted(conversation: tuple[Path, dict[str, str]]) -> None:
    folder, _ = conversation
    noted = audit(folder, "head").stdout.strip()
    checked = audit(folder, "verify", "--head", noted)
    assert checked.exit_code == 0
    assert checked.stdout.splitlines() == ["7 rows are as they were written", noted]
    assert checked.stderr == "checked up to 7\n"
    wrong = audit(folder, "verify", "--head", f"9{noted[1:]}")
    assert (wrong.exit_code, wrong.stdout) == (1, "broken at 8: the row is missing: the head was noted at 9\n")
    assert audit(folder, "verify", "--head", "nonsense").exit_code == 2


def test_there_is_nothing_to_audit_where_there_is_no_database(tmp_path: Path) -> None:
    assert audit(tmp_path, "verify").exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("calls", "methods"), [("all", ["CreateThread", "GetThread", "WatchRun"]), ("off", [])])
async def test_settings_say_which_calls_are_noted(tmp_path: Path, calls: str, methods: list[str]) -> None:
    async with server(tmp_path, calls) as stage:
        thread = await stage.thread("hello")
        await stage.threads.GetThread(GetThreadRequest(thread_id=thread.id))
        with pytest.raises(grpc.aio.AioRpcError):
            await stage.watch("nobody's")
    store = SqliteStore(path=tmp_path / "famulus.db", clock=SystemClock())
    await store.open()
    rows = await store.read(lambda tx: tx.audit.page(after=0, limit=10))
    await store.close()
    assert [row.method.rpartition(".")[2] for row in rows] == methods


class Nobody:
    """A layer that refuses, as one that knows callers would; streams that have begun, where `late`."""

    def __init__(self) -> None:
        self.caller: Caller | None = None
        self.unknown: FamulusError = Unauthenticated(reasons.ERROR_REASON_UNAUTHENTICATED, "who are you?")
        self.late = False

    def around(self, _: Method, proceed: Proceed) -> Proceed:
        async def refuse(call: Call) -> None:
            call.caller = self.caller
            if self.late:
                await proceed(call)
                raise Unauthenticated(reasons.ERROR_REASON_CREDENTIALS_EXPIRED, "you were here too long")
            if self.caller is None:
                raise self.unknown
            raise PermissionDenied(reasons.ERROR_REASON_PERMISSION_DENIED, "you may not")

        return refuse


class OneResponse(RunServiceServicer):
    """Answers StreamRun."""

    async def StreamRun(self, request: StreamRunRequest, _: object) -> AsyncIterator[StreamRunResponse]:  # noqa: N802
        current_call().made["run_id"] = "run_1"
        yield StreamRunResponse()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """Away until it is opened."""
    made = SqliteStore(path=tmp_path / "famulus.db", clock=SystemClock())
    yield made
    await made.close()


@asynccontextmanager
async def refusing(trail: AuditTrail) -> AsyncIterator[tuple[Any, Nobody]]:
    """A stub on a server with the audit and a layer that refuses."""
    ids = TimeOrderedIds(clock=SystemClock())
    layer = Nobody()
    noting = Audit(calls="changes", trail=trail, pseudonyms=Pseudonyms(key=b"k"), clock=SystemClock(), ids=ids)
    made = grpc.aio.server(interceptors=[Pipeline((AccessLog(ids=ids), noting, Errors(ids=ids), layer))])
    add_RunServiceServicer_to_server(OneResponse(), made)  # type: ignore[abstract]
    port = made.add_insecure_port("127.0.0.1:0")
    await made.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield RunServiceStub(channel), layer
    await made.stop(None)


def trail_on(store: SqliteStore, most: int) -> AuditTrail:
    clock = SystemClock()
    return AuditTrail(store=store, clock=clock, ids=TimeOrderedIds(clock=clock), most=most)


async def code_of(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    told = refusal(caught.value)
    return told.code.name, told.reason


async def test_whoever_is_refused_for_who_he_is_is_noted_also_where_he_only_reads(store: SqliteStore) -> None:
    await store.open()
    trail = trail_on(store, 100)
    trail.open()
    async with refusing(trail) as (stub, layer):
        await code_of(stub.GetRun(GetRunRequest(run_id="run_1")))
        layer.caller = Caller(tenant="acme", name="billing")
        await code_of(stub.GetRun(GetRunRequest(run_id="run_1")))
    await trail.close()
    rows = await store.read(lambda tx: tx.audit.page(after=0, limit=10))
    stranger, known = (json.loads(row.body) for row in rows)
    assert (stranger["tenant"], stranger["actor"], stranger["code"]) == ("", "", "UNAUTHENTICATED")
    assert (known["tenant"], known["actor"], known["reason"]) == ("acme", "billing", "PERMISSION_DENIED")


async def test_strangers_fill_no_log_however_their_calls_end(store: SqliteStore) -> None:
    await store.open()
    trail = trail_on(store, 1_000)
    trail.open()
    async with refusing(trail) as (stub, layer):
        layer.unknown = Unavailable(reasons.ERROR_REASON_SERVER_OVERLOADED, "your issuer's keys are not here")
        for _ in range(120):
            assert await code_of(stub.CreateRun(CreateRunRequest())) == ("UNAVAILABLE", "SERVER_OVERLOADED")
    await trail.close()
    rows = await store.read(lambda tx: tx.audit.page(after=0, limit=200))
    assert len(rows) == 101
    assert sum(json.loads(row.body)["left_out"] for row in rows) == 20


async def test_stream_is_noted_when_it_begins_and_again_where_its_caller_is_turned_away(store: SqliteStore) -> None:
    await store.open()
    trail = trail_on(store, 100)
    trail.open()
    async with refusing(trail) as (stub, layer):
        layer.caller, layer.late = Caller(tenant="a\0b\ud800", name="billing"), True
        stream = stub.StreamRun(StreamRunRequest())
        await stream.read()
        assert await code_of(stream.read()) == ("UNAUTHENTICATED", "CREDENTIALS_EXPIRED")
    await trail.close()
    rows = await store.read(lambda tx: tx.audit.page(after=0, limit=10))
    begun, ended = (json.loads(row.body) for row in rows)
    assert (begun["code"], begun["resources"]) == ("OK", {"run_id": "run_1"})
    assert (ended["code"], ended["reason"]) == ("UNAUTHENTICATED", "CREDENTIALS_EXPIRED")
    # Nobody should be called so, but a row that cannot be stored would hold up all others.
    assert begun["tenant"] == "a?b?"


async def test_changes_are_refused_while_they_cannot_be_noted_and_reads_are_not(store: SqliteStore) -> None:
    trail = trail_on(store, 1)
    async with refusing(trail) as (stub, _):
        assert await code_of(stub.CreateRun(CreateRunRequest())) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
        for change in (stub.CreateRun(CreateRunRequest()), stub.CancelRun(CancelRunRequest())):
            assert await code_of(change) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
        # As far as the layers behind it go.
        assert (await code_of(stub.GetRun(GetRunRequest())))[0] == "UNAUTHENTICATED"
        await store.open()
        trail.open()
        await trail.close()
        assert (await code_of(stub.CreateRun(CreateRunRequest())))[0] == "UNAUTHENTICATED"


def test_ids_are_taken_from_declared_fields_only() -> None:
    request = CreateRunRequest(
        request_id="again", assistant_id="asst_1", new_thread=Thread(id="thread_1", user_id="ann", title="t")
    )
    assert dict(ids_in(request)) == {"assistant_id": "asst_1", "new_thread_id": "thread_1", "user_id": "ann"}


@pytest.mark.parametrize(
    ("method", "changes"),
    [("GetRun", False), ("ListRunSteps", False), ("WatchRun", False), ("WaitRun", False), ("QueryUsage", False)]
    + [(name, True) for name in ("CreateRun", "EnsureAssistant", "StreamRun", "ExportUserData", "ServeTools")],
)
def test_methods_that_only_read_are_told_by_their_names(method: str, changes: bool) -> None:
    assert may_change(f"/famulus.v1.SomeService/{method}") is changes
