"""Settings: one TOML file, then the environment; frozen, and checked before anything starts.

Every scalar `[section] key` can be given as FAMULUS_SECTION_KEY in the environment, which wins over the file.
Keys of models come from the environment or from files, never from the TOML file itself.

What may change while the server runs is in `Settings.policy`; all else holds until the next start.
"""

import re
import shlex
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from famulus_server.api.settings import TlsSettings
from famulus_server.embedded.local_model import MODEL_NAME as LOCAL_MODEL
from famulus_server.encryption.errors import KeyUnusable
from famulus_server.encryption.key_sources import read_key
from famulus_server.engine.policy import DEFAULT_TIER, Days, ModelPrice, Policy, Quota, Route, Tier
from famulus_server.identity.settings import AuthSettings, KeySettings, find_fault
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
    # A second port without TLS, for health alone; empty: none.
    health_listen: Annotated[str, msgspec.Meta(pattern=r"^$|^.+:\d{1,5}\Z")] = ""


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


class EncryptionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[encryption]`: of what the database and Redis keep of conversations. Without a key there is none."""

    key_file: str = ""  # with the operator's key
    key_command: tuple[str, ...] = ()  # program and arguments; prints the key
    old_key_files: tuple[str, ...] = ()  # earlier keys, until no data key is wrapped by them
    scope: Literal["tenant", "thread"] = "tenant"  # what has a data key of its own

    @property
    def is_on(self) -> bool:
        """Whether there is a key."""
        return bool(self.key_file or self.key_command)


class LogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[log]`: the log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "text"] = "auto"  # auto: text on a terminal, JSON lines elsewhere


class MetricsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[metrics]`: what Prometheus asks for."""

    # Over HTTP, to anybody who can reach it; empty: nowhere.
    listen: Annotated[str, msgspec.Meta(pattern=r"^$|^.+:\d{1,5}\Z")] = "127.0.0.1:9464"


class AuditSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[audit]`: the log of who did what, in the database."""

    # changes: calls that may change something, and refusals for who the caller is; all: those that read as well.
    calls: Literal["changes", "all", "off"] = "changes"


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
    auth: AuthSettings = AuthSettings()
    tls: TlsSettings = TlsSettings()
    store: StoreSettings = StoreSettings()
    redis: RedisSettings = RedisSettings()
    worker: WorkerSettings = WorkerSettings()
    embedded: EmbeddedSettings = EmbeddedSettings()
    encryption: EncryptionSettings = EncryptionSettings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    audit: AuditSettings = AuditSettings()
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
    "auth": AuthSettings,
    "tls": TlsSettings,
    "store": StoreSettings,
    "redis": RedisSettings,
    "worker": WorkerSettings,
    "embedded": EmbeddedSettings,
    "encryption": EncryptionSettings,
    "log": LogSettings,
    "metrics": MetricsSettings,
    "audit": AuditSettings,
    "retention": RetentionSettings,
}
# Those whose keys can also be given in the environment.
_SCALARS: Mapping[str, type[msgspec.Struct]] = {**_SECTIONS, "prices": PriceSettings}
# What Kubernetes sets in every pod for a service whose name begins with ours.
_OF_A_KUBERNETES_SERVICE = re.compile(r"_(SERVICE_HOST|SERVICE_PORT\w*|PORT|PORT_\d+_(TCP|UDP|SCTP)\w*)$")
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
    used = {
        _variable(name, field.name): f"[{name}] {field.name}"
        for name, kind in _SCALARS.items()
        for field in msgspec.structs.fields(kind)
        if _variable(name, field.name) in environ
    }
    document = _read(path) if path else {}
    for key, entry in _entries(document, "models", str(path)):
        if "api_key_env" in entry:
            used[str(entry["api_key_env"])] = f"the key of the model {entry.get('name', key)}"
    return used


def key_sources(path: Path | None) -> dict[str, str]:
    """Where the keys of models come from, by the models' names; no key has none. Raises ConfigError."""
    document = _read(path) if path else {}
    kinds = {"api_key_env": "the variable", "api_key_file": "the file"}
    return {
        str(entry.get("name")): f"{words} {entry[kind]}"
        for _, entry in _entries(document, "models", str(path))
        for kind, words in kinds.items()
        if kind in entry
    }


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """The variables of the environment that look like settings of a section, and are none."""
    known = {_variable(name, field.name) for name, kind in _SCALARS.items() for field in msgspec.structs.fields(kind)}
    sections = tuple(f"FAMULUS_{name}_".upper() for name in _SCALARS)
    return sorted(
        name
        for name in environ
        if name.startswith(sections) and name not in known and not _OF_A_KUBERNETES_SERVICE.search(name)
    )


def check(settings: Settings, *, source: str = "settings") -> None:
    """What holds of settings that a server can start with, besides what `load` checks. Raises ConfigError."""
    if settings.server.role != "all" and not settings.store.url:
        raise ConfigError("settings", "server.role", "SQLite serves one process: give [store] url, or the role all")
    server, metrics = settings.server, settings.metrics
    taken = {server.listen: "server.listen"}
    for key, listen in {"server.health_listen": server.health_listen, "metrics.listen": metrics.listen}.items():
        if listen and not listen.endswith(":0") and (other := taken.setdefault(listen, key)) != key:
            raise ConfigError(source, key, f"is the address of {other}: choose another port")
    _check_access(settings, source)
    _check_encryption(settings.encryption, source)
    for model in settings.models:
        if model.name in settings.embedded_models:
            raise ConfigError(source, "models", f"{model.name!r} is the name of an embedded model: choose another")
    for key, url in (("store.url", settings.store.url), ("redis.url", settings.redis.url)):
        if not _has_valid_port(url):
            raise ConfigError(source, key, "its port is no number from 0 to 65535")
    names = [*settings.embedded_models, *(model.name for model in settings.models)]
    check_models(settings.policy, names, source=source)


def check_key(entry: Mapping[str, Any]) -> None:
    """Whether `[[auth.keys]]` can have this entry. Raises ConfigError."""
    _convert(entry, KeySettings, "command line", "auth.keys")


def _check_access(settings: Settings, source: str) -> None:
    auth, tls = settings.auth, settings.tls
    if fault := find_fault(auth):
        raise ConfigError(source, f"auth.{fault[0]}", fault[1])
    if bool(tls.cert_file) != bool(tls.key_file):
        raise ConfigError(source, "tls", "cert_file and key_file go together")
    if tls.client_ca_file and not tls.cert_file:
        raise ConfigError(source, "tls.client_ca_file", "needs cert_file and key_file, too")
    if auth.certificates and not tls.client_ca_file:
        raise ConfigError(source, "auth.certificates", "need [tls] client_ca_file: without it clients show none")


def _check_encryption(encryption: EncryptionSettings, source: str) -> None:
    if encryption.key_file and encryption.key_command:
        raise ConfigError(source, "encryption", "has both key_file and key_command")
    if encryption.old_key_files and not encryption.is_on:
        raise ConfigError(source, "encryption.old_key_files", "goes with key_file or key_command only")


def check_key_files(encryption: EncryptionSettings, *, source: str = "settings") -> None:
    """Whether the files of keys have some. Raises ConfigError."""
    files = {"key_file": encryption.key_file} if encryption.key_file else {}
    files |= {f"old_key_files[{at}]": file for at, file in enumerate(encryption.old_key_files)}
    for key, file in files.items():
        try:
            read_key(Path(file).expanduser())
        except KeyUnusable as error:
            raise ConfigError(source, f"encryption.{key}", str(error)) from error


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


def _has_valid_port(url: str) -> bool:
    # PostgreSQL's may have several.
    try:
        for host in urlsplit(url).netloc.rpartition("@")[2].split(","):
            _ = urlsplit(f"//{host}").port
    except ValueError:
        return False
    return True


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
            # One at a time, so that a wrong value is named by its variable. A list is written as in a shell.
            text = environ[variable]
            value = _words(text, variable) if isinstance(field.default, tuple) else text
            only = _convert({field.name: value}, kind, "environment", variable, from_text=True)
            given = msgspec.structs.replace(given, **{field.name: getattr(only, field.name)})
    return given


def _words(text: str, variable: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError("environment", variable, str(error)) from error


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
