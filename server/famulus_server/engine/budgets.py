"""What tenants and their users may spend. It is counted in SQL, with what the runs used: without the store nobody
starts a run, and no run is forgotten."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from famulus.v1 import error_reason_pb2 as reasons
from famulus_server.engine import prices, quotas
from famulus_server.engine.policy import Budget, Policy
from famulus_server.errors import ResourceExhausted
from famulus_server.ports import Account, Transaction

# A budget that is renewed later than this is nothing to wait for.
_WORTH_WAITING = timedelta(hours=1)
# More than any month has days, and less than any two.
_BEYOND_A_MONTH = timedelta(days=32)
_SUBJECTS: Mapping[bool, str] = MappingProxyType({True: "user", False: "tenant"})


@dataclass(frozen=True, slots=True)
class _Bound:
    """A budget in its present period, and where the spending that it bounds is counted."""

    budget: Budget
    account: Account

    @property
    def whose(self) -> str:
        return _SUBJECTS[bool(self.account.user_id)]

    @property
    def renewal(self) -> datetime:
        start = self.account.period_start
        return start + timedelta(days=1) if self.budget.period == "day" else _month(start + _BEYOND_A_MONTH)


async def check(tx: Transaction, policy: Policy, tenant: str, user_id: str, *, now: datetime) -> None:
    """Raises ResourceExhausted (BUDGET_EXHAUSTED) where the tenant, or the user, has spent what may be spent. Runs at
    work are not counted until their turns are: they end beyond the budget."""
    bounds = _bounds(policy, tenant, user_id, now)
    if not bounds:
        return
    spent = await tx.usages.spent(tenant, [bound.account for bound in bounds])
    for bound, cost_nanos in zip(bounds, spent, strict=True):
        if cost_nanos >= prices.nanos(bound.budget.amount):
            raise _spent(bound, tenant, policy.currency, now)


async def spend(tx: Transaction, policy: Policy, tenant: str, user_id: str, cost_nanos: int, *, now: datetime) -> None:
    """Counts a cost where there are budgets for it. Call it before the run's record has that cost."""
    accounts = [bound.account for bound in _bounds(policy, tenant, user_id, now)]
    if accounts and cost_nanos:
        await tx.usages.spend(tenant, accounts, cost_nanos)


def _bounds(policy: Policy, tenant: str, user_id: str, now: datetime) -> Sequence[_Bound]:
    """The tenant's first, then the user's; threads without an owner are nobody's."""
    budgets = policy.tier(tenant).budgets
    candidates = [(budgets.tenant, "")]
    if user_id:
        candidates.append((budgets.user, user_id))
    return [_Bound(budget, Account(whose, _start(budget, now))) for budget, whose in candidates if budget is not None]


def _start(budget: Budget, now: datetime) -> datetime:
    return _month(now) if budget.period == "month" else _day(now)


def _day(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _month(moment: datetime) -> datetime:
    return _day(moment).replace(day=1)


def _spent(bound: _Bound, tenant: str, currency: str, now: datetime) -> ResourceExhausted:
    whose, wait = bound.whose, bound.renewal - now
    amount = f"{bound.budget.amount:.9f}".rstrip("0").rstrip(".")
    return ResourceExhausted(
        reasons.ERROR_REASON_BUDGET_EXHAUSTED,
        f"the {whose}'s budget for this {bound.budget.period} is spent",
        subject=f"{whose}:{quotas.within(tenant, bound.account.user_id) if bound.account.user_id else tenant}",
        description=f"{amount} {currency} per {bound.budget.period}",
        metadata={"budget": whose, "renew_time": bound.renewal.strftime("%Y-%m-%dT%H:%M:%SZ")},
        retry_after=wait.total_seconds() if wait <= _WORTH_WAITING else None,
    )
