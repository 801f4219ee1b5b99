"""Settings: one TOML file, then the environment; frozen, and checked before anything starts.

Every scalar `[section] key` can be given as FAMULUS_SECTION_KEY in the environment, which wins over the file.
Keys of models come from the environment or from files, never from the TOML file itself.

What may change while the server runs is in `Settings.policy`; all else holds until the next start.
"""

from famulus_server.config.checks import (
    check,
    check_key,
    check_key_files,
    check_models,
)
from famulus_server.config.environment import (
    key_sources,
    unknown_variables,
    variables,
)
from famulus_server.config.errors import (
    ConfigError,
)
from famulus_server.config.loading import (
    load,
)
from famulus_server.config.settings import (
    SCRIPTED_MODEL,
    AuditSettings,
    EmbeddedSettings,
    EncryptionSettings,
    LogSettings,
    MetricsSettings,
    PriceSettings,
    RedisSettings,
    RetentionSettings,
    ServerSettings,
    Settings,
    StoreSettings,
    WorkerSettings,
)

__all__ = [
    "SCRIPTED_MODEL",
    "AuditSettings",
    "ConfigError",
    "EmbeddedSettings",
    "EncryptionSettings",
    "LogSettings",
    "MetricsSettings",
    "PriceSettings",
    "RedisSettings",
    "RetentionSettings",
    "ServerSettings",
    "Settings",
    "StoreSettings",
    "WorkerSettings",
    "check",
    "check_key",
    "check_key_files",
    "check_models",
    "key_sources",
    "load",
    "unknown_variables",
    "variables",
]
