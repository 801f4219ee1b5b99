"""Callers with tokens and static keys, over a real socket: who is let in, and that nobody else is."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from credentials import AUDIENCE, ISSUER, Signer, bearer, claims, forged, jwks
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import CreateAssistantRequest, ListAssistantsRequest
from famulus.v1.run_service_pb2 import WatchRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import CreateThreadRequest, GetThreadRequest
from famulus_server.identity.settings import AuthSettings, IssuerSettings, KeySettings, hash_of_key
from guarded import Guarded
from serving import Refusal, Stubs, refusal

KEY = "fam_" + "k" * 43
READER_KEY = "fam_" + "r" * 43
AUTH_KEYS = (
    KeySettings(name="ci", tenant="acme", roles=("operator",), sha256=hash_of_key(KEY)),
    KeySettings(name="auditor", tenant="acme", roles=("reader",), sha256=hash_of_key(READER_KEY)),
)


@pytest.fixture(scope="module")
def guarded(start: Callable[..., Guarded], issuer: IssuerSettings) -> Guarded:
    return start(AuthSettings(issuers=(issuer,), keys=AUTH_KEYS))


@pytest.fixture(scope="module")
def stubs(guarded: Guarded) -> Iterator[Stubs]:
    with guarded.calling() as stubs:
        yield stubs


def refused(call: Callable[..., object], request: object, metadata: Any) -> Refusal:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, metadata=metadata)
    return refusal(caught.value)


def assert_unknown(told: Refusal) -> None:
    """All who are not known are told the same."""
    assert (told.code, told.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert (told.message, told.metadata, list(told.details)) == ("no valid credentials", {}, ["ErrorInfo"])


def now() -> int:
    return int(time.time())


def test_token_of_an_issuer_and_a_static_key_are_let_in(stubs: Stubs, signer: Signer) -> None:
    for shown in (bearer(signer.token()), bearer(KEY), (("authorization", f"bearer {KEY}"),)):
        stubs.assistants.ListAssistants(ListAssistantsRequest(), metadata=shown)


BAD_CLAIMS: dict[str, dict[str, Any]] = {
    "expired": {"exp": now() - 3600},
    "without exp": {"exp": None},
    "exp is a string": {"exp": str(now() + 600)},
    "exp is a boolean": {"exp": True},
    "exp is huge": {"exp": 10**400},
    "not valid yet": {"nbf": now() + 3600},
    "issued in the future": {"iat": now() + 3600},
    "nbf is a list": {"nbf": []},
    "another audience": {"aud": "somebody else"},
    "without an audience": {"aud": None},
    "audience is a number": {"aud": 7},
    "another issuer": {"iss": "https://other.example"},
    "without an issuer": {"iss": None},
    "without a tenant": {"tenant": None},
    "tenant is empty": {"tenant": ""},
    "tenant is too long": {"tenant": "t" * 129},
    "tenant has a line break": {"tenant": "acme\n"},
    "tenant is everybody": {"tenant": "*"},
    "tenant has a slash": {"tenant": "../acme"},
    "tenant is a list": {"tenant": ["acme"]},
    "without a name": {"sub": None},
    "name has a line break": {"sub": "agent\nadmin"},
    "roles are a string": {"roles": "operator"},
    "roles are numbers": {"roles": [1]},
}


@pytest.mark.parametrize("changes", BAD_CLAIMS.values(), ids=BAD_CLAIMS)
def test_token_whose_claims_are_wrong_is_not_accepted(stubs: Stubs, signer: Signer, changes: dict[str, Any]) -> None:
    shown = bearer(signer.token(**changes))
    assert_unknown(refused(stubs.assistants.ListAssistants, ListAssistantsRequest(), shown))


def crafted(signer: Signer) -> dict[str, str]:
    good = signer.token()
    header, payload, signature = good.split(".")
    other = Signer.new(signer.kid)
    return {
        "alg none": forged({"alg": "none", "kid": signer.kid}, claims()),
        "alg None": forged({"alg": "None", "kid": signer.kid}, claims()),
        "HS256 under the public key": forged({"alg": "HS256", "kid": signer.kid}, claims(), signer.public_pem),
        "algorithm of another key": Signer.new(signer.kid, "EdDSA").token(),
        "key of somebody else": other.token(),
        "unknown kid": Signer.new("other").token(),
        "without a kid": signer.token(headers={"kid": None}),
        "kid is a number": signer.token(headers={"kid": 7}),
        "without a signature": f"{header}.{payload}.",
        "signature cut": good[:-2],
        "payload exchanged": f"{header}.{signer.token(tenant='other').split('.')[1]}.{signature}",
        "critical header": signer.token(headers={"crit": ["exp"]}),
        "payload is no object": signer.token_of(b"[]"),
        "payload is deep": signer.token_of(b'{"iss":"' + ISSUER.encode() + b'","x":' + b"[" * 2_500),
        "payload is no UTF-8": signer.token_of(b'{"iss":"\xff"}'),
        "number is endless": signer.token_of(b'{"iss":"' + ISSUER.encode() + b'","exp":' + b"9" * 5_000 + b"}"),
        "two parts": f"{header}.{payload}",
        "four parts": f"{good}.{signature}",
        "no token": "nonsense",
        "dots": "..",
        "unknown static key": "fam_" + "x" * 43,
        "hash of a static key": "fam_" + hash_of_key(KEY),
        "static key with more": KEY + "x",
    }


CRAFTED = tuple(crafted(Signer.new("names only")))


@pytest.mark.parametrize("kind", CRAFTED)
def test_crafted_token_is_not_accepted(stubs: Stubs, signer: Signer, kind: str) -> None:
    assert_unknown(refused(stubs.assistants.ListAssistants, ListAssistantsRequest(), bearer(crafted(signer)[kind])))


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", ""),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        (("authorization", f"Basic {KEY}"),),
        (("authorization", KEY),),
        (("authorization", f"Bearer  {KEY}"),),
        (("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")),
        (("tenant", "acme"), ("x-tenant", "acme")),
    ],
    ids=["none", "empty", "scheme only", "no token", "other scheme", "no scheme", "two spaces", "two", "tenant only"],
)
def test_call_without_one_good_authorization_is_refused(stubs: Stubs, metadata: Any) -> None:
    assert_unknown(refused(stubs.assistants.ListAssistants, ListAssistantsRequest(), metadata))


def test_stream_is_refused_like_a_unary_call(guarded: Guarded) -> None:
    with guarded.calling() as stubs, pytest.raises(grpc.RpcError) as caught:
        next(stubs.runs.WatchRun(WatchRunRequest(run_id="r")))
    assert_unknown(refusal(caught.value))


def test_tenant_comes_from_the_credentials_and_from_nothing_else(stubs: Stubs, signer: Signer) -> None:
    thread = stubs.threads.CreateThread(CreateThreadRequest(thread=Thread()), metadata=bearer(KEY)).thread
    request = GetThreadRequest(thread_id=thread.id)
    same = stubs.threads.GetThread(request, metadata=bearer(signer.token(tenant="acme", sub="somebody")))
    assert same.thread.id == thread.id
    named = (*bearer(signer.token(tenant="other")), ("tenant", "acme"), ("x-tenant", "acme"))
    assert refused(stubs.threads.GetThread, request, named).code == grpc.StatusCode.NOT_FOUND


def test_role_that_is_missing_is_named(stubs: Stubs, signer: Signer) -> None:
    request = CreateAssistantRequest(assistant=Assistant(model="scripted"))
    for shown in (bearer(READER_KEY), bearer(signer.token(roles=["writer", "reader", "of somebody else"]))):
        told = refused(stubs.assistants.CreateAssistant, request, shown)
        assert (told.code, told.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
        assert told.metadata == {"role": "operator"}
    assert stubs.assistants.CreateAssistant(request, metadata=bearer(signer.token(roles=["operator"]))).assistant.id


@pytest.mark.parametrize("roles", [[], None, ["admin"], ["*"]])
def test_caller_without_a_role_of_ours_may_nothing(stubs: Stubs, signer: Signer, roles: list[str] | None) -> None:
    told = refused(stubs.assistants.ListAssistants, ListAssistantsRequest(), bearer(signer.token(roles=roles)))
    assert (told.code, told.metadata) == (grpc.StatusCode.PERMISSION_DENIED, {"role": "reader"})


def test_health_is_open_and_reflection_needs_a_role(guarded: Guarded, signer: Signer) -> None:
    with grpc.insecure_channel(guarded.address) as channel:
        health = HealthStub(channel)
        assert health.Check(HealthCheckRequest(service="readiness")).status == HealthCheckResponse.SERVING
        watch = health.Watch(HealthCheckRequest())
        assert next(watch).status == HealthCheckResponse.SERVING
        watch.cancel()
        reflection = ServerReflectionStub(channel).ServerReflectionInfo
        listing = ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.RpcError) as caught:
            next(reflection(iter([listing])))
        assert_unknown(refusal(caught.value))
        with pytest.raises(grpc.RpcError) as caught:
            next(reflection(iter([listing]), metadata=bearer(signer.token(roles=["privacy"]))))
        assert refusal(caught.value).code == grpc.StatusCode.PERMISSION_DENIED
        assert next(reflection(iter([listing]), metadata=bearer(READER_KEY))).list_services_response.service


def test_reflection_is_open_where_the_settings_say_so(start: Callable[..., Guarded]) -> None:
    guarded = start(AuthSettings(keys=AUTH_KEYS, open_reflection=True))
    with grpc.insecure_channel(guarded.address) as channel:
        [answer] = ServerReflectionStub(channel).ServerReflectionInfo(iter([ServerReflectionRequest(list_services="")]))
        assert answer.list_services_response.service
    with guarded.calling() as stubs:
        assert_unknown(refused(stubs.assistants.ListAssistants, ListAssistantsRequest(), ()))


@pytest.mark.parametrize("algorithm", ["RS256", "EdDSA"])
def test_other_algorithms_are_accepted_where_the_issuer_has_them(
    start: Callable[..., Guarded], tmp_path: Any, algorithm: str
) -> None:
    signer, file = Signer.new("one", algorithm), tmp_path / "keys.json"
    file.write_bytes(jwks(signer))
    issuer = IssuerSettings(issuer=ISSUER, audience=AUDIENCE, jwks_file=str(file), algorithms=(algorithm,))  # type: ignore[arg-type]
    with start(AuthSettings(issuers=(issuer,))).calling() as stubs:
        stubs.assistants.ListAssistants(ListAssistantsRequest(), metadata=bearer(signer.token()))


def test_issuer_without_keys_yet_is_told_as_a_fault_of_ours(start: Callable[..., Guarded], signer: Signer) -> None:
    issuer = IssuerSettings(issuer=ISSUER, audience=AUDIENCE, jwks_file="/nowhere/keys.json")
    guarded = start(AuthSettings(issuers=(issuer,), keys=AUTH_KEYS))
    with guarded.calling() as stubs:
        told = refused(stubs.assistants.ListAssistants, ListAssistantsRequest(), bearer(signer.token()))
        assert told.code == grpc.StatusCode.UNAVAILABLE
        assert "RetryInfo" in told.details
        # Others do not depend on it.
        stubs.assistants.ListAssistants(ListAssistantsRequest(), metadata=bearer(KEY))
