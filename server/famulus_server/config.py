"""Settings: one TOML file, then the environment; frozen, and checked before anything starts.

Every scalar `[section] key` can be given as FAMULUS_SECTION_KEY in the environment, which wins over the file.
Keys of models come from the environment or from files, never from the TOML file itself.

What may change while the server runs is in `Settings.policy`; all else holds until the next start.
"""

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from famulus_server.embedded.local_model import MODEL_NAME as LOCAL_MODEL
from famulus_server.engine.policy import DEFAULT_TIER, Days, ModelPrice, Policy, Quota, Route, Tier
from famulus_server.models.settings import ModelSettings

SCRIPTED_MODEL = "scripted"

Seconds = Annotated[float, msgspec.Meta(gt=0)]
S = TypeVar("S", bound=msgspec.Struct)


class ConfigError(Exception):
    """A wrong setting: where it stands, which one, and what is wrong."""

    def __init__(self, source: str, key: str, reason: str) -> None:
        super().__init__(f"{source}: {key}: {reason}" if key else f"{source}: {reason}")


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[server]`: the gRPC server."""

    role: Literal["all", "api", "worker"] = "all"  # what this process does: answer calls, execute runs, or both
    listen: str = "127.0.0.1:7461"
    data_dir: str = ".famulus"  # the database, Valkey's files and logs of child processes
    drain_seconds: Seconds = 20.0  # how long runs at work may take to end after SIGTERM
    heartbeat_seconds: Seconds = 15.0  # of silence, after which a stream gets an empty response
    slow_consumer_seconds: Seconds = 30.0  # how long the reader of a stream may take for a response


class StoreSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[store]`: the database."""

    # PostgreSQL, which several replicas may share; empty: SQLite, which serves this process only.
    url: Annotated[str, msgspec.Meta(pattern="^$|^postgres(ql)?://")] = ""
    pool: Annotated[int, msgspec.Meta(ge=1)] = 16  # connections to PostgreSQL, at most
    path: str = ""  # SQLite file; empty: famulus.db in the data directory


class RedisSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[redis]`: Redis or Valkey."""

    # Empty: an embedded Valkey server, as a child process.
    url: Annotated[str, msgspec.Meta(pattern="^$|^(redis|rediss|unix)://")] = ""


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[worker]`: the execution of runs."""

    slots: Annotated[int, msgspec.Meta(ge=1)] = 256  # runs at a time in this process
    lease_seconds: Annotated[float, msgspec.Meta(ge=1)] = 15.0  # after which a dead worker's run is taken over


class EmbeddedSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[embedded]`: models for trying things out. `auto` means: where no `[[models]]` are configured."""

    local_model: Literal["auto", "on", "off"] = "auto"  # a small real model, as a child process
    scripted_model: Literal["auto", "on", "off"] = "auto"  # the scripted upstream, under the name "scripted"
    script: str = ""  # its script; empty: the built-in one


class LogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[log]`: the log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "text"] = "auto"  # auto: text on a terminal, JSON lines elsewhere


class PriceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[prices]`: what prices and budgets are given in."""

    currency: Annotated[str, msgspec.Meta(pattern="^[A-Z]{3}$")] = "USD"


class RetentionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[retention]`: the sweep of threads whose time is over; tiers say when that is."""

    sweep_seconds: Seconds = 60.0  # between two sweeps of this process
    tombstone_days: Days = 30.0  # how long it is known that a thread was deleted


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set."""

    server: ServerSettings = ServerSettings()
    store: StoreSettings = StoreSettings()
    redis: RedisSettings = RedisSettings()
    worker: WorkerSettings = WorkerSettings()
    embedded: EmbeddedSettings = EmbeddedSettings()
    log: LogSettings = LogSettings()
    retention: RetentionSettings = RetentionSettings()
    models: tuple[ModelSettings, ...] = ()
    policy: Policy = Policy()

    @property
    def data_dir(self) -> Path:
        """The data directory."""
        return Path(self.server.data_dir).expanduser()

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return Path(self.store.path).expanduser() if self.store.path else self.data_dir / "famulus.db"

    @property
    def with_local_model(self) -> bool:
        """Whether the local model is wanted."""
        return self._wanted(self.embedded.local_model)

    @property
    def with_scripted_model(self) -> bool:
        """Whether the scripted upstream is wanted."""
        return self._wanted(self.embedded.scripted_model)

    @property
    def embedded_models(self) -> tuple[str, ...]:
        """The names of the embedded models that are wanted."""
        wanted = {LOCAL_MODEL: self.with_local_model, SCRIPTED_MODEL: self.with_scripted_model}
        return tuple(name for name, it_is in wanted.items() if it_is)

    def _wanted(self, choice: str) -> bool:
        return not self.models if choice == "auto" else choice == "on"


_SECTIONS: Mapping[str, type[msgspec.Struct]] = {
    "server": ServerSettings,
    "store": StoreSettings,
    "redis": RedisSettings,
    "worker": WorkerSettings,
    "embedded": EmbeddedSettings,
    "log": LogSettings,
    "retention": RetentionSettings,
}
_TABLES = ("models", "tiers", "tenants", "routes", "prices")
# Keys of a model that may change while the server runs.
_OF_THE_POLICY = ("limits", "price")


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of a file (None: none) and the environment. Raises ConfigError."""
    source = str(path) if path else "settings"
    document = _read(path) if path else {}
    for key in document:
        if key not in _SECTIONS and key not in _TABLES:
            raise ConfigError(source, key, f"unknown section; there are {', '.join((*_SECTIONS, *_TABLES))}")
    sections = {name: _section(kind, name, document, source, environ) for name, kind in _SECTIONS.items()}
    prices = _section(PriceSettings, "prices", document, source, environ)
    models = tuple(_model(entry, key, source, environ) for key, entry in _entries(document, "models", source))
    if twice := _first_twice([model.name for model in models]):
        raise ConfigError(source, "models", f"two models have the name {twice!r}")
    return Settings(models=models, policy=_policy(document, prices, source), **sections)  # type: ignore[arg-type]


def variables(path: Path | None, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of the environment that the settings use, and what each of them gives. Raises ConfigError."""
    sections: Mapping[str, type[msgspec.Struct]] = {**_SECTIONS, "prices": PriceSettings}
    used = {
        _variable(name, field.name): f"[{name}] {field.name}"
        for name, kind in sections.items()
        for field in msgspec.structs.fields(kind)
        if _variable(name, field.name) in environ
    }
    document = _read(path) if path else {}
    for key, entry in _entries(document, "models", str(path)):
        if "api_key_env" in entry:
            used[str(entry["api_key_env"])] = f"the key of the model {entry.get('name', key)}"
    return used


def check(settings: Settings, *, source: str = "settings") -> None:
    """What holds of settings that a server can start with, besides what `load` checks. Raises ConfigError."""
    if settings.server.role != "all" and not settings.store.url:
        raise ConfigError("settings", "server.role", "SQLite serves one process: give [store] url, or the role all")
    for model in settings.models:
        if model.name in settings.embedded_models:
            raise ConfigError(source, "models", f"{model.name!r} is the name of an embedded model: choose another")
    names = [*settings.embedded_models, *(model.name for model in settings.models)]
    check_models(settings.policy, names, source=source)


def check_models(policy: Policy, names: Collection[str], *, source: str = "settings") -> None:
    """Whether there is a model, and each that a route may choose, where these are their names. Raises ConfigError."""
    if not names:
        raise ConfigError(source, "models", "there is no model: configure [[models]], or allow an embedded one")
    for index, route in enumerate(policy.routes.values()):
        if route.name in names:
            raise ConfigError(source, f"routes[{index}].name", f"a model has the name {route.name!r}: choose another")
        chosen = {f"variants[{at}].model": variant.model for at, variant in enumerate(route.variants)}
        spare = {f"fallbacks[{at}]": model for at, model in enumerate(route.fallbacks)}
        for key, model in {**chosen, **spare}.items():
            if model not in names:
                reason = f"there is no model {model!r}; there are {', '.join(names)}"
                raise ConfigError(source, f"routes[{index}].{key}", reason)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "", f"is not TOML: {error}") from error


def _section(kind: type[S], name: str, document: Mapping[str, Any], source: str, environ: Mapping[str, str]) -> S:
    given = _convert(_table(document, name, source), kind, source, name)
    for field in msgspec.structs.fields(kind):
        variable = _variable(name, field.name)
        if variable in environ:
            # One at a time, so that a wrong value is named by its variable.
            only = _convert({field.name: environ[variable]}, kind, "environment", variable, from_text=True)
            given = msgspec.structs.replace(given, **{field.name: getattr(only, field.name)})
    return given


def _variable(section: str, key: str) -> str:
    return f"FAMULUS_{section}_{key}".upper()


def _entries(document: Mapping[str, Any], name: str, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables of an array, each with its key."""
    entries = document.get(name, [])
    if not isinstance(entries, list):
        raise ConfigError(source, name, f"must be an array of tables: [[{name}]]")
    for index, entry in enumerate(entries):
        key = f"{name}[{index}]"
        if not isinstance(entry, dict):
            raise ConfigError(source, key, f"must be a table: [[{name}]]")
        yield key, entry


def _table(document: Mapping[str, Any], name: str, source: str) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(source, name, f"must be a table: [{name}]")
    return table


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
    return _convert(fields, ModelSettings, source, key)


def _policy(document: Mapping[str, Any], prices: PriceSettings, source: str) -> Policy:
    """Of a document whose models are known to be right otherwise."""
    tables = _table(document, "tiers", source).items()
    tiers = {DEFAULT_TIER: Tier()} | {name: _convert(table, Tier, source, f"tiers.{name}") for name, table in tables}
    tenants = _table(document, "tenants", source)
    for tenant, tier in tenants.items():
        if not isinstance(tier, str) or tier not in tiers:
            reason = f"there is no tier {tier!r}; there are {', '.join(tiers)}"
            raise ConfigError(source, f"tenants.{tenant}", reason)
    routes = [_route(entry, key, source) for key, entry in _entries(document, "routes", source)]
    if twice := _first_twice([route.name for route in routes]):
        raise ConfigError(source, "routes", f"two routes have the name {twice!r}")
    models = list(_entries(document, "models", source))
    return Policy(
        tiers=tiers,
        tenants=tenants,
        routes={route.name: route for route in routes},
        prices={
            entry["name"]: _convert(entry["price"], ModelPrice, source, f"{key}.price")
            for key, entry in models
            if "price" in entry
        },
        quotas={
            entry["name"]: _convert(entry["limits"], Quota, source, f"{key}.limits")
            for key, entry in models
            if "limits" in entry
        },
        currency=prices.currency,
    )


def _route(entry: Mapping[str, Any], key: str, source: str) -> Route:
    route = _convert(entry, Route, source, key)
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


def _convert(table: Any, kind: type[S], source: str, key: str, *, from_text: bool = False) -> S:
    try:
        return msgspec.convert(table, kind, strict=not from_text)
    except msgspec.ValidationError as error:
        # msgspec says: "Expected `int`, got `str` - at `$.slots`"
        reason, _, path = str(error).partition(" - at `$")
        raise ConfigError(source, key if from_text else key + path.rstrip("`"), reason) from error
