"""What settings mean, in plain words, without keys and passwords."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from famulus_server.cli.config_callers import explain_callers
from famulus_server.config import EncryptionSettings, Settings
from famulus_server.engine.policy import DEFAULT_TIER, Budget, CallerQuotas, ModelPrice, Policy, Quota, Retention, Route
from famulus_server.models.settings import ModelSettings

_ROLES = {
    "all": "Answers calls and executes runs",
    "api": "Answers calls, and leaves runs to workers",
    "worker": "Executes runs, and answers health checks only",
}
_NOTED = {
    "changes": "Notes calls that may change something, and all that were refused for who the caller is.",
    "all": "Notes all calls, those that read as well.",
    "off": "Notes nothing.",
}
_WHOSE = {"tenant": "each tenant", "user": "each user", "assistant": "each assistant"}
_WHOSE_LIMITS = {**_WHOSE, "tenant_model": "each tenant with each model"}
_USUAL_BURST = Quota().burst_seconds
_INDENT = "    "


def explain(settings: Settings, variables: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Topics, each with its lines. `variables` are those of the environment that are used, with what they give."""
    policy = settings.policy
    yield "Server", list(_server(settings))
    yield "Callers", list(explain_callers(settings))
    yield "Store", [_store(settings)]
    yield "Redis", [_redis(settings)]
    yield "Encryption", [_encryption(settings.encryption)]
    yield "Models", list(_models(settings))
    yield "Routes", [line for route in policy.routes.values() for line in _route(route)] or ["none"]
    yield "Tiers", list(_tiers(policy))
    yield "Budgets", list(_budgets(policy)) or ["none"]
    yield "Metrics", [_metrics(settings)]
    yield "Audit", [_NOTED[settings.audit.calls]]
    yield "Retention", list(_retention(settings))
    yield "Log", [f"From the level {settings.log.level}, in the format {settings.log.format}."]
    yield "From the environment", [f"{name}: {what}" for name, what in variables.items()] or ["nothing"]


def without_password(url: str) -> str:
    """The URL as it may be shown. A provider's has no user that anybody needs to see; parameters may hold anything."""
    scheme, separator, rest = url.partition("://")
    who, at, where = rest.rpartition("@")
    user, colon, _ = who.partition(":")
    shown = "***" if scheme.startswith("http") and at else user + (colon and ":***")
    return scheme + separator + shown + at + where.partition("?")[0]


def _server(settings: Settings) -> Iterator[str]:
    server, worker = settings.server, settings.worker
    yield f"{_ROLES[server.role]}; listens on {server.listen}."
    yield f"Keeps its files in {settings.data_dir}."
    if server.role != "api":
        yield f"Executes {_number(worker.slots)} runs at a time; leases of {_seconds(worker.lease_seconds)}."
    yield f"Told to stop, it gives runs at work {_seconds(server.drain_seconds)} to end."
    yield (
        f"Streams: a heartbeat after {_seconds(server.heartbeat_seconds)} of silence; a reader may take "
        f"{_seconds(server.slow_consumer_seconds)} for a response."
    )


def _store(settings: Settings) -> str:
    store = settings.store
    if store.url:
        return f"PostgreSQL at {without_password(store.url)}, with {_number(store.pool)} connections at most."
    return f"SQLite, in the file {settings.database}, for this process only."


def _redis(settings: Settings) -> str:
    url = settings.redis.url
    return f"Redis or Valkey at {without_password(url)}." if url else "An embedded Valkey server, as a child process."


def _encryption(encryption: EncryptionSettings) -> str:
    if not encryption.is_on:
        return "None: the database and Redis hold what is said as it is."
    source = f"in {encryption.key_file}" if encryption.key_file else f"that {encryption.key_command[0]} prints"
    old = f", and {len(encryption.old_key_files)} earlier ones" if encryption.old_key_files else ""
    return f"AES-256-GCM, with a data key for each {encryption.scope}, wrapped by the key {source}{old}."


def _metrics(settings: Settings) -> str:
    listen = settings.metrics.listen
    return f"At http://{listen}/metrics, for anybody who can reach it." if listen else "Served nowhere."


def _models(settings: Settings) -> Iterator[str]:
    policy = settings.policy
    for name in settings.embedded_models:
        yield f"{name}: comes with the server"
    for model in settings.models:
        yield f"{model.name}: {_model(model)}"
        if price := policy.prices.get(model.name):
            yield f"{_INDENT}price per million tokens: {_price(price, policy.currency)}"
        if limits := _quota(policy.quotas.get(model.name, Quota())):
            yield f"{_INDENT}limits, for all callers together: {limits}"


def _model(model: ModelSettings) -> str:
    api = "the Responses API" if model.backend == "responses" else "Chat Completions"
    upstream = f"{model.upstream_model} by " if model.upstream_model else ""
    key = "a key" if model.api_key else "no key"
    where = without_password(model.base_url)
    return f"{upstream}{api} at {where}, with {key}; {_number(model.context_window)} tokens of context"


def _price(price: ModelPrice, currency: str) -> str:
    parts = {
        "in": price.input,
        "of them cached": price.cached_input,
        "out": price.output,
        "of them reasoning": price.reasoning,
    }
    return ", ".join(f"{_number(value)} {currency} {what}" for what, value in parts.items() if value is not None)


def _route(route: Route) -> Iterator[str]:
    whole = sum(variant.weight for variant in route.variants)
    shares = (f"{_number(round(100 * one.weight / whole, 2))} % {one.model}" for one in route.variants)
    yield f"{route.name}: {', '.join(shares)}; always the same for one {route.sticky}"
    if route.fallbacks:
        yield f"{_INDENT}where that is down: {', then '.join(route.fallbacks)}"
    ends = {
        "fail": "the run fails",
        "park": f"the run waits, and tries again every {_seconds(route.park_seconds)} until it expires",
        "reply": f"the run answers {route.reply!r}, marked as degraded",
    }
    yield f"{_INDENT}where all are down: {ends[route.when_down]}"


def _tiers(policy: Policy) -> Iterator[str]:
    for name, tier in policy.tiers.items():
        tenants = [tenant for tenant, of in policy.tenants.items() if of == name]
        whose = ", ".join([*tenants, "all tenants that have no other"] if name == DEFAULT_TIER else tenants) or "nobody"
        yield f"{name}: {whose}; weight {tier.weight}, at most {_number(tier.max_queued_runs)} runs wait for a worker"
        limits = list(_limits(tier.limits)) or ["no limits"]
        yield from (_INDENT + line for line in limits)


def _limits(limits: CallerQuotas) -> Iterator[str]:
    for name, whose in _WHOSE_LIMITS.items():
        if words := _quota(getattr(limits, name)):
            yield f"{whose}: {words}"


def _quota(quota: Quota) -> str:
    """Empty: no limits."""
    rates = {"requests": quota.requests_per_minute, "tokens": quota.tokens_per_minute}
    words = [f"{_number(most)} {what} a minute" for what, most in rates.items() if most]
    if words and quota.burst_seconds != _USUAL_BURST:
        words[-1] += f" ({_seconds(quota.burst_seconds)}' worth at once)"
    if quota.concurrent_runs:
        words.append(f"{_number(quota.concurrent_runs)} runs at a time")
    return ", ".join(words)


def _budgets(policy: Policy) -> Iterator[str]:
    for name, tier in policy.tiers.items():
        budgets = {"each tenant": tier.budgets.tenant, "each user": tier.budgets.user}
        words = [f"{whose} {_budget(one, policy.currency)}" for whose, one in budgets.items() if one]
        if words:
            yield f"{name}: {', '.join(words)}"


def _retention(settings: Settings) -> Iterator[str]:
    sweep = settings.retention
    yield (
        f"Looks every {_seconds(sweep.sweep_seconds)} for threads whose time is over; ids of deleted ones are kept for "
        f"{_days(sweep.tombstone_days)}."
    )
    for name, tier in settings.policy.tiers.items():
        yield f"{name}: {_kept(tier.retention)}"


def _kept(retention: Retention) -> str:
    own = {"its creation": retention.after_create_days, "its last activity": retention.after_last_activity_days}
    ends = [f"{_days(days)} after {event}" for event, days in own.items() if days]
    if retention.on_completion:
        ends.append("with its last run")
    words = f"a thread goes {' or '.join(ends)}" if ends else "a thread is kept for ever"
    words += ", unless it says otherwise"
    if retention.max_after_create_days:
        words += f"; {_days(retention.max_after_create_days)} after its creation in any case"
    return words


def _budget(budget: Budget, currency: str) -> str:
    return f"{_number(budget.amount)} {currency} a {budget.period}"


def _seconds(value: float) -> str:
    return f"{_number(value)} s"


def _days(value: float) -> str:
    return f"{_number(value)} days"


def _number(value: float) -> str:
    """With as many decimals as it has."""
    return f"{value:,.9f}".rstrip("0").rstrip(".")
