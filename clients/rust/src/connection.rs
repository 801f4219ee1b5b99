//! How connections to famulus are set up.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use crate::config::{ClientConfig, ConfigError, Tls};
use crate::resolver;
use crate::target::Target;
use crate::v1::run_service_client::RunServiceClient;

// A dead connection is noticed after 20 + 10 seconds; the server allows pings 10 seconds apart.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes. A Snapshot holds all messages of a run.
pub(crate) const LARGEST_MESSAGE: usize = 64 << 20;

/// What the stubs call through. Cloning it is cheap and shares the connection.
pub type Connection = InterceptedService<Channel, Bearer>;

pub(crate) type Runs = RunServiceClient<Connection>;

#[derive(Clone)]
pub(crate) enum Token {
    Fixed(String),
    Source(Arc<dyn Fn() -> String + Send + Sync>),
}

/// Shows a token with every call.
#[derive(Clone)]
pub struct Bearer(Option<Token>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let header = match &self.0 {
            None => return Ok(request),
            Some(Token::Fixed(token)) => header(token),
            Some(Token::Source(source)) => header(&source()),
        };
        let header =
            header.ok_or(Status::unavailable("there is no token: it is empty, or not all of printable ASCII"))?;
        request.metadata_mut().insert("authorization", header);
        Ok(request)
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Bearer").field(&self.0.as_ref().map(|_| "...")).finish()
    }
}

fn header(token: &str) -> Option<MetadataValue<Ascii>> {
    let token = token.trim(); // files end with a newline
    if token.is_empty() || !token.bytes().all(|letter| letter.is_ascii_graphic()) {
        return None;
    }
    let mut header = MetadataValue::try_from(format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// Connects with the first call.
pub(crate) fn open(config: &ClientConfig) -> Result<Connection, ConfigError> {
    let target = Target::parse(&config.target)?;
    if let Some(token) = &config.token {
        if config.tls.is_none() && !config.plaintext_token && !target.is_loopback() {
            return Err(ConfigError::new("a token is only sent over TLS: configure that, or allow_plaintext_token"));
        }
        if let Token::Fixed(text) = token
            && header(text).is_none()
        {
            return Err(ConfigError::new("the token is empty, or not all of printable ASCII"));
        }
    }
    let channel = match target.spread {
        // Made once here, for what is wrong with it.
        true => endpoint(&target, None, config.tls.as_ref())
            .map(|named| resolver::spread(target.clone(), named, config.tls.clone()))?,
        false => endpoint(&target, None, config.tls.as_ref())?.connect_lazy(),
    };
    Ok(InterceptedService::new(channel, Bearer(config.token.clone())))
}

/// The endpoint at the target, or at one of its addresses.
pub(crate) fn endpoint(target: &Target, address: Option<&str>, tls: Option<&Tls>) -> Result<Endpoint, ConfigError> {
    let wrong = |error: &dyn std::error::Error| ConfigError::new(told(error));
    let scheme = if tls.is_some() { "https" } else { "http" };
    let named = format!("{scheme}://{}", target.authority());
    let origin = named.parse().map_err(|error| wrong(&error as &dyn std::error::Error))?;
    let uri = address.map_or(named, |address| format!("{scheme}://{address}"));
    let endpoint = Endpoint::from_shared(uri)
        .map_err(|error| wrong(&error))?
        .origin(origin)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .user_agent(concat!("famulus-rust/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| wrong(&error))?;
    match tls {
        // tonic takes it, and trusts nobody.
        Some(Tls { ca: Some(ca), .. }) if !holds_certificate(ca) => {
            Err(ConfigError::new("ca_pem holds no certificate in PEM"))
        }
        Some(tls) => endpoint.tls_config(tls_config(target, tls)).map_err(|error| wrong(&error)),
        None => Ok(endpoint),
    }
}

fn holds_certificate(pem: &[u8]) -> bool {
    let begin = b"-----BEGIN CERTIFICATE-----";
    pem.windows(begin.len()).any(|window| window == begin)
}

fn tls_config(target: &Target, tls: &Tls) -> ClientTlsConfig {
    let name = tls.server_name.clone().unwrap_or_else(|| target.host.clone());
    let mut config = ClientTlsConfig::new().domain_name(name);
    config = match &tls.ca {
        Some(certificates) => config.ca_certificate(Certificate::from_pem(certificates)),
        None => config.with_native_roots(),
    };
    match &tls.identity {
        Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
        None => config,
    }
}

/// An error with all that it comes from: of tonic's own, the outermost text says next to nothing.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
