//! What can go wrong with a call or a stream.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use prost::Message;
use tonic::{Code, TimeoutExpired};

use crate::status_details::{BadRequest, ErrorInfo, RetryInfo, Status};
use crate::v1::ErrorReason;

const DOMAIN: &str = "famulus";

/// How the other gRPC libraries and proxies word the end of a connection where they do not call it UNAVAILABLE.
const BROKEN_TRANSPORT: [&str; 6] =
    ["RST_STREAM", "Stream removed", "onnection reset", "Socket closed", "GOAWAY", "Cancelling all calls"];
/// All that a server says of a call which it cut off because it stops.
const CUT_OFF: &str = "CANCELLED";
/// How rustls words that a server's certificate is not to be trusted. It will not be a moment later either.
const MISTRUST: &str = "invalid peer certificate";

/// A call was refused or failed, or a stream broke and could not be resumed.
///
/// Calls on the raw stubs fail with [`tonic::Status`]; `Error::from(status)` tells what is in one.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    code: Code,
    message: String,
    reason_name: String,
    metadata: BTreeMap<String, String>,
    violations: Vec<Violation>,
    retry_after: Option<Duration>,
    /// Whether the transport made this error, and not the service.
    by_transport: bool,
    /// Whether events were missing.
    gap: bool,
}

/// What is wrong with one field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, such as `assistant.tools[3].function.name`.
    pub field: String,
    /// What is wrong with it: a sentence for people.
    pub description: String,
}

impl Error {
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    pub(crate) fn gap(after: i64, received: i64) -> Self {
        let mut error = Self::new(Code::DataLoss, format!("event {received} came after event {after}"));
        error.0.gap = true;
        error
    }

    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            message: message.into(),
            reason_name: String::new(),
            metadata: BTreeMap::new(),
            violations: Vec::new(),
            retry_after: None,
            by_transport: false,
            gap: false,
        }))
    }

    /// The gRPC status code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// A sentence for people. Decide by [`reason`](Self::reason): the sentence may change.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Why the service refused the call; `Unspecified` where it gave no reason (the connection failed, say), or one that
    /// this client does not know.
    pub fn reason(&self) -> ErrorReason {
        ErrorReason::from_str_name(&format!("ERROR_REASON_{}", self.0.reason_name)).unwrap_or_default()
    }

    /// The name of the reason, such as `RATE_LIMITED`, also where this client does not know it; empty for none.
    pub fn reason_name(&self) -> &str {
        &self.0.reason_name
    }

    /// The facts that are documented with the reason.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.0.metadata
    }

    /// The fields of the request that are wrong.
    pub fn violations(&self) -> &[Violation] {
        &self.0.violations
    }

    /// After how long the service invites another attempt, where it does.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether the connection or the replica failed, so that the same call may go well elsewhere; or the credentials ran
    /// out in the middle of it, so that it may go well with fresh ones. A gap counts, too: another replica may have
    /// what is missing.
    pub fn is_transient(&self) -> bool {
        match self.0.code {
            Code::Unavailable => !self.0.reason_name.is_empty() || !self.0.message.contains(MISTRUST),
            Code::Aborted => self.reason() == ErrorReason::SlowConsumer,
            Code::Unauthenticated => self.reason() == ErrorReason::CredentialsExpired,
            Code::DataLoss => self.0.gap,
            Code::Internal | Code::Unknown | Code::Cancelled => self.0.by_transport && self.0.reason_name.is_empty(),
            _ => false,
        }
    }

    pub(crate) fn is_gap(&self) -> bool {
        self.0.gap
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        let details = Status::decode(status.details()).unwrap_or_default();
        let info = Some(details.detail::<ErrorInfo>("google.rpc.ErrorInfo"))
            .filter(|info| info.domain == DOMAIN)
            .unwrap_or_default();
        let violations = details.detail::<BadRequest>("google.rpc.BadRequest").field_violations.into_iter();
        let retry = details.detail::<RetryInfo>("google.rpc.RetryInfo").retry_delay;
        let mut error = Self::new(code_of(&status), told(&status));
        error.0.reason_name = info.reason;
        error.0.metadata = info.metadata.into_iter().collect();
        error.0.violations =
            violations.map(|wrong| Violation { field: wrong.field, description: wrong.description }).collect();
        error.0.retry_after = retry.and_then(|delay| delay.try_into().ok());
        error.0.by_transport = made_by_transport(&status);
        error
    }
}

/// The code, where tonic does not tell the deadline that passed here from a call that was cancelled.
fn code_of(status: &tonic::Status) -> Code {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<TimeoutExpired>() {
            return Code::DeadlineExceeded;
        }
        source = error.source();
    }
    status.code()
}

/// The message, and where the connection failed, why: tonic's own words say next to nothing ("tcp connect error").
fn told(status: &tonic::Status) -> String {
    let message = status.message();
    let mut cause: &dyn StdError = status;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let root = cause.to_string();
    match status.source() {
        Some(_) if !message.contains(&root) => format!("{message}: {root}"),
        _ => message.to_owned(),
    }
}

/// What a server sent has no source: tonic sets one where it made the status itself, of an error of the connection.
fn made_by_transport(status: &tonic::Status) -> bool {
    let message = status.message();
    status.source().is_some() || message == CUT_OFF || BROKEN_TRANSPORT.iter().any(|words| message.contains(words))
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.0.code)?;
        if !self.0.reason_name.is_empty() {
            write!(formatter, " / {}", self.0.reason_name)?;
        }
        write!(formatter, ": {}", self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Error")
            .field("code", &self.0.code)
            .field("reason", &self.0.reason_name)
            .field("message", &self.0.message)
            .field("metadata", &self.0.metadata)
            .field("violations", &self.0.violations)
            .field("retry_after", &self.0.retry_after)
            .finish()
    }
}

impl StdError for Error {}
