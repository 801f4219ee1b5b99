"""What the operator allows and asks: tiers of tenants with limits and budgets, routes, prices. `config/` fills these
in; they may be exchanged while the server runs, so whoever needs them asks a `Policies` for those that hold now."""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import msgspec

# The upper bounds are beyond all use. They keep what is made of these numbers exact, in doubles and in int64.
Positive = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000_000)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Price = Annotated[float, msgspec.Meta(ge=0, le=1_000_000_000)]

Days = Annotated[float, msgspec.Meta(gt=0, le=36_500)]
# Of callers; `api/roles.py` says what each may do.
Role: TypeAlias = Literal["reader", "writer", "operator", "privacy", "tools"]

DEFAULT_TIER = "default"


class Quota(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What somebody may use. None: as much as he likes. A minute's worth may come at once, unless `burst_seconds` says
    for how many seconds' worth that holds."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_runs: Count | None = None
    burst_seconds: Positive = 60.0


class CallerQuotas(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The quotas of one tenant: of all of it, of each of its users, of each of its assistants, and of all of it with
    each model."""

    tenant: Quota = Quota()
    user: Quota = Quota()
    assistant: Quota = Quota()
    tenant_model: Quota = Quota()


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much may be spent in each calendar day or month (UTC), in units of the currency."""

    amount: Price
    period: Literal["day", "month"] = "month"


class Budgets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The budgets of one tenant: of all of it, and of each of its users. None: no bounds."""

    tenant: Budget | None = None
    user: Budget | None = None


class Retention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the threads of one tenant are kept that do not say so themselves. None: for ever. Nothing that a thread
    says keeps it for longer than `max_after_create_days`."""

    after_create_days: Days | None = None
    after_last_activity_days: Days | None = None
    on_completion: bool = False  # a thread goes once it had runs and all of them have ended
    max_after_create_days: Days | None = None


class Tier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the tenants of one tier may do, each of them."""

    weight: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 1  # of its turns, where runs of several tenants wait
    max_queued_runs: Count = 1_000  # that wait for a worker at a time
    limits: CallerQuotas = CallerQuotas()
    budgets: Budgets = Budgets()
    retention: Retention = Retention()


class Variant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that a route may choose, and how often compared with the others."""

    model: Name
    weight: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 1


class Route(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A name under which one of several models answers: a variant, always the same for a thread or a user; and where
    that is down, the first fallback that is not."""

    name: Name
    variants: Annotated[tuple[Variant, ...], msgspec.Meta(min_length=1)]
    fallbacks: tuple[Name, ...] = ()
    sticky: Literal["thread", "user"] = "thread"
    when_down: Literal["fail", "park", "reply"] = "fail"
    park_seconds: Positive = 5.0  # after which a parked run is tried again, until it expires
    reply: str = ""  # what the run answers where all are down, and `when_down` is "reply"


class ModelPrice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model costs per million tokens, in units of the currency. None: as much as those around them."""

    input: Price
    output: Price
    cached_input: Price | None = None
    reasoning: Price | None = None


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of this kind that holds at one time."""

    tiers: Mapping[str, Tier] = msgspec.field(default_factory=lambda: {DEFAULT_TIER: Tier()})
    tenants: Mapping[str, str] = {}  # the names of their tiers; all others have the default one
    routes: Mapping[str, Route] = {}
    prices: Mapping[str, ModelPrice] = {}  # by model
    quotas: Mapping[str, Quota] = {}  # by model, of all tenants together
    currency: str = "USD"

    def tier(self, tenant: str) -> Tier:
        """The tier of a tenant."""
        return self.tiers[self.tier_name(tenant)]

    def tier_name(self, tenant: str) -> str:
        """The name of the tier of a tenant."""
        return self.tenants.get(tenant, DEFAULT_TIER)


class Policies:
    """Holds the policy of this process; `current` may become another one at any time."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.current = policy or Policy()
