"""The models: whether their providers are reached, take the key, and have the model behind the right API."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from famulus_server.cli.diagnosis.findings import Finding, fail, judge_clock, ok, warn

if TYPE_CHECKING:
    from famulus_server.models.inspection import ModelSight
    from famulus_server.models.settings import ModelSettings

_OTHER = {"responses": "chat", "chat": "responses"}
_REFUSED = {401, 403}
_SHOWN_NAMES = 5


async def check_model(settings: ModelSettings, *, key: str, ask: bool) -> Sequence[Finding]:
    """What its provider says; `key` tells where the key comes from, empty where there is none. With `ask` the model
    itself is asked, which costs some tokens."""
    from famulus_server.models.inspection import ModelUnreachable, inspect_model

    try:
        sight = await inspect_model(settings)
    except ModelUnreachable as error:
        remedy = "Correct base_url, or see to the way there: name, firewall, proxy, certificate."
        return [fail("", f"{_where(settings)}: {error}", remedy)]
    findings = list(_judge(settings, sight, key))
    if ask and sight.status not in _REFUSED:
        findings.append(await _ask(settings))
    return findings


async def check_local_model() -> Sequence[Finding]:
    """The embedded one: its program and its weights."""
    import importlib.util
    import os

    from famulus_server.embedded.weights import cache_dir, find_weights

    if importlib.util.find_spec("xllamacpp") is None:
        remedy = "Install famulus-server[embedded], or configure [[models]]; the scripted model answers until then."
        return [warn("", "the program of the local model is not installed (package xllamacpp)", remedy)]
    cache = cache_dir(os.environ)
    found = await asyncio.to_thread(find_weights, cache)
    if found is None:
        remedy = "Run `famulus-server models pull`; otherwise `serve` downloads them when it starts."
        return [warn("", f"there are no weights in {cache} yet", remedy)]
    return [ok("", f"weights in {found}")]


def _judge(settings: ModelSettings, sight: ModelSight, key: str) -> Iterator[Finding]:
    where = _where(settings)
    reached = f"{where} answers in {sight.took * 1_000:.0f} ms"
    if sight.status in _REFUSED:
        remedy = f"Correct the key in {key}." if key else "Give it a key: api_key_env or api_key_file in [[models]]."
        yield fail("", f"{reached}, and refuses the key (HTTP {sight.status})", remedy)
    elif sight.status == 404 and not sight.backends:
        yield fail("", f"{reached}, but has none of the APIs (HTTP 404)", _about_path(settings))
    elif sight.status == 429:
        remedy = "Wait, or see whether the account has something left."
        yield warn("", f"{reached}, and refuses more requests for now (HTTP 429)", remedy)
    elif sight.status >= 500:
        yield fail("", f"{reached}, and fails (HTTP {sight.status})", "See its provider's status page, or its log.")
    elif 300 <= sight.status < 400:
        yield fail("", f"{reached}, and sends us elsewhere (HTTP {sight.status})", "Put that address into base_url.")
    else:
        yield ok("", reached)
        yield from _of_backend(settings, sight)
        yield _of_name(settings, sight)
    if sight.clock_ahead is not None:
        yield judge_clock(sight.clock_ahead, whose="the provider's clock")


def _about_path(settings: ModelSettings) -> str:
    if urlsplit(settings.base_url).path.rstrip("/").endswith("/v1"):
        return "Correct the path in base_url."
    return "Correct base_url: most end in /v1, and this one does not."


def _of_backend(settings: ModelSettings, sight: ModelSight) -> Iterator[Finding]:
    mine, other = settings.backend, _OTHER[settings.backend]
    if mine in sight.backends:
        yield ok("backend", f"{mine}, which is there")
    elif other in sight.backends:
        yield fail("backend", f"{mine}, which it does not have, but {other}", f'Say backend = "{other}".')
    else:
        yield fail("backend", f"it has neither {mine} nor {other}", _about_path(settings))


def _of_name(settings: ModelSettings, sight: ModelSight) -> Finding:
    wanted = settings.upstream_model or settings.name
    if sight.offered is None:
        return ok("name", f"{wanted}; the provider does not list what it has")
    if wanted in sight.offered:
        return ok("name", f"{wanted}, which it lists")
    names = ", ".join(sorted(sight.offered)[:_SHOWN_NAMES]) or "none"
    more = f" and {len(sight.offered) - _SHOWN_NAMES} more" if len(sight.offered) > _SHOWN_NAMES else ""
    return warn("name", f"{wanted} is not among those it lists: {names}{more}", "Give upstream_model the right name.")


async def _ask(settings: ModelSettings) -> Finding:
    from famulus_server.errors import ModelError
    from famulus_server.models.inspection import ask_model

    try:
        answer = await ask_model(settings)
    except ModelError as error:
        return fail("answer", f"asked for a word, it failed: {error}", "The server's log would say the same.")
    if not answer.text:
        remedy = "A model that only reasoned may need more tokens; otherwise try it with `famulus-server chat`."
        return warn("answer", "asked for a word, it said nothing", remedy)
    counted = f"{answer.tokens} tokens" if answer.tokens else "an untold number of tokens"
    return ok("answer", f"the first word came after {(answer.first_text or 0) * 1_000:.0f} ms; {counted} used")


def _where(settings: ModelSettings) -> str:
    from famulus_server.cli.config_explanation import without_password

    return without_password(settings.base_url)
