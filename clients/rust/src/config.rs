//! What a client needs to know to connect.

use std::fmt;
use std::sync::Arc;

use crate::connection::Token;
use crate::retry::RetryPolicy;

/// Where the service is, and how to call it.
///
/// ```
/// use famulus::{ClientConfig, Tls};
///
/// # fn config(ca: Vec<u8>, token: String) -> ClientConfig {
/// ClientConfig::new("dns:///famulus.example:443").tls(Tls::new().ca_pem(ca)).token(token)
/// # }
/// ```
#[derive(Clone)]
pub struct ClientConfig {
    pub(crate) target: String,
    pub(crate) tls: Option<Tls>,
    pub(crate) token: Option<Token>,
    pub(crate) plaintext_token: bool,
    pub(crate) retry: RetryPolicy,
}

impl ClientConfig {
    /// `target` is `host:port` or `[v6]:port`; with `dns:///` before it, calls spread over all addresses of the name,
    /// which is looked up again every 30 s. Without [`tls`](Self::tls) nothing is encrypted.
    pub fn new(target: impl Into<String>) -> Self {
        Self { target: target.into(), tls: None, token: None, plaintext_token: false, retry: RetryPolicy::default() }
    }

    /// Encrypts the connection.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// A bearer token that goes with every call. Without TLS it is refused, unless the target is this machine. White
    /// space around it is taken off.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(Token::Fixed(token.into()));
        self
    }

    /// The same where tokens run out: `source` gives a good one. It is called before each call, and must not block: let a
    /// task of yours fetch new tokens. A text that cannot be a token is an outage.
    pub fn token_source(mut self, source: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.token = Some(Token::Source(Arc::new(source)));
        self
    }

    /// Lets a token leave this machine without encryption by this client, as where a mesh encrypts.
    pub fn allow_plaintext_token(mut self) -> Self {
        self.plaintext_token = true;
        self
    }

    /// How the client bears outages.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ClientConfig")
            .field("target", &self.target)
            .field("tls", &self.tls)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("plaintext_token", &self.plaintext_token)
            .field("retry", &self.retry)
            .finish()
    }
}

/// Whom to trust, and who we are. Without a CA, those are trusted whom the operating system trusts.
#[derive(Clone, Default)]
pub struct Tls {
    pub(crate) ca: Option<Vec<u8>>,
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
    pub(crate) server_name: Option<String>,
}

impl Tls {
    /// Trusts whom the operating system trusts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts these certificates only, in PEM. Where there is none in it, connecting is refused.
    pub fn ca_pem(mut self, certificates: impl Into<Vec<u8>>) -> Self {
        self.ca = Some(certificates.into());
        self
    }

    /// Shows this certificate (with what it is signed by) and proves it with this key, both in PEM: mTLS.
    pub fn identity_pem(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// The name that the server's certificate must have, where that is not the target's host.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tls")
            .field("ca", &self.ca.is_some())
            .field("identity", &self.identity.is_some())
            .field("server_name", &self.server_name)
            .finish()
    }
}

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl ConfigError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}
