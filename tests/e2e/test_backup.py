"""A database is backed up while runs are under way, and a server goes on with what was restored; the commands are those
of docs/backup.md."""

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message as ProtoMessage

from command import SECONDS, environment
from command import run as command
from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.run_service_pb2 import BusyPolicy
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import DeleteThreadRequest, GetThreadRequest
from famulus.v1.usage_service_pb2 import QueryUsageRequest, UsageRow
from famulus.v1.usage_service_pb2_grpc import UsageServiceStub
from famulus.v1.user_data_service_pb2 import DeleteUserDataRequest
from famulus.v1.user_data_service_pb2_grpc import UserDataServiceStub
from famulus_server.embedded.upstream import Scene, ScriptedUpstream, ToolCall
from postgres import PostgresMissing, client_tools, create_database, drop_database
from run_stage import TOOLS, Stage, open_stage, refused, stage_settings
from validator import validate_stream

pytestmark = pytest.mark.usefixtures("unhurried")

PAGE = (Path(__file__).parents[2] / "docs/backup.md").read_text(encoding="utf-8")
TIME_CALLED = Scene(times=1, tool_calls=(ToolCall(name="get_time"),))
HELD = Scene(times=1, deltas=6, hold_after=3)
# What the database says of a lost server's leases is believed, also after a restore.
SHORT_LEASE = {"lease_seconds": 1.0}


@dataclass(frozen=True)
class Database:
    """A database that is used, the one it is restored to, and how the page says to back it up and restore it."""

    used: dict[str, Any]
    restored: dict[str, Any]
    copy: Callable[[], None]


def block(language: str, word: str) -> str:
    """The one block of the page in a language that has a word."""
    [found] = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if word in text]
    return str(found)


def say(*arguments: str, **variables: str) -> str:
    """What a program prints; it must have nothing to complain of."""
    ran = subprocess.run(
        arguments,
        check=False,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def do(commands: str, *, tools: Path, **variables: str) -> None:
    """Executes a block of the page, with the programs of this folder first."""
    say("bash", "-euc", commands, PATH=f"{tools}:{os.environ['PATH']}", **variables)


@pytest.fixture(params=["postgresql", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    used, restored = tmp_path / "used", tmp_path / "restored"
    if request.param == "sqlite":
        python = Path(sys.executable).parent

        def copy() -> None:
            do(block("sh", "VACUUM INTO"), tools=python, DATA=str(used), BACKUP=str(tmp_path))
            do(block("sh", "famulus.db-wal"), tools=python, DATA=str(restored), BACKUP=str(tmp_path))

        restored.mkdir()
        yield Database({"folder": used}, {"folder": restored}, copy)
        return
    try:
        tools = client_tools()
    except PostgresMissing as missing:
        pytest.skip(f"backups of PostgreSQL were NOT tested: {missing}")
    server_url: str = request.getfixturevalue("postgres_url")
    url: str = request.getfixturevalue("empty_database")
    new_url = create_database(server_url)

    def dump() -> None:
        do(block("sh", "pg_dump"), tools=tools, URL=url, BACKUP=str(tmp_path))
        do(block("sh", "pg_restore"), tools=tools, NEW_URL=new_url, BACKUP=str(tmp_path))

    yield Database({"folder": used, "database_url": url}, {"folder": restored, "database_url": new_url}, dump)
    drop_database(server_url, new_url)


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as opened:
        yield opened


def settings_of(given: dict[str, Any], upstream: ScriptedUpstream) -> Any:
    return stage_settings(base_url=upstream.base_url, worker=SHORT_LEASE, **given)


async def usage_of(stage: Stage, user_id: str) -> UsageRow:
    """What was used for a user."""
    async with grpc.aio.insecure_channel(stage.address) as channel:
        [row] = (await UsageServiceStub(channel).QueryUsage(QueryUsageRequest(user_id=user_id))).rows
        return row


async def shown(stage: Stage, run: Run) -> list[ProtoMessage]:
    """All that the API shows of a run that has ended."""
    thread = (await stage.threads.GetThread(GetThreadRequest(thread_id=run.thread_id))).thread
    return [thread, *await stage.messages(run.thread_id), await stage.get(run.id), *await stage.steps(run.id)]


def audit_command(database: dict[str, Any], *arguments: str) -> str:
    given = {"FAMULUS_SERVER_DATA_DIR": str(database["folder"]), "FAMULUS_STORE_URL": database.get("database_url", "")}
    ran = command("audit", *arguments, env=environment(given))
    assert ran.returncode == 0, ran.stderr + ran.stdout
    return ran.stdout


async def test_restored_server_has_what_ended_before_the_backup_and_ends_what_was_under_way(
    database: Database, upstream: ScriptedUpstream
) -> None:
    async with open_stage(settings_of(database.used, upstream), upstream) as stage:
        stage.play(Scene(times=1, deltas=4), TIME_CALLED, HELD)
        ended = (await stage.play_out(new_thread=Thread(user_id="ann", title="before"))).run
        assistant = await stage.assistant(tools=TOOLS)
        waiting = await stage.wait((await stage.start(assistant_id=assistant.id)).id)
        under_way = await stage.start()
        seen = await stage.until_text(under_way.id, " w3")
        in_line = await stage.start(
            "and then?", thread_id=under_way.thread_id, busy_policy=BusyPolicy.BUSY_POLICY_ENQUEUE
        )
        before, used = await shown(stage, ended), await usage_of(stage, "ann")
        assert (used.ended_runs, used.usage) == (1, ended.usage)
        database.copy()
        late = await stage.thread("after the backup")
    async with open_stage(settings_of(database.restored, upstream), upstream, [Scene(deltas=4)]) as stage:
        assert await shown(stage, ended) == before
        assert await usage_of(stage, "ann") == used
        lost = await refused(stage.threads.GetThread(GetThreadRequest(thread_id=late.id)))
        assert lost.reason == "RESOURCE_NOT_FOUND"
        [told] = await stage.watch(ended.id)
        assert told.snapshot.run == await stage.get(ended.id)
        # Redis knows nothing of it, and its worker is gone: whoever watched goes on where he was.
        resumed = await stage.watch(under_way.id, seen[-1].sequence)
        assert resumed[0].HasField("snapshot") or resumed[0].HasField("attempt_started")
        validate_stream(resumed, seen[-1].sequence)
        run = await stage.get(under_way.id)
        assert (run.state, run.attempt) == (RunState.RUN_STATE_COMPLETED, 2)
        assert (await stage.wait(in_line.id)).state == RunState.RUN_STATE_COMPLETED
        assert await stage.texts(run.thread_id) == ["hello", "w1 w2 w3 w4", "and then?", "w1 w2 w3 w4"]
        [call] = waiting.required_action.tool_calls
        await stage.submit(waiting.id, (call.id, "noon"))
        assert (await stage.wait(waiting.id)).state == RunState.RUN_STATE_COMPLETED
    assert "are as they were written" in audit_command(database.restored, "verify")


async def test_what_was_deleted_after_the_backup_is_found_by_the_shipped_audit_log(
    database: Database, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async def delete(stage: Stage, user_id: str) -> None:
        async with grpc.aio.insecure_channel(stage.address) as channel:
            await UserDataServiceStub(channel).DeleteUserData(DeleteUserDataRequest(user_id=user_id))

    # Once it has stopped, its calls are in the log.
    async with open_stage(settings_of(database.used, upstream), upstream) as stage:
        for user_id in ("ann", "bob", "early"):
            await stage.thread("hello", user_id=user_id)
        doomed = await stage.thread("hello")
        await delete(stage, "early")
    async with open_stage(settings_of(database.used, upstream), upstream) as stage:
        # He came back before the backup: nothing of this is to go.
        await stage.thread("hello again", user_id="early")
        database.copy()
        await delete(stage, "ann")
        await delete(stage, "nobody")
        await stage.threads.DeleteThread(DeleteThreadRequest(thread_id=doomed.id))
    shipped = tmp_path / "shipped.jsonl"
    shipped.write_text(audit_command(database.used, "show"))
    program = tmp_path / "deleted_since.py"
    program.write_text(block("python", "shipped"))
    url = database.restored.get("database_url") or str(database.restored["folder"] / "famulus.db")
    told = say(sys.executable, "-W", "error", str(program), url, str(shipped))
    assert [json.loads(line) for line in told.splitlines()] == [
        {"tenant": "default", "method": "UserDataService.DeleteUserData", "user_id": "ann"},
        {"tenant": "default", "method": "ThreadService.DeleteThread", "thread_id": doomed.id},
    ]
