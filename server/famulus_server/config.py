"""Settings: one TOML file, then the environment; frozen, and checked before anything starts.

Every scalar `[section] key` can be given as FAMULUS_SECTION_KEY in the environment, which wins over the file.
Keys of models come from the environment or from files, never from the TOML file itself.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from famulus_server.engine.policy import Policy
from famulus_server.models.settings import ModelSettings

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


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set."""

    server: ServerSettings = ServerSettings()
    store: StoreSettings = StoreSettings()
    redis: RedisSettings = RedisSettings()
    worker: WorkerSettings = WorkerSettings()
    embedded: EmbeddedSettings = EmbeddedSettings()
    log: LogSettings = LogSettings()
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

    def _wanted(self, choice: str) -> bool:
        return not self.models if choice == "auto" else choice == "on"


_SECTIONS: Mapping[str, type[msgspec.Struct]] = {
    "server": ServerSettings,
    "store": StoreSettings,
    "redis": RedisSettings,
    "worker": WorkerSettings,
    "embedded": EmbeddedSettings,
    "log": LogSettings,
}


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of a file (None: none) and the environment. Raises ConfigError."""
    source = str(path) if path else "settings"
    document = _read(path) if path else {}
    for key in document:
        if key not in _SECTIONS and key != "models":
            raise ConfigError(source, key, f"unknown section; there are {', '.join(_SECTIONS)} and models")
    sections = {name: _section(kind, name, document.get(name, {}), source, environ) for name, kind in _SECTIONS.items()}
    entries = document.get("models", [])
    if not isinstance(entries, list):
        raise ConfigError(source, "models", "must be an array of tables: [[models]]")
    models = tuple(_model(entry, f"models[{index}]", source, environ) for index, entry in enumerate(entries))
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(source, "models", f"two models have the name {name!r}")
    return Settings(models=models, **sections)  # type: ignore[arg-type]


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "", f"is not TOML: {error}") from error


def _section(kind: type[S], name: str, table: Any, source: str, environ: Mapping[str, str]) -> S:
    if not isinstance(table, dict):
        raise ConfigError(source, name, f"must be a table: [{name}]")
    given = _convert(table, kind, source, name)
    for field in msgspec.structs.fields(kind):
        variable = f"FAMULUS_{name}_{field.name}".upper()
        if variable in environ:
            # One at a time, so that a wrong value is named by its variable.
            only = _convert({field.name: environ[variable]}, kind, "environment", variable, from_text=True)
            given = msgspec.structs.replace(given, **{field.name: getattr(only, field.name)})
    return given


def _model(entry: Any, key: str, source: str, environ: Mapping[str, str]) -> ModelSettings:
    if not isinstance(entry, dict):
        raise ConfigError(source, key, "must be a table: [[models]]")
    fields = dict(entry)
    if "api_key" in fields:
        raise ConfigError(source, f"{key}.api_key", "keys do not belong in this file: use api_key_env or api_key_file")
    variable, file = fields.pop("api_key_env", None), fields.pop("api_key_file", None)
    if variable is not None and file is not None:
        raise ConfigError(source, key, "has both api_key_env and api_key_file")
    if variable is not None:
        if not environ.get(str(variable)):
            raise ConfigError(source, f"{key}.api_key_env", f"the environment has no {variable}")
        fields["api_key"] = environ[str(variable)]
    elif file is not None:
        try:
            fields["api_key"] = Path(str(file)).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(source, f"{key}.api_key_file", f"{file} cannot be read") from error
    return _convert(fields, ModelSettings, source, key)


def _convert(table: Mapping[str, Any], kind: type[S], source: str, key: str, *, from_text: bool = False) -> S:
    try:
        return msgspec.convert(table, kind, strict=not from_text)
    except msgspec.ValidationError as error:
        # msgspec says: "Expected `int`, got `str` - at `$.slots`"
        reason, _, path = str(error).partition(" - at `$")
        raise ConfigError(source, key if from_text else key + path.rstrip("`"), reason) from error
