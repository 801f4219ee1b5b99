"""TLS on real sockets: certificates of clients, and those of the server while they are replaced."""

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from credentials import SPIFFE, Authority, Pair, Signer, bearer, dns, uri
from famulus.v1.assistant_service_pb2 import ListAssistantsRequest
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import CreateThreadRequest, GetThreadRequest
from famulus_server.api.addresses import ListenError
from famulus_server.api.settings import TlsSettings
from famulus_server.identity.settings import AuthSettings, CertificateSettings, IssuerSettings
from guarded import Guarded
from serving import Stubs, refusal

Metadata = tuple[tuple[str, str], ...]
RULES = (
    CertificateSettings(name="agent", tenant="acme", roles=("operator",), spiffe=SPIFFE),
    CertificateSettings(name="pool", tenant="other", roles=("writer",), spiffe="spiffe://example.org/ns/other/*"),
    CertificateSettings(name="batch", tenant="acme", roles=("reader",), dns="batch.acme.example"),
)


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


def tls_settings(folder: Path, ca: Authority, *, clients: bool) -> TlsSettings:
    cert, key = ca.server().write(folder, "server")
    if clients:
        (folder / "ca.crt").write_bytes(ca.pem)
    return TlsSettings(cert_file=cert, key_file=key, client_ca_file=str(folder / "ca.crt") if clients else "")


@pytest.fixture(scope="module")
def guarded(start: Callable[..., Guarded], folder: Path, ca: Authority, issuer: IssuerSettings) -> Guarded:
    return start(
        AuthSettings(certificates=RULES, issuers=(issuer,)),
        tls_settings(folder, ca, clients=True),
        health_listen="127.0.0.1:0",
    )


def credentials(ca: Authority, pair: Pair | None = None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(ca.pem, pair.key if pair else None, pair.chain if pair else None)


def list_assistants(stubs: Stubs, metadata: Metadata = ()) -> None:
    stubs.assistants.ListAssistants(ListAssistantsRequest(), metadata=metadata, timeout=10)


def code_of(guarded: Guarded, channel: grpc.ChannelCredentials | None, metadata: Metadata = ()) -> str:
    with guarded.calling(channel) as stubs:
        try:
            list_assistants(stubs, metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


NAMES: dict[str, tuple[list[x509.GeneralName], str]] = {
    "SPIFFE id": ([uri(SPIFFE)], "OK"),
    "SPIFFE id that fits": ([uri("spiffe://example.org/ns/other/any")], "OK"),
    "SPIFFE id with a segment more": ([uri("spiffe://example.org/ns/other/any/more")], "UNAUTHENTICATED"),
    "SPIFFE id with an empty segment": ([uri("spiffe://example.org/ns/other/")], "UNAUTHENTICATED"),
    "SPIFFE id with more at its end": ([uri(SPIFFE + "x")], "UNAUTHENTICATED"),
    "SPIFFE id of another domain": ([uri(SPIFFE.replace("example.org", "example.com"))], "UNAUTHENTICATED"),
    "two URIs": ([uri(SPIFFE), uri("spiffe://example.org/ns/other/any")], "UNAUTHENTICATED"),
    "SPIFFE id as a DNS name": ([dns("example.org")], "UNAUTHENTICATED"),
    "DNS name": ([dns("other.example"), dns("Batch.acme.example")], "OK"),
    "wildcard": ([dns("*.acme.example")], "UNAUTHENTICATED"),
    "no names": ([], "UNAUTHENTICATED"),
}


@pytest.mark.parametrize(("names", "code"), NAMES.values(), ids=NAMES)
def test_certificate_is_known_by_its_names(
    guarded: Guarded, ca: Authority, names: list[x509.GeneralName], code: str
) -> None:
    assert code_of(guarded, credentials(ca, ca.client(*names))) == code


def test_certificate_names_tenant_and_roles(guarded: Guarded, ca: Authority) -> None:
    with (
        guarded.calling(credentials(ca, ca.client(uri(SPIFFE)))) as acme,
        guarded.calling(credentials(ca, ca.client(uri("spiffe://example.org/ns/other/a")))) as other,
        guarded.calling(credentials(ca, ca.client(dns("batch.acme.example")))) as reader,
    ):
        thread = acme.threads.CreateThread(CreateThreadRequest(thread=Thread())).thread
        request = GetThreadRequest(thread_id=thread.id)
        assert reader.threads.GetThread(request).thread == thread
        with pytest.raises(grpc.RpcError) as caught:
            other.threads.GetThread(request)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError) as caught:
            reader.threads.CreateThread(CreateThreadRequest(thread=Thread()))
        assert refusal(caught.value).metadata == {"role": "writer"}


def test_token_goes_before_the_certificate_and_a_wrong_one_is_not_made_up_for(
    guarded: Guarded, ca: Authority, signer: Signer
) -> None:
    with guarded.calling(credentials(ca, ca.client(uri(SPIFFE)))) as stubs:
        thread = stubs.threads.CreateThread(CreateThreadRequest(thread=Thread())).thread
        request = GetThreadRequest(thread_id=thread.id)
        with pytest.raises(grpc.RpcError) as caught:
            stubs.threads.GetThread(request, metadata=bearer(signer.token(tenant="other")))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError) as caught:
            stubs.threads.GetThread(request, metadata=bearer("nonsense"))
        assert refusal(caught.value).reason == "UNAUTHENTICATED"
    stranger = credentials(ca, ca.client(dns("nobody.example")))
    assert code_of(guarded, stranger, bearer(signer.token())) == "OK"


def test_only_clients_of_the_right_ca_get_a_connection(guarded: Guarded, ca: Authority) -> None:
    foreign = Authority().client(uri(SPIFFE))
    assert code_of(guarded, credentials(ca, foreign)) == "UNAVAILABLE"
    assert code_of(guarded, credentials(ca)) == "UNAVAILABLE"
    assert code_of(guarded, credentials(ca, ca.client(uri(SPIFFE), seconds=-60))) == "UNAVAILABLE"
    assert code_of(guarded, None) == "UNAVAILABLE"
    assert code_of(guarded, credentials(Authority(), ca.client(uri(SPIFFE)))) == "UNAVAILABLE"
    assert code_of(guarded, credentials(ca, ca.client(uri(SPIFFE)))) == "OK"


def test_probes_need_no_tls_on_their_own_port_and_get_nothing_else_there(guarded: Guarded) -> None:
    address = guarded.running.health_address
    with grpc.insecure_channel(address) as channel:
        answer = HealthStub(channel).Check(HealthCheckRequest(service="readiness"))
        assert answer.status == HealthCheckResponse.SERVING
        for method in ("/famulus.v1.ThreadService/ListThreads", "/grpc.reflection.v1alpha.ServerReflection/x"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(b"")  # type: ignore[arg-type]
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("spoiled", ["server.crt", "server.key", "ca.crt"])
@pytest.mark.parametrize("how", ["missing", "no PEM"])
def test_files_that_cannot_be_used_stop_the_start(
    start: Callable[..., Guarded], tmp_path: Path, ca: Authority, issuer: IssuerSettings, spoiled: str, how: str
) -> None:
    tls = tls_settings(tmp_path, ca, clients=True)
    if how == "missing":
        (tmp_path / spoiled).unlink()
    else:
        (tmp_path / spoiled).write_text("nonsense")
    with pytest.raises(RuntimeError) as caught:
        start(AuthSettings(issuers=(issuer,)), tls)
    assert isinstance(caught.value.__cause__, ListenError)


def test_key_of_another_certificate_stops_the_start(
    start: Callable[..., Guarded], tmp_path: Path, ca: Authority, issuer: IssuerSettings
) -> None:
    tls = tls_settings(tmp_path, ca, clients=False)
    Pair(ca.server().chain, ca.server().key).write(tmp_path, "server")
    with pytest.raises(RuntimeError) as caught:
        start(AuthSettings(issuers=(issuer,)), tls)
    assert str(caught.value.__cause__) == "TLS: the key is not the certificate's"
