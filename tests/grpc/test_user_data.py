"""Deletion and export of a user's data, on the whole server."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from redis.asyncio import Redis

from famulus.v1.message_pb2 import Message
from famulus.v1.run_pb2 import RatingVerdict, RunRating, RunState
from famulus.v1.run_service_pb2 import BusyPolicy, RateRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import (
    DeleteThreadRequest,
    ForkThreadRequest,
    GetThreadRequest,
    ListThreadsRequest,
    UpdateMessageRequest,
)
from famulus.v1.usage_service_pb2 import QueryUsageRequest, UsageDimension
from famulus.v1.usage_service_pb2_grpc import UsageServiceStub
from famulus.v1.user_data_service_pb2 import (
    DeleteUserDataRequest,
    DeletionReceipt,
    DeletionState,
    ExportUserDataRequest,
    GetDeletionReceiptRequest,
)
from famulus.v1.user_data_service_pb2_grpc import UserDataServiceStub
from famulus_server.embedded.upstream import Match, Scene, ScriptedUpstream, ToolCall
from famulus_server.engine import lifecycle
from famulus_server.engine.policy import Budget, Budgets, CallerQuotas, ModelPrice, Policy, Quota, Tier
from killable_server import open_killable
from postgres import query
from run_stage import TOOLS, Stage, open_stage, refused, stage_settings
from serving import refusal

if TYPE_CHECKING:
    from famulus.v1.user_data_service_pb2_grpc import UserDataServiceAsyncStub

MARK = "Xq7marker"
RACES = 20
KILLED_THREADS = 300
USER = f"ann-{MARK}"
WEATHER = ToolCall(name="get_weather", arguments={"city": f"city {MARK}"})
PRICED = Policy(
    tiers={
        "default": Tier(
            limits=CallerQuotas(user=Quota(requests_per_minute=1_000, tokens_per_minute=10_000_000)),
            budgets=Budgets(user=Budget(amount=1_000_000.0)),
        )
    },
    prices={"scripted": ModelPrice(input=1.0, output=1.0)},
)


@asynccontextmanager
async def user_data_on(stage: Stage) -> AsyncIterator["UserDataServiceAsyncStub"]:
    async with grpc.aio.insecure_channel(stage.address) as channel:
        yield UserDataServiceStub(channel)


@asynccontextmanager
async def opened(folder: Path, **settings: Any) -> AsyncIterator[tuple[Stage, "UserDataServiceAsyncStub"]]:
    async with (
        ScriptedUpstream() as upstream,
        open_stage(stage_settings(folder, upstream.base_url, **settings), upstream) as stage,
        user_data_on(stage) as user_data,
    ):
        yield stage, user_data


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("empty_database")) if request.param == "postgres" else ""


async def delete(user_data: "UserDataServiceAsyncStub", user_id: str = USER, request_id: str = "") -> DeletionReceipt:
    request = DeleteUserDataRequest(user_id=user_id, request_id=request_id)
    return (await user_data.DeleteUserData(request)).receipt


async def exported(user_data: "UserDataServiceAsyncStub", user_id: str = USER) -> list[dict[str, Any]]:
    call = user_data.ExportUserData(ExportUserDataRequest(user_id=user_id))
    return [json.loads(line) async for response in call for line in response.json_lines]


async def fork(stage: Stage, thread_id: str, user_id: str) -> Thread:
    request = ForkThreadRequest(thread_id=thread_id, thread=Thread(user_id=user_id))
    return (await stage.threads.ForkThread(request)).thread


async def leave_marks(stage: Stage) -> Thread:
    """Has the user say something everywhere; returns a fork of somebody else."""
    marks = {f"key {MARK}": f"value {MARK}"}
    stage.play(
        Scene(match=Match(tool_outputs=True), text=f"So: {MARK} ", quote_outputs=True, reasoning=f"hm {MARK}"),
        Scene(match=Match(user_contains="call"), tool_calls=(WEATHER,)),
        Scene(match=Match(user_contains="hold"), text=(f"never {MARK} ",) * 6, hold_after=3),
        Scene(text=f"you said {MARK}"),
    )
    assistant = await stage.assistant(tools=TOOLS)
    own: dict[str, Any] = {"user_id": USER, "title": f"about {MARK}", "metadata": marks}
    spoken = await stage.thread(f"first {MARK}", **own)
    asking: dict[str, Any] = {"assistant_id": assistant.id, "metadata": marks}
    asking |= {"additional_instructions": f"be {MARK}", "instructions": f"you are {MARK}"}
    waiting = await stage.wait((await stage.start(f"call {MARK}", thread_id=spoken.id, **asking)).id)
    await stage.submit(waiting.id, (waiting.required_action.tool_calls[0].id, f"sunny {MARK}"))
    done = await stage.wait(waiting.id)
    assert done.state == RunState.RUN_STATE_COMPLETED
    rating = RunRating(verdict=RatingVerdict.RATING_VERDICT_GOOD, comment=f"fine {MARK}")
    await stage.runs.RateRun(RateRunRequest(run_id=done.id, rating=rating))
    foreign = await fork(stage, spoken.id, "bob")
    [first, *_] = await stage.messages(foreign.id)
    change = Message(id=first.id, metadata={"mine": "bob"})
    await stage.threads.UpdateMessage(UpdateMessageRequest(thread_id=foreign.id, message=change))
    buried = await stage.thread(f"gone {MARK}", **own)
    await fork(stage, buried.id, "bob")
    await stage.threads.DeleteThread(DeleteThreadRequest(thread_id=buried.id))
    held = await stage.start(f"hold {MARK}", new_thread=Thread(**own), assistant_id=assistant.id)
    await stage.until(held.id, "text_delta")
    await stage.start(f"in line {MARK}", thread_id=held.thread_id, busy_policy=BusyPolicy.BUSY_POLICY_ENQUEUE, **asking)
    return foreign


def marked(folder: Path) -> set[str]:
    """The files that have the mark."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and MARK.encode() in path.read_bytes()
    }


async def values_of(redis: Redis) -> AsyncIterator[bytes]:
    """Every key of Redis, and what is in it."""
    async for key in redis.scan_iter():
        yield key
        match await redis.type(key):
            case b"string":
                yield repr(await redis.get(key)).encode()
            case b"stream":
                yield repr(await redis.xrange(key)).encode()
            case b"zset":
                yield repr(await redis.zrange(key, 0, -1)).encode()


def verify(receipt: DeletionReceipt) -> dict[str, Any]:
    """What a receipt says, for somebody who has nothing but the receipt."""
    key = Ed25519PublicKey.from_public_bytes(receipt.public_key)
    key.verify(receipt.signature, receipt.statement_json.encode())
    told: dict[str, Any] = json.loads(receipt.statement_json)
    return told


async def marked_tables(database_url: str) -> list[str]:
    tables = await query(database_url, "SELECT string_agg(tablename, ',') FROM pg_tables WHERE schemaname = 'public'")
    counted = f"SELECT count(*) FROM {{}} AS t WHERE t::text LIKE '%{MARK}%' OR t::text LIKE '%{MARK.encode().hex()}%'"
    return [table for table in tables.split(",") if await query(database_url, counted.format(table))]


async def test_nothing_of_a_user_is_left_anywhere(
    tmp_path: Path, database_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with opened(tmp_path, database_url=database_url, policy=PRICED) as (stage, user_data):
        async with Redis.from_url(f"unix://{tmp_path}/valkey/valkey.sock") as redis:
            foreign = await leave_marks(stage)
            assert any("valkey/appendonlydir" in name for name in marked(tmp_path))
            assert [value async for value in values_of(redis) if MARK.encode() in value]
            if database_url:
                assert {"threads", "messages", "runs", "run_usage"} <= set(await marked_tables(database_url))

            receipt = await delete(user_data)
            assert receipt.state == DeletionState.DELETION_STATE_COMPLETED
            assert (receipt.counts.threads, receipt.counts.runs) == (3, 3)
            # What is said in line is no message yet.
            assert receipt.counts.messages == 5
            assert (await stage.request_ended(3)).outcome == "disconnected"
            assert [value async for value in values_of(redis) if MARK.encode() in value] == []
        assert marked(tmp_path) == set()
        if database_url:
            assert await marked_tables(database_url) == []
        shown = (await stage.threads.GetThread(GetThreadRequest(thread_id=foreign.id))).thread
        assert (shown.user_id, shown.title, dict(shown.metadata)) == ("bob", "", {})
        assert await stage.texts(foreign.id) == []
        # The fork goes on.
        stage.play(Scene(text="hello bob"))
        assert (await stage.play_out("me", thread_id=foreign.id)).text == "hello bob"
    assert MARK not in "".join(capfd.readouterr())
    assert marked(tmp_path) == set()


async def test_receipt_is_verified_by_what_stands_in_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as (stage, user_data):
        await stage.thread("a", "b", user_id=USER)
        receipt = await delete(user_data)
        told = verify(receipt)
        assert (told["receipt_id"], told["tenant"], told["user_hmac"]) == (receipt.id, "default", receipt.user_hmac)
        assert told["counts"] == {"threads": 1, "messages": 2, "runs": 0, "usage_records": 0}
        assert told["complete_time"] == receipt.complete_time.ToJsonString()
        assert receipt.create_time.ToDatetime() <= receipt.complete_time.ToDatetime()
        read = await user_data.GetDeletionReceipt(GetDeletionReceiptRequest(receipt_id=receipt.id))
        assert read.receipt == receipt
        again = await delete(user_data)
        assert (again.user_hmac, again.key_id) == (receipt.user_hmac, receipt.key_id)
        assert (await delete(user_data, "carl")).user_hmac != receipt.user_hmac
    receipt.statement_json = receipt.statement_json.replace('"messages":2', '"messages":3')
    with pytest.raises(InvalidSignature):
        verify(receipt)


async def test_request_id_names_one_deletion_and_each_other_call_is_a_new_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as (stage, user_data):
        first = await delete(user_data, request_id="r1")
        kept = await stage.thread("a", user_id=USER)
        assert await delete(user_data, request_id="r1") == first
        assert (await stage.threads.GetThread(GetThreadRequest(thread_id=kept.id))).thread.id == kept.id
        second = await delete(user_data)
        assert second.id != first.id
        assert second.counts.threads == 1
        told = await refused(user_data.DeleteUserData(DeleteUserDataRequest(user_id="bob", request_id="r1")))
        assert told.reason == "REQUEST_ID_REUSED"


async def test_other_users_keep_what_is_theirs(tmp_path: Path) -> None:
    async with opened(tmp_path) as (stage, user_data):
        theirs = await stage.thread("b1", "b2", user_id="bob", title="bob's")
        mine = await fork(stage, theirs.id, USER)
        assert mine.title == ""
        await stage.say(mine.id, "a1")
        further = await fork(stage, mine.id, "carl")
        assert (await delete(user_data)).counts.messages == 1
        assert await stage.texts(theirs.id) == ["b1", "b2"]
        assert await stage.texts(further.id) == ["b1", "b2"]
        listed = await stage.threads.ListThreads(ListThreadsRequest(user_id=USER))
        assert list(listed.threads) == []


async def test_what_was_used_stays_without_a_name(tmp_path: Path) -> None:
    async with opened(tmp_path, policy=PRICED) as (stage, user_data):
        stage.play(Scene(text="hello"))
        await stage.play_out(new_thread=Thread(user_id=USER))
        assert (await delete(user_data)).counts.usage_records == 1
        async with grpc.aio.insecure_channel(stage.address) as channel:
            by_user = QueryUsageRequest(group_by=[UsageDimension.USAGE_DIMENSION_USER])
            [row] = (await UsageServiceStub(channel).QueryUsage(by_user)).rows
        assert (row.user_id, row.runs) == ("", 1)
        assert row.usage.cost_nanos > 0


async def test_export_has_everything_and_says_how_much(tmp_path: Path) -> None:
    async with opened(tmp_path) as (stage, user_data):
        await leave_marks(stage)
        await stage.thread("not hers", user_id="bob")
        lines = await exported(user_data)
        kinds = [line["type"] for line in lines]
        *_, summary = lines
        assert summary["type"] == "summary"
        counted = {
            "threads": kinds.count("thread"),
            "messages": kinds.count("message"),
            "runs": kinds.count("run"),
            "run_steps": kinds.count("run_step"),
            "usage_rows": kinds.count("usage"),
        }
        assert {name: int(number) for name, number in summary["resource"].items()} == counted
        assert (counted["threads"], counted["messages"], counted["runs"]) == (2, 4, 3)
        assert counted["run_steps"] > 0
        assert counted["usage_rows"] > 0
        assert kinds[:2] == ["thread", "message"]
        assert "not hers" not in json.dumps(lines)
        assert lines[0]["resource"]["title"] == f"about {MARK}"
        await delete(user_data)
        assert await exported(user_data) == [{"type": "summary", "resource": {}}]


async def test_export_is_sent_in_parts(tmp_path: Path) -> None:
    async with opened(tmp_path) as (stage, user_data):
        thread = await stage.thread(*["x" * 30_000] * 8, user_id=USER)
        call = user_data.ExportUserData(ExportUserDataRequest(user_id=USER))
        parts = [list(response.json_lines) async for response in call]
        assert [len(part) for part in parts] == [3, 2, 2, 3]
        assert json.loads(parts[0][0])["resource"]["id"] == thread.id


async def test_export_is_told_to_come_back_when_the_server_is_about_to_stop(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream())
        server = AsyncExitStack()
        settings = stage_settings(tmp_path, upstream.base_url)
        stage = await server.enter_async_context(open_stage(settings, upstream))
        # More than fits into the windows of gRPC, so that it cannot have ended.
        for _ in range(20):
            await stage.thread(*["x" * 200_000] * 5, user_id=USER)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(stage.address))
        call = UserDataServiceStub(channel).ExportUserData(ExportUserDataRequest(user_id=USER))
        answers = aiter(call)
        assert (await anext(answers)).json_lines
        closing_down = asyncio.create_task(server.aclose())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in answers:
                pass
        await closing_down
    assert refusal(caught.value).reason == "SERVER_DRAINING"


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("DeleteUserData", DeleteUserDataRequest(), "user_id"),
        ("DeleteUserData", DeleteUserDataRequest(user_id="x" * 257), "user_id"),
        ("DeleteUserData", DeleteUserDataRequest(user_id="x", request_id="\u00e9"), "request_id"),
        ("GetDeletionReceipt", GetDeletionReceiptRequest(), "receipt_id"),
    ],
)
async def test_wrong_requests_are_refused(tmp_path: Path, method: str, request_: object, field: str) -> None:
    async with opened(tmp_path) as (_, user_data):
        told = await refused(getattr(user_data, method)(request_))
    assert (told.reason, told.fields) == ("INVALID_FIELD", [field])


async def test_unknown_receipt_is_not_found(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, user_data):
        told = await refused(user_data.GetDeletionReceipt(GetDeletionReceiptRequest(receipt_id="del_none")))
    assert (told.code, told.message) == (grpc.StatusCode.NOT_FOUND, "no such deletion receipt")


async def test_user_deleted_during_runs_leaves_no_orphan_and_no_event(tmp_path: Path) -> None:
    async with opened(tmp_path, policy=PRICED) as (stage, user_data):
        stage.play(Scene(deltas=20, pace_ms=1))
        for number in range(RACES):
            user_id = f"user-{number}"
            run = await stage.start(new_thread=Thread(user_id=user_id))
            watching = asyncio.create_task(stage.watch(run.id))
            # At another moment of the run each time.
            await asyncio.sleep(number / RACES * 0.04)
            receipt = await delete(user_data, user_id)
            assert (receipt.counts.threads, receipt.counts.runs) == (1, 1)
            try:
                assert (await watching)[-1].run_state_changed.run.state in lifecycle.FINAL
            except grpc.aio.AioRpcError as error:
                assert refusal(error).reason in ("THREAD_DELETED", "RESOURCE_NOT_FOUND")  # noqa: PT017 - or it has ended
            assert (await refused(stage.get(run.id))).code == grpc.StatusCode.NOT_FOUND
        async with Redis.from_url(f"unix://{tmp_path}/valkey/valkey.sock") as redis:
            streams = [key async for key in redis.scan_iter(_type="stream")]
            # What is left of a stream refuses late events, and has none.
            assert [await redis.xlen(key) for key in streams] == [0] * len(streams)
    with closing(sqlite3.connect(tmp_path / "famulus.db")) as connection:
        for table in ("runs", "run_steps", "run_turns", "messages", "queued_messages", "thread_metadata"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
        assert connection.execute("SELECT DISTINCT user_id FROM run_usage").fetchall() in ([], [("",)])
        assert connection.execute("SELECT user_id FROM spending WHERE user_id <> ''").fetchall() == []


async def test_killed_server_ends_the_deletion_when_it_is_back(tmp_path: Path) -> None:
    def tombstones() -> int:
        with closing(sqlite3.connect(tmp_path / "famulus.db")) as connection:
            [(count,)] = connection.execute("SELECT count(*) FROM threads WHERE deleted_time IS NOT NULL")
            return int(count)

    async with ScriptedUpstream() as upstream:
        async with open_killable(tmp_path, upstream) as (doomed, process), user_data_on(doomed) as user_data:
            for _ in range(KILLED_THREADS // 50):
                made = (doomed.thread(f"first {MARK}", f"then {MARK}", user_id=USER) for _ in range(50))
                await asyncio.gather(*made)
            asking = asyncio.create_task(delete(user_data))
            while True:
                await asyncio.sleep(0.001)
                if tombstones():
                    break
            process.kill()
            await process.wait()
            with pytest.raises(grpc.aio.AioRpcError):
                await asking
        # In the middle, or this shows nothing.
        assert 0 < tombstones() < KILLED_THREADS
        async with opened(tmp_path) as (_, user_data):
            receipt = await delete(user_data)
            assert receipt.state == DeletionState.DELETION_STATE_COMPLETED
            assert (receipt.counts.threads, receipt.counts.messages) == (KILLED_THREADS, 2 * KILLED_THREADS)
            assert marked(tmp_path) == set()
