"""Which limits a run meets, and what its caller is told where one of them is reached (contract 26)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from famulus.v1.error_reason_pb2 import ERROR_REASON_RATE_LIMITED
from famulus.v1.run_pb2 import Run
from famulus_server.engine.policy import Policy, Quota
from famulus_server.errors import ResourceExhausted
from famulus_server.ports import Demand, Limit, Quantity, Refused, Scope

_WHOSE: Mapping[Scope, str] = MappingProxyType(
    {
        "tenant": "the tenant's limit",
        "user": "the user's limit",
        "assistant": "the assistant's limit",
        "model": "the model's limit",
        "tenant_model": "the tenant's limit for the model",
    }
)
_NO_QUOTA = Quota()
# More places than there are runs.
_UNBOUNDED = 1_000_000_000


def limits_starts(policy: Policy, tenant: str) -> bool:
    """Whether any run of a tenant could meet a limit when it is created."""
    whole = policy.tier(tenant).limits
    quotas = (whole.tenant, whole.user, whole.assistant)
    limits = ((one.requests_per_minute, one.tokens_per_minute, one.concurrent_runs) for one in quotas)
    return any(limit is not None for one in limits for limit in one)


def limits_of_start(policy: Policy, tenant: str, run: Run, *, replaced: Run | None = None) -> list[Demand]:
    """What a run takes when it is created: a request, a place and a token of its tenant, user and assistant: without
    a token it would only wait. Where the run that it replaces has a place, it needs no free one: that place is about to
    be given back."""
    held = [] if replaced is None else places_of(policy, tenant, replaced)
    return [
        Demand(replace(limit, most=_UNBOUNDED) if limit in held else limit)
        for scope, subject, quota in _callers(policy, tenant, run)
        for limit in _limits(scope, subject, quota, ("requests", "runs", "tokens"))
    ]


def places_of(policy: Policy, tenant: str, run: Run) -> list[Limit]:
    """The limits of runs in which a run holds a place from its start to its end."""
    return [
        limit
        for scope, subject, quota in _callers(policy, tenant, run)
        for limit in _limits(scope, subject, quota, ("runs",))
    ]


def limits_of_turn(policy: Policy, tenant: str, run: Run, model: str, tokens: int) -> list[Demand]:
    """What one model turn takes that may need so many tokens: these, and a request and a place of the model."""
    demands = [
        Demand(limit, tokens)
        for scope, subject, quota in _callers(policy, tenant, run)
        for limit in _limits(scope, subject, quota, ("tokens",))
    ]
    models: Sequence[tuple[Scope, str, Quota]] = (
        ("tenant_model", within(tenant, model), policy.tier(tenant).limits.tenant_model),
        ("model", model, policy.quotas.get(model, _NO_QUOTA)),
    )
    demands += [
        Demand(limit, tokens if limit.quantity == "tokens" else 1)
        for scope, subject, quota in models
        for limit in _limits(scope, subject, quota, ("requests", "tokens", "runs"))
    ]
    return demands


def limits_of_model(policy: Policy, model: str) -> list[Limit]:
    """The limits of a model, which its provider keeps as well: requests and tokens."""
    return list(_limits("model", model, policy.quotas.get(model, _NO_QUOTA), ("requests", "tokens")))


def refusal(refused: Refused) -> ResourceExhausted:
    """What the caller is told. A model's limit is that of all tenants together, and names none of them."""
    limit = refused.limit
    if limit.quantity == "runs":
        name, amount = "concurrent_runs", f"{limit.most} concurrent runs"
    else:
        name, amount = f"{limit.quantity}_per_minute", f"{round(limit.per_second * 60)} {limit.quantity} per minute"
    return ResourceExhausted(
        ERROR_REASON_RATE_LIMITED,
        f"{_WHOSE[limit.scope]} of {amount} is reached",
        subject=f"{limit.scope}:{limit.subject}",
        description=amount,
        metadata={"limit": f"{limit.scope}.{name}"},
        retry_after=refused.retry_after,
    )


def _callers(policy: Policy, tenant: str, run: Run) -> Iterator[tuple[Scope, str, Quota]]:
    quotas = policy.tier(tenant).limits
    yield "tenant", tenant, quotas.tenant
    if run.user_id:
        yield "user", within(tenant, run.user_id), quotas.user
    yield "assistant", within(tenant, run.assistant_id), quotas.assistant


def _limits(scope: Scope, subject: str, quota: Quota, quantities: Sequence[Quantity]) -> Iterator[Limit]:
    per_minute: Mapping[Quantity, int | None] = {
        "requests": quota.requests_per_minute,
        "tokens": quota.tokens_per_minute,
    }
    for quantity in quantities:
        if quantity == "runs":
            if quota.concurrent_runs is not None:
                yield Limit(scope, subject, "runs", quota.concurrent_runs)
        elif (rate := per_minute[quantity]) is not None:
            yield Limit(scope, subject, quantity, max(1, int(rate * quota.burst_seconds / 60)), rate / 60)


def within(tenant: str, name: str) -> str:
    """Something of a tenant's, as limits and budgets name it."""
    # Two tenants never have the same subject, whatever is in their names.
    escaped = tenant.replace("%", "%25").replace("/", "%2F")
    return f"{escaped}/{name}"
