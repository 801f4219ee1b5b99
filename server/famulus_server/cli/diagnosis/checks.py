"""Which checks there are, for these settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from famulus_server.cli.diagnosis.callers import check_certificates, check_issuer
from famulus_server.cli.diagnosis.database import check_database, check_encryption
from famulus_server.cli.diagnosis.findings import Check
from famulus_server.cli.diagnosis.machine import (
    check_address,
    check_files,
    check_metrics_address,
    check_open_files,
)
from famulus_server.cli.diagnosis.redis_server import check_redis
from famulus_server.cli.diagnosis.settings import check_settings
from famulus_server.cli.diagnosis.upstreams import check_local_model, check_model
from famulus_server.config import key_sources

if TYPE_CHECKING:
    from famulus_server.cli.configuration import Configuration
    from famulus_server.config import Settings

# A model may have to be loaded first.
_ANSWER_SECONDS = 60.0


def all_checks(configuration: Configuration, settings: Settings, *, seconds: float, ask: bool) -> Iterator[Check]:
    """In the order in which they are told. Each may take `seconds`; with `ask` models have longer, and are asked for a
    word."""
    check = partial(Check, seconds=seconds)
    yield check(name="settings", look=partial(check_settings, configuration, settings, os.environ))
    yield check(name="database", look=partial(check_database, settings))
    yield check(name="encryption", look=partial(check_encryption, settings))
    yield check(name="redis", look=partial(check_redis, settings))
    keys = key_sources(configuration.file)
    for model in settings.models:
        yield Check(
            name=f"model {model.name}",
            look=partial(check_model, model, key=keys.get(model.name, ""), ask=ask),
            seconds=max(seconds, _ANSWER_SECONDS) if ask else seconds,
            when_late="The provider accepts connections and says nothing: see its log, or what stands in between.",
        )
    if settings.with_local_model:
        yield check(name="local model", look=check_local_model)
    if settings.tls.cert_file:
        yield check(name="certificate", look=partial(check_certificates, settings.tls))
    for issuer in settings.auth.issuers:
        yield check(name=f"issuer {issuer.issuer}", look=partial(check_issuer, issuer))
    yield check(name="open files", look=partial(check_open_files, settings))
    yield check(name="files", look=partial(check_files, settings))
    for key in ("listen", "health_listen"):
        if address := getattr(settings.server, key):
            yield check(name=f"address {key}", look=partial(check_address, settings, key, address))
    if address := settings.metrics.listen:
        yield check(name="address metrics", look=partial(check_metrics_address, address))
