"""A file and the environment become settings."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from famulus_server.config.documents import S, convert, entries, read, table
from famulus_server.config.environment import variable_of
from famulus_server.config.errors import ConfigError
from famulus_server.config.settings import SECTIONS, PriceSettings, Settings
from famulus_server.engine.policy import DEFAULT_TIER, ModelPrice, Policy, Quota, Route, Tier
from famulus_server.models.settings import ModelSettings

_TABLES = ("models", "tiers", "tenants", "routes", "prices")
# Keys of a model that may change while the server runs.
_OF_THE_POLICY = ("limits", "price")


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of a file (None: none) and the environment. Raises ConfigError."""
    source = str(path) if path else "settings"
    document = read(path) if path else {}
    for key in document:
        if key not in SECTIONS and key not in _TABLES:
            raise ConfigError(source, key, f"unknown section; there are {', '.join((*SECTIONS, *_TABLES))}")
    sections = {name: _section(kind, name, document, source, environ) for name, kind in SECTIONS.items()}
    prices = _section(PriceSettings, "prices", document, source, environ)
    models = tuple(_model(entry, key, source, environ) for key, entry in entries(document, "models", source))
    if twice := _first_twice([model.name for model in models]):
        raise ConfigError(source, "models", f"two models have the name {twice!r}")
    return Settings(models=models, policy=_policy(document, prices, source), **sections)  # type: ignore[arg-type]


def _section(kind: type[S], name: str, document: Mapping[str, Any], source: str, environ: Mapping[str, str]) -> S:
    given = convert(table(document, name, source), kind, source, name)
    for field in msgspec.structs.fields(kind):
        variable = variable_of(name, field.name)
        if variable in environ:
            # One at a time, so that a wrong value is named by its variable. A list is written as in a shell.
            text = environ[variable]
            value = _words(text, variable) if isinstance(field.default, tuple) else text
            only = convert({field.name: value}, kind, "environment", variable, from_text=True)
            given = msgspec.structs.replace(given, **{field.name: getattr(only, field.name)})
    return given


def _words(text: str, variable: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError("environment", variable, str(error)) from error


def _model(entry: Mapping[str, Any], key: str, source: str, environ: Mapping[str, str]) -> ModelSettings:
    fields = {name: value for name, value in entry.items() if name not in _OF_THE_POLICY}
    if "api_key" in fields:
        raise ConfigError(source, f"{key}.api_key", "keys do not belong in this file: use api_key_env or api_key_file")
    variable, file = fields.pop("api_key_env", None), fields.pop("api_key_file", None)
    if variable is not None and file is not None:
        raise ConfigError(source, key, "has both api_key_env and api_key_file")
    if variable is not None:
        if not environ.get(str(variable)):
            # It may be the key itself, by mistake.
            named = variable if re.fullmatch(r"[A-Z_][A-Z0-9_]*", str(variable)) else "variable of this name"
            raise ConfigError(source, f"{key}.api_key_env", f"the environment has no {named}")
        fields["api_key"] = environ[str(variable)]
    elif file is not None:
        try:
            fields["api_key"] = Path(str(file)).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(source, f"{key}.api_key_file", f"{file} cannot be read") from error
    return convert(fields, ModelSettings, source, key)


def _policy(document: Mapping[str, Any], prices: PriceSettings, source: str) -> Policy:
    """Of a document whose models are known to be right otherwise."""
    tables = table(document, "tiers", source).items()
    tiers = {DEFAULT_TIER: Tier()} | {name: convert(given, Tier, source, f"tiers.{name}") for name, given in tables}
    tenants = table(document, "tenants", source)
    for tenant, tier in tenants.items():
        if not isinstance(tier, str) or tier not in tiers:
            reason = f"there is no tier {tier!r}; there are {', '.join(tiers)}"
            raise ConfigError(source, f"tenants.{tenant}", reason)
    routes = [_route(entry, key, source) for key, entry in entries(document, "routes", source)]
    if twice := _first_twice([route.name for route in routes]):
        raise ConfigError(source, "routes", f"two routes have the name {twice!r}")
    models = list(entries(document, "models", source))
    return Policy(
        tiers=tiers,
        tenants=tenants,
        routes={route.name: route for route in routes},
        prices={
            entry["name"]: convert(entry["price"], ModelPrice, source, f"{key}.price")
            for key, entry in models
            if "price" in entry
        },
        quotas={
            entry["name"]: convert(entry["limits"], Quota, source, f"{key}.limits")
            for key, entry in models
            if "limits" in entry
        },
        currency=prices.currency,
    )


def _route(entry: Mapping[str, Any], key: str, source: str) -> Route:
    route = convert(entry, Route, source, key)
    variants = [variant.model for variant in route.variants]
    for name, models in (("variants", variants), ("fallbacks", route.fallbacks)):
        if twice := _first_twice(models):
            raise ConfigError(source, f"{key}.{name}", f"{twice!r} stands there twice")
    if not any(variant.weight for variant in route.variants):
        raise ConfigError(source, f"{key}.variants", "all weights are 0")
    # Among several variants one may well stand in for another.
    if len(variants) == 1 and variants[0] in route.fallbacks:
        raise ConfigError(source, f"{key}.fallbacks", f"{variants[0]!r} is what they stand in for")
    if route.when_down == "reply" and not route.reply:
        raise ConfigError(source, f"{key}.reply", 'when_down = "reply" needs one')
    if route.reply and route.when_down != "reply":
        raise ConfigError(source, f"{key}.reply", 'goes with when_down = "reply" only')
    return route


def _first_twice(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)
