//! What a run looks like after the events seen so far.

use crate::drafts::Items;
use crate::v1::message_part::Part;
use crate::v1::run_event::Event;
use crate::v1::{Message, MessagePart, MessageRole, Run, RunEvent, RunState, RunStep, Snapshot, TextPart};

/// Whether a run in this state has ended.
pub fn is_final(state: RunState) -> bool {
    matches!(
        state,
        RunState::Cancelled | RunState::Failed | RunState::Completed | RunState::Incomplete | RunState::Expired
    )
}

/// The text parts of a message, joined.
pub fn text_of(message: &Message) -> String {
    let texts = message.content.iter().filter_map(|part| match &part.part {
        Some(Part::Text(text)) => Some(text.text.as_str()),
        _ => None,
    });
    texts.collect()
}

/// A message of the user's that says `text`.
pub fn user_message(text: impl Into<String>) -> Message {
    let text = TextPart { text: text.into(), annotations: Vec::new() };
    let content = vec![MessagePart { part: Some(Part::Text(text)) }];
    Message { role: MessageRole::User.into(), content, ..Message::default() }
}

fn text_of_all<'a>(messages: impl Iterator<Item = &'a Message>) -> String {
    messages.map(text_of).filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n\n")
}

/// A run that ended or needs action, and the messages it wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct RunResult {
    /// The run.
    pub run: Run,
    /// Its messages, in order.
    pub messages: Vec<Message>,
}

impl RunResult {
    /// The text of all messages, a blank line between two; empty ones are left out.
    pub fn text(&self) -> String {
        text_of_all(self.messages.iter())
    }
}

/// A run with its messages, steps and reasoning, kept up to date by the events of the run.
///
/// After an `AttemptStarted`, text that was shown but never stored is gone again; a `Snapshot` replaces everything. A
/// view of a stream that was joined in the middle lacks what came before, until facts or a `Snapshot` bring it.
#[derive(Clone, Debug, Default)]
pub struct RunView {
    run: Option<Run>,
    run_id: String,
    attempt: i32,
    messages: Items<Message>,
    steps: Items<RunStep>,
    reasoning: Vec<(i64, String)>,
}

impl RunView {
    /// The view of a run of which no event was seen.
    pub fn new() -> Self {
        Self::default()
    }

    /// The run as of its latest change of state; None until an event brought it.
    pub fn run(&self) -> Option<&Run> {
        self.run.as_ref()
    }

    /// Id of the run; empty until an event named it.
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// Number of the latest attempt that was announced; 0 before a first takeover.
    pub fn attempt(&self) -> i32 {
        self.attempt
    }

    /// The messages that the run wrote, the growing one included.
    pub fn messages(&self) -> impl Iterator<Item = &Message> {
        self.messages.all()
    }

    /// The steps of the run by position, the current one included.
    pub fn steps(&self) -> Vec<&RunStep> {
        let mut steps: Vec<_> = self.steps.all().collect();
        steps.sort_by_key(|step| step.position);
        steps
    }

    /// The text of all messages, a blank line between two; empty ones are left out.
    pub fn text(&self) -> String {
        text_of_all(self.messages())
    }

    /// The model's reasoning; only of runs created with `stream_reasoning`.
    pub fn reasoning(&self) -> String {
        self.reasoning.iter().map(|(_, text)| text.as_str()).collect()
    }

    /// Whether the run reached a final state.
    pub fn is_finished(&self) -> bool {
        self.run.as_ref().is_some_and(|run| is_final(run.state()))
    }

    /// The run and its messages; None where no event brought the run yet.
    pub fn result(&self) -> Option<RunResult> {
        Some(RunResult { run: self.run.clone()?, messages: self.messages().cloned().collect() })
    }

    /// Takes in one event. Events must come in order, each once; unknown kinds change nothing.
    pub fn apply(&mut self, event: &RunEvent) {
        let (sequence, Some(kind)) = (event.sequence, &event.event) else { return };
        match kind {
            Event::RunStateChanged(changed) => {
                if let Some(run) = &changed.run {
                    self.adopt(Run::clone(run));
                }
            }
            Event::MessageStarted(started) => {
                if let Some(message) = &started.message {
                    self.name(&message.run_id);
                    self.messages.start(sequence, message);
                }
            }
            Event::MessageCompleted(completed) => {
                if let Some(message) = &completed.message {
                    self.name(&message.run_id);
                    self.messages.finish(message);
                }
            }
            Event::TextDelta(delta) => self.messages.extend(&delta.message_id, sequence, kind),
            Event::RefusalDelta(delta) => self.messages.extend(&delta.message_id, sequence, kind),
            Event::AnnotationAdded(added) => self.messages.extend(&added.message_id, sequence, kind),
            Event::StepStarted(started) => {
                if let Some(step) = &started.step {
                    self.name(&step.run_id);
                    self.steps.start(sequence, step);
                }
            }
            Event::StepCompleted(completed) => {
                if let Some(step) = &completed.step {
                    self.name(&step.run_id);
                    self.steps.finish(step);
                }
            }
            Event::ToolCallDelta(delta) => self.steps.extend(&delta.step_id, sequence, kind),
            Event::ReasoningDelta(delta) => self.reasoning.push((sequence, delta.text.clone())),
            Event::AttemptStarted(started) => {
                self.attempt = started.attempt;
                self.discard(started.discards_after_sequence);
            }
            Event::Snapshot(snapshot) => self.replace(sequence, snapshot),
            Event::ToolCallsRequested(_) | Event::ToolOutputReceived(_) | Event::RetryScheduled(_) => {}
        }
    }

    /// Takes over a newer state of the run.
    pub(crate) fn adopt(&mut self, run: Run) {
        self.name(&run.id);
        self.run = Some(run);
        if self.is_finished() {
            self.discard(0); // what is not stored when the run ends never will be
        }
    }

    /// Notes the id of the run.
    pub(crate) fn name(&mut self, run_id: &str) {
        if self.run_id.is_empty() {
            self.run_id = run_id.to_owned();
        }
    }

    fn discard(&mut self, after: i64) {
        self.messages.discard(after);
        self.steps.discard(after);
        self.reasoning.retain(|(sequence, _)| *sequence <= after);
    }

    fn replace(&mut self, sequence: i64, snapshot: &Snapshot) {
        self.messages.replace(sequence, &snapshot.messages);
        self.steps.replace(sequence, &snapshot.steps);
        self.reasoning.clear();
        if let Some(run) = &snapshot.run {
            self.adopt(Run::clone(run));
        }
    }
}
