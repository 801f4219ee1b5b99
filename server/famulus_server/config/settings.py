"""All sections, as frozen settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from famulus_server.api.settings import TlsSettings
from famulus_server.embedded.local_model import MODEL_NAME as LOCAL_MODEL
from famulus_server.engine.policy import Days, Policy
from famulus_server.identity.settings import AuthSettings
from famulus_server.models.settings import ModelSettings

SCRIPTED_MODEL = "scripted"

Seconds = Annotated[float, msgspec.Meta(gt=0)]


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


SECTIONS: Mapping[str, type[msgspec.Struct]] = {
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
SCALARS: Mapping[str, type[msgspec.Struct]] = {**SECTIONS, "prices": PriceSettings}
