"""What runs cost, who is told so, and who has spent too much: on a whole server with prices and budgets."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import QuotaFailure
from msgspec.structs import replace

from famulus.v1.run_pb2 import RatingVerdict, Run, RunRating, RunState
from famulus.v1.run_service_pb2 import BusyPolicy, RateRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import DeleteThreadRequest
from famulus.v1.usage_service_pb2 import QueryUsageRequest, QueryUsageResponse, UsageBucket, UsageDimension, UsageRow
from famulus.v1.usage_service_pb2_grpc import UsageServiceStub
from famulus_server.embedded.upstream import Fault, Scene, ScriptedUpstream, ToolCall, Usage
from famulus_server.engine.policy import Budget, Budgets, ModelPrice, Policy, Tier
from run_stage import TOOLS, Stage, open_stage, refused, stage_settings

if TYPE_CHECKING:
    from famulus.v1.usage_service_pb2_grpc import UsageServiceAsyncStub

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER = UsageDimension.USAGE_DIMENSION_USER
MODEL = UsageDimension.USAGE_DIMENSION_MODEL
PRICES = {
    "scripted": ModelPrice(input=2, output=8, cached_input=0.5, reasoning=16),
    "chat": ModelPrice(input=1, output=1),
}
USED = Usage(input=1_000, cached=200, output=500, reasoning=100)
# Of that at the prices of "scripted".
COST = 800 * 2_000 + 200 * 500 + 400 * 8_000 + 100 * 16_000
PAID = Scene(text="fine", usage=USED)


@asynccontextmanager
async def bounded(folder: Path, budgets: Budgets) -> AsyncIterator[Stage]:
    """A server with prices, and these budgets for everybody."""
    policy = Policy(tiers={"default": Tier(budgets=budgets)}, prices=PRICES, currency="EUR")
    async with (
        ScriptedUpstream() as upstream,
        open_stage(replace(stage_settings(folder, upstream.base_url), policy=policy), upstream) as opened,
    ):
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    # Enough for two runs of a user, and a little.
    user = Budget(amount=1.1 * COST / 1e9)
    async with bounded(tmp_path_factory.mktemp("usage"), Budgets(user=user)) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def usage(stage: Stage) -> AsyncIterator["UsageServiceAsyncStub"]:
    async with grpc.aio.insecure_channel(stage.address) as channel:
        yield UsageServiceStub(channel)


async def query(usage: "UsageServiceAsyncStub", **fields: Any) -> QueryUsageResponse:
    return await usage.QueryUsage(QueryUsageRequest(**fields))


async def row_of(usage: "UsageServiceAsyncStub", user: str) -> UsageRow:
    rows = (await query(usage, user_id=user)).rows
    assert len(rows) <= 1
    return rows[0] if rows else UsageRow()


def owned(user: str) -> Thread:
    return Thread(user_id=user)


def at(moment: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(moment)
    return made


async def rate(stage: Stage, run: Run, verdict: "RatingVerdict.ValueType") -> None:
    await stage.runs.RateRun(RateRunRequest(run_id=run.id, rating=RunRating(verdict=verdict)))


async def test_run_and_its_step_carry_what_they_cost(stage: Stage, usage: "UsageServiceAsyncStub") -> None:
    stage.play(PAID)
    story = await stage.play_out(new_thread=owned("payer"))
    assert (story.run.user_id, story.run.usage.cost_nanos) == ("payer", COST)
    [step] = await stage.steps(story.run.id)
    assert step.usage == story.run.usage
    answer = await query(usage, user_id="payer")
    [row] = answer.rows
    assert (row.usage, answer.currency, answer.next_page_token) == (story.run.usage, "EUR", "")
    assert (row.runs, row.ended_runs, row.successful_runs, row.success_rate) == (1, 1, 1, 1.0)


async def test_turns_of_a_run_are_added_up_and_show_while_it_waits(
    stage: Stage, usage: "UsageServiceAsyncStub"
) -> None:
    calling = Scene(times=1, tool_calls=(ToolCall(name="get_time"),), usage=USED)
    stage.play(calling, Scene(text="noon", usage=Usage(input=1, output=1)))
    assistant = await stage.assistant(tools=TOOLS)
    waiting = await stage.wait((await stage.start(assistant_id=assistant.id, new_thread=owned("patient"))).id)
    row = await row_of(usage, "patient")
    assert (row.runs, row.ended_runs, row.usage.cost_nanos) == (1, 0, COST)
    assert not row.HasField("success_rate")
    await stage.submit(waiting.id, (waiting.required_action.tool_calls[0].id, "noon"))
    run = (await stage.tell(waiting.id)).run
    assert run.usage.cost_nanos == COST + 2_000 + 8_000
    row = await row_of(usage, "patient")
    assert (row.runs, row.ended_runs, row.usage) == (1, 1, run.usage)


async def test_model_without_a_price_costs_nothing_and_is_counted(stage: Stage, usage: "UsageServiceAsyncStub") -> None:
    stage.play(PAID)
    await stage.play_out(model="roomy", new_thread=owned("free"))
    row = await row_of(usage, "free")
    assert (row.usage.cost_nanos, row.usage.total_tokens) == (0, 1_500)


async def test_what_a_broken_turn_used_is_estimated_and_paid(stage: Stage, usage: "UsageServiceAsyncStub") -> None:
    broken = Scene(times=1, deltas=20, fault=Fault(kind="eof", after=10))
    stage.play(broken, Scene(text="fine", usage=USED))
    run = (await stage.play_out("x" * 400, new_thread=owned("unlucky"))).run
    assert (run.state, run.usage.estimated) == (RunState.RUN_STATE_COMPLETED, True)
    tokens = run.usage.prompt_tokens - 1_000, run.usage.completion_tokens - 500
    assert min(tokens) > 0
    assert run.usage.cost_nanos == COST + tokens[0] * 2_000 + tokens[1] * 8_000
    assert (await row_of(usage, "unlucky")).usage == run.usage


async def test_cancelled_run_pays_for_what_it_wrote(stage: Stage, usage: "UsageServiceAsyncStub") -> None:
    stage.play(Scene(deltas=6, hold_after=3))
    run = await stage.start(new_thread=owned("hasty"))
    await stage.until(run.id, "text_delta")
    await stage.cancel(run.id)
    ended = (await stage.tell(run.id)).run
    assert ended.usage.estimated
    assert ended.usage.cost_nanos > 0
    row = await row_of(usage, "hasty")
    assert (row.ended_runs, row.successful_runs, row.usage) == (1, 0, ended.usage)
    assert not row.HasField("success_rate")


async def test_runs_that_end_while_they_wait_are_counted(stage: Stage, usage: "UsageServiceAsyncStub") -> None:
    stage.play(Scene(tool_calls=(ToolCall(name="get_time"),), usage=Usage(input=1, output=1)))
    assistant = await stage.assistant(tools=TOOLS)
    thread = await stage.thread(user_id="waiter")
    asking = await stage.start(thread_id=thread.id, assistant_id=assistant.id)
    await stage.wait(asking.id)
    enqueue = BusyPolicy.BUSY_POLICY_ENQUEUE
    behind = await stage.start(thread_id=thread.id, assistant_id=assistant.id, busy_policy=enqueue)
    assert (await row_of(usage, "waiter")).runs == 1
    await stage.cancel(behind.id)
    await stage.cancel(asking.id)
    row = await row_of(usage, "waiter")
    assert (row.runs, row.ended_runs, row.usage.prompt_tokens) == (2, 2, 1)


async def test_failed_and_badly_rated_runs_lower_the_rate_of_success(
    stage: Stage, usage: "UsageServiceAsyncStub"
) -> None:
    stage.play(Scene(times=1, fault=Fault(kind="status", status=400)), Scene(usage=Usage(input=0, output=0), text="x"))
    for _ in range(4):
        run = (await stage.play_out(new_thread=owned("judge"))).run
    assert (await row_of(usage, "judge")).success_rate == 0.75
    await rate(stage, run, RatingVerdict.RATING_VERDICT_BAD)
    row = await row_of(usage, "judge")
    assert (row.bad_runs, row.good_runs, row.success_rate) == (1, 0, 0.5)
    await rate(stage, run, RatingVerdict.RATING_VERDICT_GOOD)
    row = await row_of(usage, "judge")
    assert (row.bad_runs, row.good_runs, row.success_rate) == (0, 1, 0.75)


async def test_usage_outlives_its_thread(stage: Stage, usage: "UsageServiceAsyncStub") -> None:
    stage.play(PAID)
    run = (await stage.play_out(new_thread=owned("gone"))).run
    await stage.threads.DeleteThread(DeleteThreadRequest(thread_id=run.thread_id))
    assert (await row_of(usage, "gone")).usage == run.usage


async def test_groups_come_in_pages_that_stand_still(stage: Stage, usage: "UsageServiceAsyncStub") -> None:
    stage.play(Scene(text="fine", usage=Usage(input=1, output=1)))
    users = [f"page-{name}-" + "\u00fc" * 200 for name in "abcde"]
    for user in reversed(users):
        await stage.play_out(model="roomy", new_thread=owned(user))
    asked = {"group_by": [MODEL, USER], "bucket": UsageBucket.USAGE_BUCKET_DAY, "model": "roomy"}
    whole = [row for row in (await query(usage, **asked)).rows if row.user_id in users]
    seen: list[UsageRow] = []
    token = ""
    while True:
        page = await query(usage, page_size=2, page_token=token, **asked)
        seen += page.rows
        token = page.next_page_token
        # What is created now is behind the end of the first page's span.
        await stage.play_out(model="roomy", new_thread=owned(f"page-z-{len(seen)}"))
        if not token:
            break
    assert [row for row in seen if row.user_id in users] == whole
    assert [row.user_id for row in whole] == users
    assert not [row for row in seen if row.user_id.startswith("page-z")]


async def test_page_token_of_other_filters_is_refused(stage: Stage, usage: "UsageServiceAsyncStub") -> None:
    stage.play(Scene(text="fine", usage=Usage(input=1, output=1)))
    for user in ("token-a", "token-b"):
        await stage.play_out(model="roomy", new_thread=owned(user))
    token = (await query(usage, group_by=[USER], page_size=1)).next_page_token
    assert token
    told = await refused(query(usage, group_by=[USER, MODEL], page_size=1, page_token=token))
    assert told.reason == "INVALID_PAGE_TOKEN"


async def test_span_of_time_is_bounded_and_begins_before_it_ends(usage: "UsageServiceAsyncStub") -> None:
    now = datetime.now(UTC)
    day = timedelta(days=1)
    for span in (
        {"start_time": at(now), "end_time": at(now)},
        {"start_time": at(now + day)},
        {"start_time": at(now - 366 * day - timedelta(microseconds=1)), "end_time": at(now)},
        {"end_time": Timestamp(seconds=-62_135_596_800)},
    ):
        told = await refused(query(usage, **span))
        assert (told.code, told.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["start_time"])
    await query(usage, start_time=at(now - 366 * day), end_time=at(now))
    for end in (Timestamp(seconds=-62_135_596_799), Timestamp(seconds=253_402_300_799, nanos=999_999_999)):
        assert not (await query(usage, end_time=end)).rows


async def test_only_what_was_created_in_the_span_is_counted(stage: Stage, usage: "UsageServiceAsyncStub") -> None:
    stage.play(Scene(text="fine", usage=Usage(input=1, output=1)))
    created = (await stage.play_out(new_thread=owned("timely"))).run.create_time.ToDatetime(UTC)
    step = timedelta(microseconds=1)

    async def runs(start: datetime, end: datetime) -> Sequence[int]:
        return [row.runs for row in (await query(usage, user_id="timely", start_time=at(start), end_time=at(end))).rows]

    assert await runs(created, created + step) == [1]
    assert await runs(created - step, created) == []
    assert await runs(created + step, created + 2 * step) == []


async def test_user_who_has_spent_his_budget_starts_no_run_and_stores_nothing(stage: Stage) -> None:
    stage.play(PAID)
    thread = await stage.thread(user_id="spender")
    repeated = await stage.wanted(thread_id=thread.id, request_id="spender-1")
    first = (await stage.runs.CreateRun(repeated)).run
    await stage.tell(first.id)
    await stage.play_out(thread_id=thread.id)
    texts = await stage.texts(thread.id)

    attempts: list[dict[str, Any]] = [{"thread_id": thread.id}, {"new_thread": owned("spender")}]
    for fields in attempts:
        told = await refused(stage.start("more", **fields))
        assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BUDGET_EXHAUSTED")
        assert told.metadata["budget"] == "user"
        renewal = datetime.fromisoformat(told.metadata["renew_time"])
        assert datetime.now(UTC) < renewal <= datetime.now(UTC) + timedelta(days=31)
        quota = told.details["QuotaFailure"]
        assert isinstance(quota, QuotaFailure)
        [violation] = quota.violations
        assert violation.subject == "user:default/spender"
        assert violation.description.endswith(" EUR per month")
    assert await stage.texts(thread.id) == texts
    # What was started before is still told, and others start.
    assert (await stage.runs.CreateRun(repeated)).run.id == first.id
    await stage.play_out(new_thread=owned("another spender"))
    await stage.play_out()


async def test_tenant_that_has_spent_its_budget_starts_no_run(tmp_path: Path) -> None:
    async with bounded(tmp_path, Budgets(tenant=Budget(amount=COST / 1e9, period="day"))) as stage:
        stage.play(PAID)
        request = await stage.wanted(request_id="again", new_thread=owned("a"))
        told = await refused(stage.start(assistant_id="asst_missing"))
        assert told.reason == "RESOURCE_NOT_FOUND"
        await stage.tell((await stage.runs.CreateRun(request)).run.id)
        for user in ("b", ""):
            told = await refused(stage.start(new_thread=owned(user)))
            assert (told.reason, told.metadata["budget"]) == ("BUDGET_EXHAUSTED", "tenant")
        # Reading, and appending messages, costs nothing.
        thread = await stage.thread("hello")
        await stage.say(thread.id, "still here")
