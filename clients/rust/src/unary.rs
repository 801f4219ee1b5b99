//! Unary calls that are safe to repeat, repeated while the service cannot be reached.

use tonic::{Response, Status};

use crate::errors::Error;
use crate::retry::{Outage, RetryPolicy};

/// Calls until there is an answer, or an error that another attempt would not change.
pub(crate) async fn send<T, F>(policy: &RetryPolicy, mut call: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let mut outage = Outage::new(policy.clone());
    loop {
        match call().await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => tokio::time::sleep(outage.delay(status.into())?).await,
        }
    }
}
