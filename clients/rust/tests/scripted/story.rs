//! Events of one run.

use famulus::v1::run_event::Event;
use famulus::v1::tool_call::Call;
use famulus::v1::*;

pub const RUN_ID: &str = "run_1";

pub fn event(sequence: i64, event: Event) -> RunEvent {
    RunEvent { sequence, event: Some(event), ..RunEvent::default() }
}

pub fn run(state: RunState, last_sequence: i64) -> Run {
    Run { id: RUN_ID.into(), state: state.into(), last_sequence, ..Run::default() }
}

pub fn state(sequence: i64, state: RunState) -> RunEvent {
    event(sequence, Event::RunStateChanged(RunStateChanged { run: Some(Box::new(run(state, sequence))) }))
}

pub fn message(text: &str, state: MessageState) -> Message {
    let mut message = famulus::user_message(text);
    message.set_role(MessageRole::Assistant);
    message.set_state(state);
    Message { id: "msg_1".into(), run_id: RUN_ID.into(), ..message }
}

pub fn started(sequence: i64) -> RunEvent {
    let mut empty = message("", MessageState::InProgress);
    empty.content.clear();
    event(sequence, Event::MessageStarted(MessageStarted { message: Some(empty) }))
}

pub fn completed(sequence: i64, text: &str) -> RunEvent {
    let message = Some(message(text, MessageState::Completed));
    event(sequence, Event::MessageCompleted(MessageCompleted { message }))
}

pub fn text(sequence: i64, text: &str) -> RunEvent {
    let delta = TextDelta { message_id: "msg_1".into(), part_index: 0, text: text.into() };
    event(sequence, Event::TextDelta(delta))
}

pub fn attempt(sequence: i64, discards_after_sequence: i64) -> RunEvent {
    event(sequence, Event::AttemptStarted(AttemptStarted { attempt: 2, discards_after_sequence }))
}

/// In six events: queued, in progress, a message of two deltas, stored, completed after that.
pub fn whole() -> Vec<RunEvent> {
    vec![
        state(1, RunState::InProgress),
        started(2),
        text(3, "Hello "),
        text(4, "world"),
        completed(5, "Hello world"),
        state(6, RunState::Completed),
    ]
}

pub fn call(id: &str, name: &str, arguments: &str) -> ToolCall {
    let function = FunctionCall { name: name.into(), arguments_json: arguments.into(), ..FunctionCall::default() };
    ToolCall { id: id.into(), call: Some(Call::Function(function)) }
}

pub fn asking(calls: Vec<ToolCall>, last_sequence: i64) -> Run {
    let required_action = Some(RequiredAction { tool_calls: calls });
    Run { required_action, ..run(RunState::RequiresAction, last_sequence) }
}

pub fn requested(sequence: i64, tool_calls: Vec<ToolCall>) -> RunEvent {
    event(sequence, Event::ToolCallsRequested(ToolCallsRequested { tool_calls }))
}

pub fn snapshot(sequence: i64, run: Run, messages: Vec<Message>) -> RunEvent {
    event(sequence, Event::Snapshot(Snapshot { run: Some(Box::new(run)), steps: Vec::new(), messages }))
}
