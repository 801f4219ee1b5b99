//! Uses the packed crate, with its default features, as somebody else's program does.

use std::time::Duration;

use famulus::v1::CreateRunRequest;
use famulus::{Client, ClientConfig, RetryPolicy, tonic::Code};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let policy = RetryPolicy { give_up_after: Duration::ZERO, ..RetryPolicy::default() };
    let client = Client::connect(ClientConfig::new("127.0.0.1:1").retry(policy))?;
    let mut stream = client.stream_run(CreateRunRequest::default()).start();
    match stream.next().await {
        Some(Err(error)) if error.code() == Code::Unavailable => Ok(()),
        other => Err(format!("nobody listens there: {other:?}").into()),
    }
}
