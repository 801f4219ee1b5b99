"""Records of what runs used, their sums, and accounts of what was spent, in any store."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from contract.samples import ODD_IDS, OTHER, START, TENANT, add_run, add_thread, run
from famulus.v1.run_pb2 import RatingVerdict, Run, RunState, Usage
from famulus.v1.usage_service_pb2 import UsageBucket, UsageDimension, UsageRow
from famulus_server.ports import Account, Store, UsageGroup, UsageQuery

HOUR = 3_600
DAY = 24 * HOUR
USER = UsageDimension.USAGE_DIMENSION_USER
ASSISTANT = UsageDimension.USAGE_DIMENSION_ASSISTANT
MODEL = UsageDimension.USAGE_DIMENSION_MODEL
VARIANT = UsageDimension.USAGE_DIMENSION_VARIANT
COMPLETED = RunState.RUN_STATE_COMPLETED
# The month that START is in.
MONTH = datetime(2026, 11, 1, tzinfo=UTC)
WHOLE, ANNS = Account("", MONTH), Account("ann", MONTH)


def used(run_id: str, *, seconds: int = 0, cost: int = 1, **fields: Any) -> Run:
    made = run(run_id, seconds=seconds)
    made.usage.CopyFrom(Usage(prompt_tokens=10, completion_tokens=5, total_tokens=15, cost_nanos=cost))
    made.MergeFrom(Run(**fields))
    return made


async def put(store: Store, *runs: Run, tenant: str = TENANT) -> None:
    for one in runs:
        await store.write(lambda tx, one=one: tx.usages.put(tenant, one))  # type: ignore[misc]


async def rows(
    store: Store, *, tenant: str = TENANT, after: UsageGroup | None = None, limit: int = 100, **which: Any
) -> Sequence[UsageRow]:
    span = {"start": START, "end": START + timedelta(days=300)}
    query = UsageQuery(**(span | which))
    return await store.read(lambda tx: tx.usages.page(tenant, query, after=after, limit=limit))


async def spent(store: Store, account: Account, *, tenant: str = TENANT) -> int:
    [cost] = await store.write(lambda tx: tx.usages.spent(tenant, [account]))
    return cost


async def spend(store: Store, accounts: Sequence[Account], cost: int, *, tenant: str = TENANT) -> None:
    await store.write(lambda tx: tx.usages.spend(tenant, accounts, cost))


async def test_all_runs_are_one_group_unless_grouped(store: Store) -> None:
    first = used("run_1", cost=7)
    first.usage.MergeFrom(Usage(cached_prompt_tokens=3, reasoning_tokens=2))
    await put(store, first, used("run_2", cost=2**62, seconds=DAY))
    [row] = await rows(store)
    assert row == UsageRow(
        runs=2,
        usage=Usage(
            prompt_tokens=20,
            completion_tokens=10,
            total_tokens=30,
            cached_prompt_tokens=3,
            reasoning_tokens=2,
            cost_nanos=2**62 + 7,
        ),
    )
    assert await rows(store, tenant=OTHER) == []


async def test_record_of_a_run_is_brought_up_to_date(store: Store) -> None:
    await put(store, used("run_1", cost=1, state=RunState.RUN_STATE_IN_PROGRESS))
    last = used("run_1", cost=5, state=COMPLETED, variant="v", degraded=True)
    last.rating.verdict = RatingVerdict.RATING_VERDICT_GOOD
    await put(store, last)
    [row] = await rows(store, group_by=[VARIANT])
    assert (row.variant, row.runs, row.ended_runs, row.degraded_runs, row.good_runs) == ("v", 1, 1, 1, 1)
    assert row.usage.cost_nanos == 5


async def test_sum_of_an_estimate_is_an_estimate(store: Store) -> None:
    await put(store, used("run_1"), used("run_2", user_id="ann"))
    estimate = used("run_3")
    estimate.usage.estimated = True
    await put(store, estimate)
    assert [row.usage.estimated for row in await rows(store, group_by=[USER])] == [True, False]


async def test_success_is_completed_and_not_rated_bad(store: Store) -> None:
    states = [
        COMPLETED,
        COMPLETED,
        COMPLETED,
        RunState.RUN_STATE_FAILED,
        RunState.RUN_STATE_INCOMPLETE,
        RunState.RUN_STATE_EXPIRED,
        RunState.RUN_STATE_CANCELLED,
        RunState.RUN_STATE_REQUIRES_ACTION,
    ]
    runs = [used(f"run_{number}", state=state) for number, state in enumerate(states)]
    runs[0].rating.verdict = RatingVerdict.RATING_VERDICT_GOOD
    runs[1].rating.verdict = RatingVerdict.RATING_VERDICT_BAD
    runs[4].rating.verdict = RatingVerdict.RATING_VERDICT_GOOD
    await put(store, *runs)
    [row] = await rows(store)
    assert (row.runs, row.ended_runs, row.successful_runs, row.good_runs, row.bad_runs) == (8, 7, 2, 2, 1)
    assert row.success_rate == pytest.approx(2 / 6)


async def test_there_is_no_rate_of_success_where_nothing_could_succeed(store: Store) -> None:
    await put(store, used("run_1", state=RunState.RUN_STATE_CANCELLED), used("run_2"))
    [row] = await rows(store)
    assert not row.HasField("success_rate")
    assert not row.HasField("bucket_time")


@pytest.mark.parametrize(
    ("which", "costs"),
    [
        ({"user_id": "ann"}, [1 + 16]),
        ({"assistant_id": "asst_2"}, [2]),
        ({"model": "fast"}, [4]),
        ({"variant": "v"}, [8]),
        ({"user_id": "ann", "variant": "v"}, []),
        ({"user_id": "Ann"}, []),
        ({"end": START + timedelta(seconds=10)}, [15]),
        ({"end": START + timedelta(seconds=10, microseconds=1)}, [31]),
        ({"start": START + timedelta(microseconds=1)}, [16]),
    ],
)
async def test_only_wanted_runs_are_summed_up(store: Store, which: dict[str, Any], costs: list[int]) -> None:
    runs = [
        used("run_1", cost=1, user_id="ann"),
        used("run_2", cost=2, assistant_id="asst_2"),
        used("run_3", cost=4, model="fast"),
        used("run_4", cost=8, variant="v"),
        used("run_5", cost=16, user_id="ann", seconds=10),
    ]
    await put(store, *runs)
    assert [row.usage.cost_nanos for row in await rows(store, **which)] == costs


async def test_groups_come_by_time_then_by_their_fields_whatever_order_is_asked_for(store: Store) -> None:
    for number, (seconds, user, variant) in enumerate(
        [
            (DAY, "a", "x"),
            (0, "b", "x"),
            (0, "a", "y"),
            (0, "a", "x"),
            (HOUR, "a", "x"),
            (0, "A", "z"),
            (0, "\u00e4", ""),
        ]
    ):
        await put(store, used(f"run_{number}", seconds=seconds, user_id=user, variant=variant))
    found = await rows(store, group_by=[VARIANT, USER], bucket=UsageBucket.USAGE_BUCKET_DAY)
    noon = START.replace(hour=0)
    assert [(row.bucket_time.ToDatetime(START.tzinfo), row.user_id, row.variant, row.runs) for row in found] == [
        (noon, "A", "z", 1),
        (noon, "a", "x", 2),
        (noon, "a", "y", 1),
        (noon, "b", "x", 1),
        (noon, "\u00e4", "", 1),
        (noon + timedelta(days=1), "a", "x", 1),
    ]
    assert {row.assistant_id + row.model for row in found} == {""}
    by_rest = await rows(store, group_by=[ASSISTANT, MODEL])
    assert [(row.assistant_id, row.model, row.runs) for row in by_rest] == [("asst_1", "m", 7)]


async def test_spans_of_time_begin_at_the_hour_and_at_midnight(store: Store) -> None:
    for number, seconds in enumerate([0, HOUR - 1, HOUR, 12 * HOUR - 1, 12 * HOUR, 36 * HOUR]):
        await put(store, used(f"run_{number}", seconds=seconds))

    async def spans(bucket: "UsageBucket.ValueType") -> list[tuple[float, int]]:
        found = await rows(store, bucket=bucket)
        begins = [row.bucket_time.ToDatetime(START.tzinfo) - START for row in found]
        return [(begin.total_seconds() / HOUR, row.runs) for begin, row in zip(begins, found, strict=True)]

    assert await spans(UsageBucket.USAGE_BUCKET_HOUR) == [(0, 2), (1, 1), (11, 1), (12, 1), (36, 1)]
    assert await spans(UsageBucket.USAGE_BUCKET_DAY) == [(-12, 4), (12, 1), (36, 1)]


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_pages_together_have_each_group_once(store: Store, limit: int) -> None:
    fields = [(hour, user, variant) for hour in (0, 30) for user in ("", "a", "b'\"") for variant in ("", "v")]
    for number, (hour, user, variant) in enumerate(fields):
        await put(store, used(f"run_{number}", seconds=hour * HOUR, user_id=user, variant=variant))
    seen: list[UsageRow] = []
    after = None
    while page := await rows(
        store, group_by=[USER, VARIANT], bucket=UsageBucket.USAGE_BUCKET_HOUR, after=after, limit=limit
    ):
        seen += page
        last = page[-1]
        after = UsageGroup(span_start=last.bucket_time.ToMicroseconds(), user_id=last.user_id, variant=last.variant)
    begins = [(row.bucket_time.ToDatetime(START.tzinfo) - START).total_seconds() / HOUR for row in seen]
    assert [(begin, row.user_id, row.variant) for begin, row in zip(begins, seen, strict=True)] == fields


@pytest.mark.parametrize("odd", ODD_IDS)
async def test_odd_names_are_only_names(store: Store, odd: str) -> None:
    await put(store, used("run_1", user_id=odd, variant=odd), used("run_2", user_id="ann"))
    [row] = await rows(store, user_id=odd, variant=odd, group_by=[USER]) if odd else [UsageRow(runs=1)]
    assert (row.runs, row.user_id) == (1, odd)
    assert await spent(store, Account("nobody", MONTH)) == 0
    if odd:
        assert await spent(store, Account(odd, MONTH)) == 1


async def test_records_stay_when_the_thread_is_deleted_and_what_it_cut_off_is_cancelled(store: Store) -> None:
    await add_thread(store, "thread_1")
    await add_thread(store, "thread_2")
    done = used("run_1", state=COMPLETED)
    cut = used("run_2", state=RunState.RUN_STATE_IN_PROGRESS, attempt=1)
    other = used("run_3", state=RunState.RUN_STATE_IN_PROGRESS, attempt=1, user_id="bob")
    other.thread_id = "thread_2"
    for one in (done, cut, other):
        await add_run(store, one)
        await put(store, one)
    await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", START))
    unowned, bobs = await rows(store, group_by=[USER])
    assert (unowned.runs, unowned.ended_runs, unowned.success_rate, unowned.usage.cost_nanos) == (2, 2, 1.0, 2)
    assert (bobs.runs, bobs.ended_runs) == (1, 0)


async def test_new_account_begins_with_what_the_runs_of_its_period_cost(store: Store) -> None:
    before = -int((START - MONTH).total_seconds()) - 1
    await put(
        store,
        used("run_1", cost=1, user_id="ann"),
        used("run_2", cost=2, user_id="bob"),
        used("run_3", cost=4, user_id="ann", seconds=before + 1),
        used("run_4", cost=8, user_id="ann", seconds=before),
    )
    await put(store, used("run_1", cost=1_000), tenant=OTHER)
    assert (await spent(store, WHOLE), await spent(store, ANNS)) == (7, 5)
    # From now on only what is spent counts.
    await put(store, used("run_5", cost=16, user_id="ann"))
    assert (await spent(store, WHOLE), await spent(store, ANNS)) == (7, 5)


async def test_cost_is_added_to_accounts_old_and_new(store: Store) -> None:
    await put(store, used("run_1", cost=10, user_id="ann"))
    await spend(store, [WHOLE, ANNS], 5)
    await spend(store, [WHOLE], 2)
    assert (await spent(store, WHOLE), await spent(store, ANNS)) == (17, 15)
    assert await spent(store, WHOLE, tenant=OTHER) == 0
    later = Account("ann", MONTH + timedelta(days=30))
    assert await spent(store, later) == 0


async def test_accounts_old_and_new_are_looked_at_together_in_their_order(store: Store) -> None:
    await put(store, used("run_1", cost=10, user_id="ann"))
    await spend(store, [ANNS], 5)
    accounts = [WHOLE, Account("bob", MONTH), ANNS]
    assert await store.write(lambda tx: tx.usages.spent(TENANT, accounts)) == [10, 0, 15]
    assert await store.write(lambda tx: tx.usages.spent(TENANT, [])) == []


async def test_nothing_is_lost_where_many_spend_and_look_at_once(store: Store) -> None:
    await put(store, used("run_0", cost=100, user_id="ann"))

    async def settle(number: int) -> None:
        async def unit(tx: Any) -> None:
            await tx.usages.spend(TENANT, [WHOLE, ANNS], 1)
            await tx.usages.put(TENANT, used(f"run_{number}", cost=1, user_id="ann"))

        await store.write(unit)

    looks = [spent(store, account) for account in (WHOLE, ANNS) for _ in range(4)]
    await asyncio.gather(*map(settle, range(1, 17)), *looks)
    assert (await spent(store, WHOLE), await spent(store, ANNS)) == (116, 116)


async def test_what_a_unit_that_fails_spent_is_not_spent(store: Store) -> None:
    async def unit(tx: Any) -> None:
        await tx.usages.spend(TENANT, [WHOLE], 5)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await store.write(unit)
    assert await spent(store, WHOLE) == 0
