"""Which checks there are, for these settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from famulus_server.cli.diagnosis.callers import check_certificates, check_issuer
from famulus_server.cli.diagnosis.database import check_database, check_encryption
from famulus_server.cli.diagnosis.findings import Check
from famulus_server.cli.diagnosis.machine import check_address, check_files, check_open_files
from famulus_server.cli.diagnosis.redis_server import check_redis
from famulus_server.cli.diagnosis.settings import check_settings
from famulus_server.cli.diagnosis.upstreams import check_local_model, check_model
from famulus_server.config import key_sources

if TYPE_CHECKING:
    from famulus_server.cli.configuration import Configuration
    from famulus_server.config import Settings

# The SDK alone takes 1-2 s to import, on a busy machine more.
_MODEL_SECONDS = 15.0
# A model may have to be loaded first.
_ANSWER_SECONDS = 60.0
_KEY_COMMAND_SECONDS = 10.0


def all_checks(configuration: Configuration, settings: Settings, *, ask: bool) -> Iterator[Check]:
    """In the order in which they are told."""
    yield Check(name="settings", look=partial(check_settings, configuration, settings, os.environ))
    yield Check(name="database", look=partial(check_database, settings))
    yield Check(name="encryption", look=partial(check_encryption, settings), seconds=_KEY_COMMAND_SECONDS)
    yield Check(name="redis", look=partial(check_redis, settings))
    keys = key_sources(configuration.file)
    for model in settings.models:
        yield Check(
            name=f"model {model.name}",
            look=partial(check_model, model, key=keys.get(model.name, ""), ask=ask),
            seconds=_ANSWER_SECONDS if ask else _MODEL_SECONDS,
            when_late="The provider accepts connections and says nothing: see its log, or what stands in between.",
        )
    if settings.with_local_model:
        yield Check(name="local model", look=check_local_model)
    if settings.tls.cert_file:
        yield Check(name="certificate", look=partial(check_certificates, settings.tls))
    for issuer in settings.auth.issuers:
        yield Check(name=f"issuer {issuer.issuer}", look=partial(check_issuer, issuer), seconds=_MODEL_SECONDS)
    yield Check(name="open files", look=partial(check_open_files, settings))
    yield Check(name="files", look=partial(check_files, settings))
    for key in ("listen", "health_listen"):
        if address := getattr(settings.server, key):
            yield Check(name=f"address {key}", look=partial(check_address, settings, key, address))
