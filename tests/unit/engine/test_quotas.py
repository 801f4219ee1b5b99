"""Which limits a run meets, and what its caller is told."""

import pytest

from famulus.v1.error_reason_pb2 import ERROR_REASON_RATE_LIMITED
from famulus.v1.run_pb2 import Run
from famulus_server.engine.policy import CallerQuotas, Policy, Quota, Tier
from famulus_server.engine.quotas import limits_of_model, limits_of_start, limits_of_turn, refusal
from famulus_server.ports import Demand, Limit, Refused

FULL = Quota(requests_per_minute=600, tokens_per_minute=60_000, concurrent_runs=4)
POLICY = Policy(
    tiers={
        "default": Tier(),
        "gold": Tier(limits=CallerQuotas(tenant=FULL, user=FULL, assistant=FULL, tenant_model=FULL)),
        "silver": Tier(limits=CallerQuotas(user=Quota(requests_per_minute=6, burst_seconds=5.0))),
    },
    tenants={"acme": "gold", "a/b": "gold", "a": "gold", "a%2Fb": "gold", "small": "silver"},
    quotas={"gpt": Quota(requests_per_minute=120, tokens_per_minute=90, burst_seconds=10.0)},
)
RUN = Run(user_id="user_1", assistant_id="asst_1")


def test_start_takes_a_request_a_place_and_a_token_of_tenant_user_and_assistant() -> None:
    assert limits_of_start(POLICY, "acme", RUN) == [
        Demand(Limit("tenant", "acme", "requests", 600, 10.0)),
        Demand(Limit("tenant", "acme", "runs", 4)),
        Demand(Limit("tenant", "acme", "tokens", 60_000, 1_000.0)),
        Demand(Limit("user", "acme/user_1", "requests", 600, 10.0)),
        Demand(Limit("user", "acme/user_1", "runs", 4)),
        Demand(Limit("user", "acme/user_1", "tokens", 60_000, 1_000.0)),
        Demand(Limit("assistant", "acme/asst_1", "requests", 600, 10.0)),
        Demand(Limit("assistant", "acme/asst_1", "runs", 4)),
        Demand(Limit("assistant", "acme/asst_1", "tokens", 60_000, 1_000.0)),
    ]


def test_run_of_no_user_meets_no_user_s_limits() -> None:
    demands = limits_of_start(POLICY, "acme", Run(assistant_id="asst_1"))
    assert {demand.limit.scope for demand in demands} == {"tenant", "assistant"}
    demands = limits_of_turn(POLICY, "acme", Run(assistant_id="asst_1"), "gpt", 10)
    assert {demand.limit.scope for demand in demands} == {"tenant", "assistant", "model", "tenant_model"}


def test_turn_takes_tokens_and_a_request_and_place_of_the_model() -> None:
    assert limits_of_turn(POLICY, "acme", RUN, "gpt", 500) == [
        Demand(Limit("tenant", "acme", "tokens", 60_000, 1_000.0), 500),
        Demand(Limit("user", "acme/user_1", "tokens", 60_000, 1_000.0), 500),
        Demand(Limit("assistant", "acme/asst_1", "tokens", 60_000, 1_000.0), 500),
        Demand(Limit("tenant_model", "acme/gpt", "requests", 600, 10.0)),
        Demand(Limit("tenant_model", "acme/gpt", "tokens", 60_000, 1_000.0), 500),
        Demand(Limit("tenant_model", "acme/gpt", "runs", 4)),
        Demand(Limit("model", "gpt", "requests", 20, 2.0)),
        Demand(Limit("model", "gpt", "tokens", 15, 1.5), 500),
    ]
    assert limits_of_model(POLICY, "gpt") == [
        Limit("model", "gpt", "requests", 20, 2.0),
        Limit("model", "gpt", "tokens", 15, 1.5),
    ]


def test_no_quota_is_no_limit() -> None:
    assert limits_of_start(POLICY, "somebody", RUN) == []
    assert limits_of_turn(POLICY, "somebody", RUN, "other", 500) == []
    assert limits_of_model(POLICY, "other") == []


def test_short_burst_is_at_least_one() -> None:
    assert limits_of_start(POLICY, "small", RUN) == [Demand(Limit("user", "small/user_1", "requests", 1, 0.1))]


def test_two_tenants_never_share_a_limit() -> None:
    callers = [("a/b", "c"), ("a", "b/c"), ("a%2Fb", "c")]
    names = [
        {
            (demand.limit.scope, demand.limit.subject)
            for demand in limits_of_turn(POLICY, tenant, Run(user_id=name, assistant_id=name), name, 1)
        }
        for tenant, name in callers
    ]
    assert not names[0] & names[1]
    assert not names[0] & names[2]
    assert not names[1] & names[2]


@pytest.mark.parametrize(
    ("limit", "subject", "name", "description", "message"),
    [
        (
            Limit("tenant", "acme", "requests", 100, 10.0),
            "tenant:acme",
            "tenant.requests_per_minute",
            "600 requests per minute",
            "the tenant's limit of 600 requests per minute is reached",
        ),
        (
            Limit("user", "acme/user_1", "runs", 4),
            "user:acme/user_1",
            "user.concurrent_runs",
            "4 concurrent runs",
            "the user's limit of 4 concurrent runs is reached",
        ),
        (
            Limit("assistant", "acme/asst_1", "tokens", 7, 100 / 60),
            "assistant:acme/asst_1",
            "assistant.tokens_per_minute",
            "100 tokens per minute",
            "the assistant's limit of 100 tokens per minute is reached",
        ),
        (
            Limit("tenant_model", "acme/gpt", "tokens", 60, 1.0),
            "tenant_model:acme/gpt",
            "tenant_model.tokens_per_minute",
            "60 tokens per minute",
            "the tenant's limit for the model of 60 tokens per minute is reached",
        ),
        (
            Limit("model", "gpt", "requests", 60, 1.0),
            "model:gpt",
            "model.requests_per_minute",
            "60 requests per minute",
            "the model's limit of 60 requests per minute is reached",
        ),
    ],
)
def test_refusal_says_whose_limit_and_how_long_to_wait(
    limit: Limit, subject: str, name: str, description: str, message: str
) -> None:
    error = refusal(Refused(limit, 1.5))
    assert error.reason == ERROR_REASON_RATE_LIMITED
    assert (error.subject, error.description, error.message) == (subject, description, message)
    assert error.metadata == {"limit": name}
    assert error.retry_after == 1.5
