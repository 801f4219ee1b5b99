//! Errors, waiting, and connections.
#![cfg(feature = "server")]
#![allow(missing_docs)]

mod scripted;

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use famulus::v1::{CreateRunRequest, ErrorReason, GetRunRequest, RunState};
use famulus::{Client, ClientConfig, Error, RetryPolicy, Tls, Violation};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use scripted::story::*;
use scripted::{Act, Scripted, quick, read, refusal, soon};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};
use tonic::{Code, Status};

#[test]
fn errors_say_what_the_service_says() {
    let told = Duration::from_millis(1500);
    let error = Error::from(refusal(Code::InvalidArgument, "INVALID_FIELD", Some(told)));
    assert_eq!((error.code(), error.message()), (Code::InvalidArgument, "as planned"));
    assert_eq!((error.reason(), error.reason_name()), (ErrorReason::InvalidField, "INVALID_FIELD"));
    assert_eq!(error.metadata()["key"], "value");
    let wrong = Violation { field: "assistant.name".into(), description: "is too long".into() };
    assert_eq!((error.violations(), error.retry_after()), (&[wrong][..], Some(told)));
    assert_eq!(error.to_string(), "InvalidArgument / INVALID_FIELD: as planned");
}

#[test]
fn a_reason_of_a_newer_version_keeps_its_name() {
    let error = Error::from(refusal(Code::Aborted, "TOO_NEW", None));
    assert_eq!((error.reason(), error.reason_name()), (ErrorReason::Unspecified, "TOO_NEW"));
}

#[test]
fn damaged_details_cost_nothing_but_the_details() {
    let error = Error::from(Status::with_details(Code::NotFound, "no such run", vec![0xff, 0x01].into()));
    assert_eq!((error.code(), error.message(), error.reason_name()), (Code::NotFound, "no such run", ""));
}

#[tokio::test]
async fn a_run_is_waited_for_through_outages_and_deadlines() {
    let server = Scripted::serve(vec![]).await;
    server.set_run(run(RunState::Completed, 6));
    // OK stands for a call that is not answered: its deadline passes.
    let passed = Status::deadline_exceeded("passed");
    server.fail_waits(vec![Status::unavailable("gone"), passed, Status::ok("hangs"), Status::ok("hangs")]);
    let policy = RetryPolicy { silence: Duration::from_millis(30), ..quick() };
    let client = Client::connect(ClientConfig::new(server.address.to_string()).retry(policy)).unwrap();
    let result = soon(client.wait_run(RUN_ID)).await.unwrap();
    assert_eq!((result.run.state(), result.text().as_str()), (RunState::Completed, "Done."));
}

#[tokio::test]
async fn a_wait_ends_with_a_refusal() {
    let server = Scripted::serve(vec![]).await;
    server.fail_waits(vec![refusal(Code::NotFound, "RESOURCE_NOT_FOUND", None)]);
    let error = soon(server.client().wait_run("run_none")).await.unwrap_err();
    assert_eq!(error.reason(), ErrorReason::ResourceNotFound);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_when_patience_ends() {
    let policy = RetryPolicy { give_up_after: Duration::from_millis(50), ..quick() };
    let client = Client::connect(ClientConfig::new("127.0.0.1:1").retry(policy)).unwrap();
    let (_, end) = read(&mut client.stream_run(CreateRunRequest::default()).start()).await;
    assert_eq!(end.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_told_too() {
    let client = Client::connect(ClientConfig::new("dns:///nowhere.invalid:7461")).unwrap();
    let status = soon(client.runs().get_run(GetRunRequest::default())).await.unwrap_err();
    assert_eq!(Error::from(status).code(), Code::Unavailable);
}

#[tokio::test]
async fn a_connection_that_fails_says_why() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = Client::connect(ClientConfig::new(nobody.to_string())).unwrap();
    let status = soon(client.runs().get_run(GetRunRequest::default())).await.unwrap_err();
    let told = Error::from(status).to_string();
    assert!(told.starts_with("Unavailable: ") && told.contains("refused"), "{told}");
}

#[tokio::test]
async fn configurations_that_make_no_sense_are_refused() {
    let refused = |config: ClientConfig| Client::connect(config).unwrap_err().to_string();
    assert!(refused(ClientConfig::new("a.example")).contains("host:port"));
    assert!(refused(ClientConfig::new("a.example:1").token("secret")).contains("TLS"));
    assert!(refused(ClientConfig::new("")).contains("host:port"));
    for token in ["", " \n", "two words", "line\nbreak", "tök"] {
        assert!(refused(ClientConfig::new("127.0.0.1:1").token(token)).contains("ASCII"), "{token:?}");
    }
    let policy = RetryPolicy { multiplier: 0.0, ..quick() };
    assert!(refused(ClientConfig::new("127.0.0.1:1").retry(policy)).contains("multiplier"));
    assert!(Client::connect(ClientConfig::new("a.example:1").token("secret").allow_plaintext_token()).is_ok());
}

#[tokio::test]
async fn secrets_are_not_printed() {
    let tls = Tls::new().identity_pem("secret", "secret");
    let config = ClientConfig::new("127.0.0.1:1").token("secret");
    let client = Client::connect(config.clone()).unwrap();
    assert!(!format!("{:?} {client:?}", config.tls(tls)).contains("secret"));
}

#[tokio::test]
async fn a_token_goes_with_every_call_and_may_change() {
    let server = Scripted::serve(vec![vec![Act::Tell(whole())]]).await;
    let count = AtomicUsize::new(0);
    let source = move || format!("token-{}\n", count.fetch_add(1, Ordering::SeqCst)); // as files end
    let config = ClientConfig::new(server.address.to_string()).token_source(source);
    let client = Client::connect(config).unwrap();
    client.runs().get_run(GetRunRequest::default()).await.unwrap();
    read(&mut client.stream_run(CreateRunRequest::default()).start()).await.1.unwrap();
    assert_eq!(server.tokens(), ["Bearer token-0", "Bearer token-1"]);
}

#[tokio::test]
async fn a_source_that_has_no_token_is_asked_again() {
    let server = Scripted::serve(vec![vec![Act::Tell(whole())]]).await;
    let count = AtomicUsize::new(0);
    let source = move || if count.fetch_add(1, Ordering::SeqCst) == 0 { String::new() } else { "fresh".into() };
    let config = ClientConfig::new(server.address.to_string()).token_source(source).retry(quick());
    read(&mut Client::connect(config).unwrap().stream_run(CreateRunRequest::default()).start()).await.1.unwrap();
    assert_eq!(server.tokens(), ["Bearer fresh"]);
}

#[tokio::test]
async fn a_stream_goes_on_with_a_fresh_token_when_its_own_ran_out() {
    let expired = Act::Fail(refusal(Code::Unauthenticated, "CREDENTIALS_EXPIRED", None));
    let first = vec![Act::Tell(whole()[..2].to_vec()), expired];
    let server = Scripted::serve(vec![first, vec![Act::Tell(whole()[2..].to_vec())]]).await;
    assert_eq!(read(&mut server.stream()).await.0, [1, 2, 3, 4, 5, 6]);
}

/// What a server and a client need for TLS, in PEM.
struct Certificates {
    ca: String,
    server: (String, String),
    client: (String, String),
}

fn certificates() -> Certificates {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let signed = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    Certificates { ca: ca.pem(), server: signed("famulus.example"), client: signed("client.example") }
}

async fn reads_all(server: &Scripted, target: String, tls: Tls) -> Result<(), Error> {
    let policy = RetryPolicy { give_up_after: Duration::from_millis(200), ..quick() };
    let config = ClientConfig::new(target).tls(tls).token("secret").retry(policy);
    let client = Client::connect(config).unwrap();
    read(&mut client.stream_run(CreateRunRequest::default()).start()).await.1?;
    assert_eq!(server.tokens(), ["Bearer secret"]);
    Ok(())
}

#[tokio::test]
async fn tls_trusts_the_given_ca_only() {
    let certificates = certificates();
    let identity = Identity::from_pem(&certificates.server.0, &certificates.server.1);
    let server = Scripted::serve_with(ServerTlsConfig::new().identity(identity)).await;
    let tls = Tls::new().server_name("famulus.example");
    let target = server.address.to_string();
    let other = Tls::new().ca_pem(certificates.ca.clone());
    for (distrustful, what) in [(tls.clone(), "nobody knows this CA"), (other, "the name")] {
        let error = reads_all(&server, target.clone(), distrustful).await.expect_err(what);
        assert!(error.code() == Code::Unavailable && !error.is_transient(), "{what}: {error}");
    }
    reads_all(&server, target, tls.ca_pem(certificates.ca)).await.unwrap();
}

#[tokio::test]
async fn mtls_shows_a_certificate_also_to_all_addresses_of_a_name() {
    let certificates = certificates();
    let identity = Identity::from_pem(&certificates.server.0, &certificates.server.1);
    let config = ServerTlsConfig::new().identity(identity).client_ca_root(Certificate::from_pem(&certificates.ca));
    let server = Scripted::serve_with(config).await;
    let tls = Tls::new().ca_pem(certificates.ca).server_name("famulus.example");
    let target = format!("dns:///localhost:{}", server.address.port());
    assert!(reads_all(&server, target.clone(), tls.clone()).await.is_err(), "a certificate is required");
    let (certificate, key) = certificates.client;
    reads_all(&server, target, tls.identity_pem(certificate, key)).await.unwrap();
}

#[tokio::test]
async fn a_damaged_certificate_is_told_at_once() {
    let config = ClientConfig::new("127.0.0.1:1").tls(Tls::new().identity_pem("no", "certificate"));
    assert!(Client::connect(config).is_err());
    for target in ["127.0.0.1:1", "dns:///localhost:1"] {
        let config = ClientConfig::new(target).tls(Tls::new().ca_pem("no certificate"));
        assert!(Client::connect(config).unwrap_err().to_string().contains("ca_pem"));
    }
}
