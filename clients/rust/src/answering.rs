//! Answers the function calls of one run, while its events go on coming.

use std::collections::HashSet;
use std::task::{Context, Poll};

use tokio::task::JoinSet;

use crate::connection::Runs;
use crate::errors::Error;
use crate::following::{LookingUp, open_calls};
use crate::retry::RetryPolicy;
use crate::tools::Tools;
use crate::unary::send;
use crate::v1::{ErrorReason, Run, SubmitToolOutputsRequest, ToolCall};

/// Dropped, it aborts the tools that still run.
pub(crate) struct Answering {
    tools: Tools,
    runs: Runs,
    policy: RetryPolicy,
    claimed: HashSet<String>,
    tasks: JoinSet<Result<(), Error>>,
}

impl Answering {
    pub(crate) fn new(tools: Tools, runs: Runs, policy: RetryPolicy) -> Self {
        Self { tools, runs, policy, claimed: HashSet::new(), tasks: JoinSet::new() }
    }

    /// Starts to answer those of the calls that nobody claimed before. `run` is how to look up the run.
    pub(crate) fn answer(&mut self, calls: &[&ToolCall], run: LookingUp) {
        let fresh: HashSet<String> =
            calls.iter().map(|call| call.id.clone()).filter(|id| self.claimed.insert(id.clone())).collect();
        if !fresh.is_empty() {
            self.tasks.spawn(answer(fresh, run, self.tools.clone(), self.runs.clone(), self.policy.clone()));
        }
    }

    /// The error of a call that could not be answered, if there is one.
    pub(crate) fn poll_failure(&mut self, context: &mut Context<'_>) -> Result<(), Error> {
        while let Poll::Ready(Some(ended)) = self.tasks.poll_join_next(context) {
            match ended {
                Ok(answered) => answered?,
                Err(error) => {
                    if let Ok(panic) = error.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The run as it is now.
pub(crate) async fn look_up(run: LookingUp, runs: Runs, policy: RetryPolicy) -> Result<Run, Error> {
    let found = match run {
        LookingUp::Get(request) => {
            let get = || async { runs.clone().get_run(request.clone()).await };
            send(&policy, get).await?.run
        }
        LookingUp::Create(request) => {
            let create = || async { runs.clone().create_run(*request.clone()).await };
            send(&policy, create).await?.run
        }
    };
    Ok(found.unwrap_or_default())
}

async fn answer(
    claimed: HashSet<String>,
    run: LookingUp,
    tools: Tools,
    runs: Runs,
    policy: RetryPolicy,
) -> Result<(), Error> {
    // An old event may ask for what was answered long ago: a tool must not run again for it.
    let run = look_up(run, runs.clone(), policy.clone()).await?;
    let calls: Vec<ToolCall> =
        open_calls(&run).into_iter().filter(|call| claimed.contains(&call.id)).cloned().collect();
    if calls.is_empty() {
        return Ok(());
    }
    let tool_outputs = tools.answer_all(calls).await;
    let request = SubmitToolOutputsRequest { run_id: run.id, tool_outputs, request_id: String::new() };
    match send(&policy, || async { runs.clone().submit_tool_outputs(request.clone()).await }).await {
        Err(error) if !is_late(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Whether the run went on or ended without this answer, or has another one: the stream tells.
fn is_late(error: &Error) -> bool {
    matches!(error.reason(), ErrorReason::RunNotWaiting | ErrorReason::ToolOutputConflict | ErrorReason::RunExpired)
}
