//! One run, followed over any number of streams: place in the log, view, and what to do when a stream breaks. No I/O.

use std::time::Duration;

use uuid::Uuid;

use crate::errors::Error;
use crate::retry::{Outage, RetryPolicy};
use crate::v1::run_event::Event;
use crate::v1::tool_call::Call;
use crate::v1::{CreateRunRequest, FunctionCallProblem, GetRunRequest, Run, RunEvent, RunState, ToolCall};
use crate::v1::{StreamRunRequest, WatchRunRequest};
use crate::view::{RunView, is_final};

/// In a row, at the same place.
const MOST_GAPS: u32 = 3;

#[derive(Debug)]
pub(crate) struct Following {
    pub(crate) view: RunView,
    pub(crate) last_sequence: i64,
    pub(crate) finished: bool,
    create: CreateRunRequest,
    outage: Outage,
    gaps: u32,
    asked: bool,
}

/// The request that goes on after the last event seen.
pub(crate) enum Joining {
    Stream(Box<StreamRunRequest>),
    Watch(WatchRunRequest),
}

/// The request that answers with the run as it is now. CreateRun shares its request ids with StreamRun.
pub(crate) enum LookingUp {
    Get(GetRunRequest),
    Create(Box<CreateRunRequest>),
}

impl Following {
    /// Follows the run that `create` starts.
    pub(crate) fn started_by(create: CreateRunRequest, after_sequence: i64, policy: RetryPolicy) -> Self {
        Self {
            view: RunView::new(),
            last_sequence: after_sequence,
            finished: false,
            create: repeatable(create),
            outage: Outage::new(policy),
            gaps: 0,
            asked: false,
        }
    }

    /// Follows a run that exists.
    pub(crate) fn named(run_id: &str, after_sequence: i64, policy: RetryPolicy) -> Self {
        let mut following = Self::started_by(CreateRunRequest::default(), after_sequence, policy);
        following.view.name(run_id);
        following
    }

    pub(crate) fn joining(&mut self) -> Joining {
        self.asked = true;
        let (run_id, after_sequence) = (self.view.run_id(), self.last_sequence);
        // By its id as soon as that is known: a request id is forgotten after a day, and would start another run.
        if run_id.is_empty() {
            let create = Some(self.create.clone());
            let request = StreamRunRequest { create, after_sequence, cancel_on_disconnect: false };
            return Joining::Stream(Box::new(request));
        }
        let run_id = run_id.to_owned();
        Joining::Watch(WatchRunRequest { run_id, after_sequence, cancel_on_disconnect: false })
    }

    pub(crate) fn looking_up(&self) -> LookingUp {
        match self.view.run_id() {
            "" => LookingUp::Create(Box::new(self.create.clone())),
            run_id => LookingUp::Get(GetRunRequest { run_id: run_id.to_owned() }),
        }
    }

    /// Whether there may be a run that goes on without us: it was asked for, and neither refused nor seen to end.
    pub(crate) fn may_go_on(&self) -> bool {
        self.asked && !self.finished
    }

    /// Takes in an event of a stream; false where it was seen before, an error where events are missing.
    pub(crate) fn take(&mut self, event: &RunEvent) -> Result<bool, Error> {
        if event.sequence <= self.last_sequence {
            return Ok(false);
        }
        let jumps = matches!(event.event, Some(Event::AttemptStarted(_) | Event::Snapshot(_)));
        if event.sequence != self.last_sequence + 1 && !jumps {
            return Err(Error::gap(self.last_sequence, event.sequence));
        }
        self.last_sequence = event.sequence;
        self.view.apply(event);
        self.finished = self.view.is_finished();
        self.gaps = 0;
        self.outage.over();
        Ok(true)
    }

    /// A response without events came.
    pub(crate) fn heard(&mut self) {
        self.outage.over();
    }

    /// The stream broke: how long to wait before joining again. Gives the error back where that is of no use.
    pub(crate) fn lost(&mut self, error: Error) -> Result<Duration, Error> {
        if error.is_gap() {
            self.gaps += 1;
            if self.gaps >= MOST_GAPS {
                return Err(error);
            }
        }
        if !error.is_transient() && self.view.run_id().is_empty() {
            self.asked = false;
        }
        self.outage.delay(error)
    }

    /// The stream ended OK without a last event. An error where the run, as it is now, has more to say.
    pub(crate) fn ended(&mut self, run: Run) -> Result<(), Error> {
        if !is_final(run.state()) || run.last_sequence > self.last_sequence {
            return Err(Error::unavailable("the stream ended before the run did"));
        }
        self.view.adopt(run);
        self.finished = true;
        Ok(())
    }
}

/// The request, with a request id: without one, each attempt would start another run.
pub(crate) fn repeatable(mut create: CreateRunRequest) -> CreateRunRequest {
    if create.request_id.is_empty() {
        create.request_id = Uuid::new_v4().to_string();
    }
    create
}

/// The function calls that a run waits for.
pub(crate) fn open_calls(run: &Run) -> Vec<&ToolCall> {
    match &run.required_action {
        Some(action) if run.state() == RunState::RequiresAction => open_ones(&action.tool_calls),
        _ => Vec::new(),
    }
}

/// The function calls that an event says the run waits, or waited, for.
pub(crate) fn requested_calls(event: &RunEvent) -> Vec<&ToolCall> {
    match &event.event {
        Some(Event::ToolCallsRequested(requested)) => open_ones(&requested.tool_calls),
        Some(Event::RunStateChanged(changed)) => changed.run.as_deref().map(open_calls).unwrap_or_default(),
        Some(Event::Snapshot(snapshot)) => snapshot.run.as_deref().map(open_calls).unwrap_or_default(),
        _ => Vec::new(),
    }
}

fn open_ones(calls: &[ToolCall]) -> Vec<&ToolCall> {
    let open = |call: &&ToolCall| match &call.call {
        Some(Call::Function(function)) => {
            function.output.is_none() && function.problem == i32::from(FunctionCallProblem::Unspecified)
        }
        _ => false,
    };
    calls.iter().filter(open).collect()
}
