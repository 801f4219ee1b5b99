//! An open call that tells events.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use tonic::{Status, Streaming};

use crate::v1::{RunEvent, StreamRunResponse, WatchRunResponse};

/// Dropped, it is cancelled.
pub(crate) enum Events {
    Streamed(Streaming<StreamRunResponse>),
    Watched(Streaming<WatchRunResponse>),
}

impl Events {
    /// The events of the next response; none for a heartbeat.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Vec<RunEvent>, Status>>> {
        match self {
            Self::Streamed(responses) => {
                Pin::new(responses).poll_next(context).map(|next| next.map(|got| got.map(|got| got.events)))
            }
            Self::Watched(responses) => {
                Pin::new(responses).poll_next(context).map(|next| next.map(|got| got.map(|got| got.events)))
            }
        }
    }
}
