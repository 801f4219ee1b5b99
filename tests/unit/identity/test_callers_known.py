"""Who is known, while keys and time change."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from credentials import AUDIENCE, ISSUER, SPIFFE, Authority, Signer, jwks, uri
from famulus_server.errors import Unauthenticated, Unavailable
from famulus_server.identity.authenticator import KnownCallers
from famulus_server.identity.recent import Recent
from famulus_server.identity.settings import AuthSettings, CertificateSettings, IssuerSettings, KeySettings
from famulus_server.ports import Caller, Credentials
from unit.identity.key_server import KeyServer

SIGNER = Signer.new("one")


class HeldClock:
    """Real time, until it is moved."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    async with KeyServer().serving() as server:
        server.body = jwks(SIGNER)
        yield server


def settings(server: KeyServer, **changes: Any) -> AuthSettings:
    issuer = IssuerSettings(issuer=ISSUER, audience=AUDIENCE, jwks_url=server.url)
    return AuthSettings(issuers=(msgspec.structs.replace(issuer, **changes),))


@pytest.fixture
async def callers(server: KeyServer, clock: HeldClock) -> AsyncIterator[KnownCallers]:
    callers = KnownCallers(settings(server), clock=clock)
    await callers.open()
    yield callers
    await callers.close()


def shown(token: str) -> Credentials:
    return Credentials((f"Bearer {token}",))


async def caller_of(callers: KnownCallers, token: str) -> Caller:
    return await callers.authenticate(shown(token))


async def why_not(callers: KnownCallers, credentials: Credentials) -> str:
    """The reason in the log; the caller is told none."""
    with capture_logs() as logged, pytest.raises(Unauthenticated) as caught:
        await callers.authenticate(credentials)
    assert caught.value.message == "no valid credentials"
    for token in credentials.authorizations:
        assert token.partition(" ")[2] not in str(logged)
    return str(logged[-1]["reason"])


async def test_claims_become_the_caller(callers: KnownCallers) -> None:
    token = SIGNER.token(sub="somebody", tenant="a.b:c-d_e", roles=["reader", "unknown", "tools"], exp=4_000_000_000.5)
    assert await caller_of(callers, token) == Caller(
        "a.b:c-d_e", "somebody", frozenset({"reader", "tools"}), 4_000_000_030.5
    )


async def test_other_names_of_claims_and_several_audiences_are_understood(
    server: KeyServer, callers: KnownCallers
) -> None:
    callers.exchange(settings(server, tenant_claim="org", name_claim="client", roles_claim="https_roles"))
    token = SIGNER.token(aud=["other", AUDIENCE], org="acme", client="c", tenant="not this", https_roles=[])
    found = await caller_of(callers, token)
    assert (found.tenant, found.name, found.roles) == ("acme", "c", frozenset())


async def test_token_is_good_until_it_expires_and_as_long_as_clocks_may_differ(
    callers: KnownCallers, clock: HeldClock
) -> None:
    token = SIGNER.token()
    clock.ahead = timedelta(seconds=625)
    await caller_of(callers, token)
    clock.ahead = timedelta(seconds=631)
    assert await why_not(callers, shown(token)) == "the token has expired"
    assert await why_not(callers, shown(SIGNER.token(nbf=datetime.now(UTC).timestamp() + 670))) == (
        "the token is not valid yet"
    )


async def test_token_that_lives_too_long_is_refused(server: KeyServer, callers: KnownCallers) -> None:
    callers.exchange(settings(server, max_lifetime=3600))
    now = datetime.now(UTC).timestamp()
    await caller_of(callers, SIGNER.token(iat=now, exp=now + 3600))
    for token in (SIGNER.token(iat=now, exp=now + 3601), SIGNER.token()):
        assert await why_not(callers, shown(token)) == "the token lives too long, or does not say since when"


async def test_issuer_speaks_for_no_other_tenants_than_its_own(server: KeyServer, callers: KnownCallers) -> None:
    callers.exchange(settings(server, tenants=("acme", "acme.test")))
    assert (await caller_of(callers, SIGNER.token(tenant="acme.test"))).tenant == "acme.test"
    for tenant in ("globex", "ACME", "acme.testing"):
        token = SIGNER.token(tenant=tenant)
        assert await why_not(callers, shown(token)) == "the issuer does not speak for this tenant"


async def test_new_key_is_accepted_at_once_and_one_that_is_gone_no_more(
    server: KeyServer, callers: KnownCallers
) -> None:
    new, old_token = Signer.new("two"), SIGNER.token()
    await caller_of(callers, old_token)
    server.body = jwks(new)
    # Unknown here, so the keys are fetched.
    assert (await caller_of(callers, new.token())).tenant == "acme"
    assert server.asked == 2
    # It was verified before, with a key that is no more.
    assert await why_not(callers, shown(old_token)) == "the issuer has no such key"
    assert server.asked == 2


async def test_key_under_the_same_name_is_another_key(server: KeyServer, callers: KnownCallers) -> None:
    old_token = SIGNER.token()
    await caller_of(callers, old_token)
    server.body = jwks(Signer.new("one"), Signer.new("two"))
    await why_not(callers, shown(Signer.new("two").token()))
    assert (await why_not(callers, shown(old_token))).startswith("the signature is wrong")


async def test_known_token_is_not_verified_again(
    callers: KnownCallers, server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from famulus_server.identity import tokens

    token = SIGNER.token()
    first = await caller_of(callers, token)
    monkeypatch.setattr(tokens, "_SIGNATURES", None)
    assert await caller_of(callers, token) is first


async def test_without_keys_nobody_is_refused_for_good(clock: HeldClock, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    issuer = IssuerSettings(issuer=ISSUER, audience=AUDIENCE, jwks_file=str(file))
    callers = KnownCallers(AuthSettings(issuers=(issuer,)), clock=clock)
    await callers.open()
    with pytest.raises(Unavailable) as caught, capture_logs() as logged:
        await caller_of(callers, SIGNER.token())
    assert caught.value.retry_after == 5
    assert logged == [{"event": "caller not known, for lack of keys", "log_level": "warning", "issuer": ISSUER}]
    # Whoever does not even claim to come from there is.
    assert await why_not(callers, shown(SIGNER.token(iss="other"))) == "no such issuer"
    await callers.close()


async def test_token_that_is_too_long_is_not_looked_at(callers: KnownCallers) -> None:
    assert await why_not(callers, shown(SIGNER.token(padding="p" * 8_192))) == "the token is too long"


async def test_issuers_that_stay_keep_their_keys_and_others_are_asked_no_more(
    server: KeyServer, callers: KnownCallers
) -> None:
    token, key = SIGNER.token(), KeySettings(name="k", tenant="t", roles=(), sha256="0" * 64)
    server.status = 500
    callers.exchange(msgspec.structs.replace(settings(server), keys=(key,)))
    await caller_of(callers, token)
    assert server.asked == 1
    callers.exchange(AuthSettings(keys=(key,)))
    assert await why_not(callers, shown(token)) == "no such issuer"
    callers.exchange(settings(server))
    with pytest.raises(Unavailable):
        await caller_of(callers, token)


async def test_issuer_whose_other_settings_change_keeps_its_keys(server: KeyServer, callers: KnownCallers) -> None:
    server.status = 500
    callers.exchange(settings(server, audience="other", max_lifetime=3600))
    assert await why_not(callers, shown(SIGNER.token())) == "the token is for another audience"
    assert server.asked == 1


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "changed"])
async def test_issuer_of_before_counts_no_more_where_it_was_exchanged_while_keys_were_fetched(
    server: KeyServer, callers: KnownCallers, removed: bool
) -> None:
    new = Signer.new("two")
    server.body = jwks(SIGNER, new)
    server.reached.clear()
    server.go_on.clear()
    asking = asyncio.create_task(caller_of(callers, new.token()))
    await server.reached.wait()
    callers.exchange(AuthSettings() if removed else settings(server, audience="other"))
    server.go_on.set()
    with pytest.raises(Unauthenticated):
        await asking


async def test_certificate_is_good_until_it_expires(callers: KnownCallers, clock: HeldClock) -> None:
    rule = CertificateSettings(name="agent", tenant="acme", roles=("reader",), spiffe=SPIFFE)
    callers.exchange(AuthSettings(certificates=(rule,)))
    shown = Credentials(certificate=Authority().client(uri(SPIFFE), seconds=60).chain)
    caller = await callers.authenticate(shown)
    assert (caller.tenant, caller.name, caller.roles) == ("acme", "agent", frozenset({"reader"}))
    assert caller.expire_time is not None
    clock.ahead = timedelta(seconds=caller.expire_time) - (clock.now() - datetime.fromtimestamp(0, UTC))
    assert await why_not(callers, shown) == "the certificate has expired"
    assert "no names" in await why_not(callers, Credentials(certificate=b"nonsense"))


def test_memory_is_bounded_and_forgets_what_was_not_asked_for_longest() -> None:
    recent: Recent[int] = Recent(most=2)
    recent.keep(b"a", 1)
    recent.keep(b"b", 2)
    assert recent.get(b"a") == 1
    recent.keep(b"c", 3)
    assert [recent.get(key) for key in (b"a", b"b", b"c")] == [1, None, 3]
