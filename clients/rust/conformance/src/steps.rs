//! Does one step after the other.

use std::io::{self, Write};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use famulus::v1::{CancelRunRequest, CreateRunRequest};
use famulus::{Client, Error, RunResult, RunStreamBuilder};
use prost::Message;
use serde_json::{Value, json};

use crate::scenario::{Follow, Step};
use crate::{lines, methods, tools};

/// Does a step and writes its lines. What fails in it is one of them; the error is that of writing.
pub async fn run(client: &Client, index: usize, step: Step) -> io::Result<()> {
    let write = |line: Value| write(index, line);
    match step {
        Step::Call { method, request, timeout_ms } => {
            let timeout = timeout_ms.map(Duration::from_millis);
            write(match methods::call(client, &method, &request.0, timeout).await {
                Ok(response) => json!({"response": BASE64_STANDARD.encode(response)}),
                Err(status) => failed(status),
            })
        }
        Step::Pages { method, request } => {
            let mut next = Some(request.0);
            while let Some(request) = next {
                let called = methods::call(client, &method, &request, None).await;
                match called.and_then(|response| methods::page(&method, &request, &response)) {
                    Ok((ids, more)) => {
                        write(json!({"page": ids}))?;
                        next = more;
                    }
                    Err(status) => return write(failed(status)),
                }
            }
            Ok(())
        }
        Step::Stream { create, follow } => {
            let create = CreateRunRequest::decode(create.0.as_slice())?;
            tell(client, index, client.stream_run(create), follow).await
        }
        Step::Watch { run_id, follow } => tell(client, index, client.watch_run(run_id), follow).await,
        Step::RunToEnd { create, tools, tool_timeout_ms } => {
            let create = CreateRunRequest::decode(create.0.as_slice())?;
            write(ended(client.run_to_end(create, tools::named(tools, tool_timeout_ms)).await))
        }
        Step::Wait { run_id } => write(ended(client.wait_run(run_id).await)),
    }
}

async fn tell(client: &Client, index: usize, stream: RunStreamBuilder, follow: Follow) -> io::Result<()> {
    let mut stream = stream
        .after_sequence(follow.after_sequence)
        .tools(tools::named(follow.tools, follow.tool_timeout_ms))
        .cancel_on_exit(follow.cancel_on_exit)
        .start();
    let mut count = 0;
    let (end, error) = loop {
        if follow.leave_after == Some(count) {
            break ("left", Value::Null);
        }
        match stream.next().await {
            Some(Ok(event)) => write(index, json!({"event": lines::event(&event)}))?,
            Some(Err(error)) => break ("error", lines::error(&error)),
            None => break ("finished", Value::Null),
        }
        count += 1;
        if follow.cancel_after == Some(count) {
            let request = CancelRunRequest { run_id: stream.view().run_id().to_owned() };
            // Too late, say: the stream tells.
            let _ = client.runs().cancel_run(request).await;
        }
    };
    let mut line = json!({"end": end, "last_sequence": stream.last_sequence(), "view": lines::view(stream.view())});
    if end == "error" {
        line["error"] = error;
    }
    // Cancelling is best effort, and the transcript is about the stream.
    let _ = stream.close().await;
    write(index, line)
}

fn ended(result: Result<RunResult, Error>) -> Value {
    match result {
        Ok(result) => json!({"result": lines::result(&result)}),
        Err(error) => json!({"error": lines::error(&error)}),
    }
}

fn failed(error: impl Into<Error>) -> Value {
    json!({"error": lines::error(&error.into())})
}

fn write(index: usize, mut line: Value) -> io::Result<()> {
    line["step"] = index.into();
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}
