//! The few messages of google.rpc that come with an error. Written by hand: a dependency would cost more than they do.

use std::collections::HashMap;

use prost::Message;
use prost_types::Any;

/// What the header `grpc-status-details-bin` holds.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Status {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) details: Vec<Any>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ErrorInfo {
    #[prost(string, tag = "1")]
    pub(crate) reason: String,
    #[prost(string, tag = "2")]
    pub(crate) domain: String,
    #[prost(map = "string, string", tag = "3")]
    pub(crate) metadata: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct BadRequest {
    #[prost(message, repeated, tag = "1")]
    pub(crate) field_violations: Vec<FieldViolation>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct FieldViolation {
    #[prost(string, tag = "1")]
    pub(crate) field: String,
    #[prost(string, tag = "2")]
    pub(crate) description: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    pub(crate) retry_delay: Option<prost_types::Duration>,
}

impl Status {
    /// The detail of one kind; the default where there is none, or a damaged one.
    pub(crate) fn detail<M: Message + Default>(&self, name: &str) -> M {
        self.details
            .iter()
            .filter(|detail| detail.type_url.rsplit('/').next() == Some(name))
            .find_map(|detail| M::decode(detail.value.as_slice()).ok())
            .unwrap_or_default()
    }
}
