"""What may be spent: whose, until when, and how it is refused."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from contract.samples import OTHER, START, TENANT, run
from famulus.v1 import error_reason_pb2 as reasons
from famulus.v1.run_pb2 import Run, RunState, Usage
from famulus_server.engine import budgets, usage
from famulus_server.engine.policy import Budget, Budgets, Policy, Tier
from famulus_server.errors import ResourceExhausted
from famulus_server.ports import Transaction
from famulus_server.store.sqlite import SqliteStore

UNIT = 1_000_000_000


def policy(*, tenant: Budget | None = None, user: Budget | None = None) -> Policy:
    """Budgets for TENANT; others have none."""
    tiers = {"default": Tier(), "bounded": Tier(budgets=Budgets(tenant=tenant, user=user))}
    return Policy(tiers=tiers, tenants={TENANT: "bounded"})


async def spend(
    store: SqliteStore, holding: Policy, cost: int, *, user: str = "ann", tenant: str = TENANT, now: datetime = START
) -> None:
    await store.write(lambda tx: budgets.spend(tx, holding, tenant, user, cost, now=now))


async def refusal(
    store: SqliteStore, holding: Policy, *, user: str = "ann", tenant: str = TENANT, now: datetime = START
) -> ResourceExhausted | None:
    try:
        await store.write(lambda tx: budgets.check(tx, holding, tenant, user, now=now))
    except ResourceExhausted as refused:
        return refused
    return None


async def statements(store: SqliteStore, unit: Callable[[Transaction], Awaitable[None]]) -> int:
    """How many a unit takes, what begins and ends its transaction not counted."""

    async def nothing(_: Transaction) -> None: ...

    counts = [store.stats.statements]
    for one in (nothing, unit):
        await store.write(one)
        counts.append(store.stats.statements)
    return counts[2] - counts[1] - (counts[1] - counts[0])


async def test_budget_is_spent_with_its_last_billionth(store: SqliteStore) -> None:
    holding = policy(tenant=Budget(amount=0.3))
    await spend(store, holding, 3 * UNIT // 10 - 1)
    assert await refusal(store, holding) is None
    await spend(store, holding, 1)
    told = await refusal(store, holding)
    assert told is not None
    assert told.reason == reasons.ERROR_REASON_BUDGET_EXHAUSTED
    assert (told.subject, told.description) == ("tenant:acme", "0.3 USD per month")
    assert told.metadata == {"budget": "tenant", "renew_time": "2026-12-01T00:00:00Z"}
    assert told.retry_after is None
    assert told.message == "the tenant's budget for this month is spent"


async def test_each_user_has_a_budget_of_his_own(store: SqliteStore) -> None:
    holding = policy(tenant=Budget(amount=1_500_000), user=Budget(amount=1, period="day"))
    await spend(store, holding, UNIT)
    told = await refusal(store, holding)
    assert told is not None
    assert (told.subject, told.description) == ("user:acme/ann", "1 USD per day")
    assert told.metadata == {"budget": "user", "renew_time": "2026-11-23T00:00:00Z"}
    for user in ("bob", ""):
        assert await refusal(store, holding, user=user) is None
    # A thread without an owner is nobody's, however much it costs; the tenant pays for all of them.
    await spend(store, holding, 1_499_999 * UNIT, user="")
    told = await refusal(store, holding, user="bob")
    assert told is not None
    assert (told.subject, told.description) == ("tenant:acme", "1500000 USD per month")
    assert await refusal(store, holding, tenant=OTHER) is None


@pytest.mark.parametrize(
    ("period", "last", "renewed"),
    [
        ("day", datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC), "2026-03-01"),
        ("month", datetime(2026, 12, 31, 23, 0, tzinfo=UTC), "2027-01-01"),
        ("month", datetime(2026, 1, 31, 23, 0, tzinfo=UTC), "2026-02-01"),
    ],
)
async def test_budget_is_renewed_with_its_period(store: SqliteStore, period: str, last: datetime, renewed: str) -> None:
    holding = policy(user=Budget(amount=1, period=period))  # type: ignore[arg-type]
    await spend(store, holding, UNIT, now=last)
    told = await refusal(store, holding, now=last)
    assert told is not None
    assert told.metadata["renew_time"] == f"{renewed}T00:00:00Z"
    # Within an hour the caller is told to wait, and exactly so long.
    assert told.retry_after is not None
    renewal = last + timedelta(seconds=told.retry_after)
    assert renewal == datetime.fromisoformat(renewed).replace(tzinfo=UTC)
    assert await refusal(store, holding, now=renewal) is None
    early = await refusal(store, holding, now=last.replace(hour=22, minute=59))
    assert early is not None
    assert early.retry_after is None


async def test_budget_of_nothing_allows_nothing(store: SqliteStore) -> None:
    assert await refusal(store, policy(user=Budget(amount=0))) is not None


async def test_budget_that_comes_in_the_middle_of_a_period_counts_what_was_spent_before(store: SqliteStore) -> None:
    made = _used("run_1", cost=UNIT)
    await store.write(lambda tx: usage.note(tx, Policy(), TENANT, made, made.usage, now=START))
    holding = policy(user=Budget(amount=1))
    assert await refusal(store, holding) is not None
    assert await refusal(store, policy(user=Budget(amount=1, period="day"))) is not None
    assert await refusal(store, holding, user="bob") is None


async def test_turn_is_counted_once_in_an_account_that_it_opens(store: SqliteStore) -> None:
    holding = policy(tenant=Budget(amount=1))
    made = _used("run_1", cost=UNIT // 2)
    await store.write(lambda tx: usage.note(tx, holding, TENANT, made, made.usage, now=START))
    assert await refusal(store, holding) is None
    await spend(store, holding, UNIT // 2)
    assert await refusal(store, holding) is not None


async def test_turn_costs_a_statement_and_one_for_each_budget(store: SqliteStore) -> None:
    made = _used("run_1", cost=1)

    async def taken(holding: Policy, used: Usage | None) -> int:
        return await statements(store, lambda tx: usage.note(tx, holding, TENANT, made, used, now=START))

    free = policy()
    both = policy(tenant=Budget(amount=1), user=Budget(amount=1))
    assert [await taken(holding, made.usage) for holding in (free, both)] == [1, 3]
    assert [await taken(holding, Usage()) for holding in (free, both)] == [1, 1]
    made.state = RunState.RUN_STATE_REQUIRES_ACTION
    assert await taken(both, None) == 0
    made.state = RunState.RUN_STATE_FAILED
    assert await taken(both, None) == 1


async def test_looking_costs_one_statement_for_all_budgets(store: SqliteStore) -> None:
    both = policy(tenant=Budget(amount=1), user=Budget(amount=1))
    await spend(store, both, 1)
    looks = [
        await statements(store, lambda tx: budgets.check(tx, holding, TENANT, "ann", now=START))  # noqa: B023
        for holding in (policy(), policy(tenant=Budget(amount=1)), both)
    ]
    assert looks == [0, 1, 1]


def _used(run_id: str, *, cost: int) -> Run:
    made = run(run_id)
    made.user_id, made.usage.cost_nanos = "ann", cost
    return made
