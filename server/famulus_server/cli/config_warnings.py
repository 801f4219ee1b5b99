"""Settings that are allowed, but perhaps not meant."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from famulus_server.cli.config_callers import find_warnings_of_callers
from famulus_server.config import Settings, unknown_variables
from famulus_server.encryption.key_sources import is_exposed
from famulus_server.engine.policy import DEFAULT_TIER, CallerQuotas, Route, Tier
from famulus_server.models.connection import is_loopback
from famulus_server.models.settings import ModelSettings

# A thread that fits into the largest window of a route is cut by half in the smallest.
_MUCH = 2
# With any other, whoever is on the way can have PostgreSQL's client do without TLS.
_ENCRYPTED = ("require", "verify-ca", "verify-full")


def find_warnings(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    """Each in a line of its own."""
    for variable in unknown_variables(environ):
        yield f"{variable}: no setting has this name, so it is not read"
    if settings.store.url and not settings.redis.url:
        yield "[redis] url: an embedded Valkey is no use to other replicas: they see runs of this one with a delay"
    yield from _about_ways(settings, environ)
    yield from find_warnings_of_callers(settings)
    yield from _about_upstreams(settings)
    for file in (settings.encryption.key_file, *settings.encryption.old_key_files):
        if file and is_exposed(Path(file).expanduser()):
            yield f"[encryption]: others than its owner may read {file}"
    command = settings.encryption.key_command
    if command and not shutil.which(command[0]):
        yield f"[encryption] key_command: there is no program {command[0]} here"
    yield from _about_tiers(settings)
    yield from _about_prices(settings)
    for route in settings.policy.routes.values():
        yield from _about_route(route, settings)


def _about_ways(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    query = parse_qs(urlsplit(settings.store.url).query)
    mode = query.get("sslmode", [environ.get("PGSSLMODE", "")])[-1]
    if mode not in _ENCRYPTED and (far := _far_hosts(settings.store.url)):
        yield f"[store] url: has no sslmode={_ENCRYPTED[0]} or stricter: who is on the way to {far} may read along"
    if settings.redis.url.startswith("redis:") and (far := _far_hosts(settings.redis.url)):
        yield f"[redis] url: is no rediss://: whoever is on the way to {far} reads along"


def _far_hosts(url: str) -> str:
    """The hosts of a URL that are other machines; paths are those of sockets."""
    parts = urlsplit(url)
    named = parts.netloc.rpartition("@")[2] or ",".join(parse_qs(parts.query).get("host", []))
    hosts = [urlsplit(f"//{one}").hostname or "" for one in named.split(",") if not one.startswith("/")]
    return ", ".join(host for host in hosts if host and not is_loopback(host))


def _about_upstreams(settings: Settings) -> Iterator[str]:
    for model in settings.models:
        host = urlsplit(model.base_url).hostname or ""
        if model.base_url.startswith("http:") and not is_loopback(host):
            yield f"models: {model.name} is asked over http: whoever is on the way to {host} reads along"


def _about_tiers(settings: Settings) -> Iterator[str]:
    policy = settings.policy
    if settings.auth.configured and policy.tiers[DEFAULT_TIER].limits == CallerQuotas():
        yield "tiers.default: has no limits: one caller may use up what there is for all"
    for name in policy.tiers:
        if name != DEFAULT_TIER and name not in policy.tenants.values():
            yield f"tiers.{name}: no tenant has it"


def _about_prices(settings: Settings) -> Iterator[str]:
    prices = settings.policy.prices
    bounded = [f"tiers.{name}.budgets" for name, tier in settings.policy.tiers.items() if _has_budget(tier)]
    if bounded and not prices:
        yield f"{', '.join(bounded)}: no model has a price, so nothing is ever spent"
    elif prices:
        for model in settings.models:
            if model.name not in prices:
                yield f"models: {model.name} has no price: what it does costs nothing"


def _has_budget(tier: Tier) -> bool:
    return tier.budgets.tenant is not None or tier.budgets.user is not None


def _about_route(route: Route, settings: Settings) -> Iterator[str]:
    for variant in route.variants:
        if not variant.weight:
            yield f"routes: {route.name} never chooses {variant.model}, whose weight is 0"
    named = {*(variant.model for variant in route.variants), *route.fallbacks}
    models = [model for model in settings.models if model.name in named]
    if not models:
        return
    smallest = min(models, key=lambda model: model.context_window)
    largest = max(models, key=lambda model: model.context_window)
    if largest.context_window >= _MUCH * smallest.context_window:
        yield (
            f"routes: {route.name} has context windows from {smallest.context_window:,} tokens ({smallest.name}) to "
            f"{largest.context_window:,} ({largest.name}): which messages of a thread fit depends on the model chosen"
        )
    without = [model.name for model in models if not _has_built_in_tools(model)]
    if 0 < len(without) < len(models):
        yield f"routes: {route.name} chooses models with built-in tools and without ({', '.join(without)})"


def _has_built_in_tools(model: ModelSettings) -> bool:
    return model.backend == "responses" and model.built_in_tools
