//! What is written for events, ends, results and errors.

use famulus::tonic::Code;
use famulus::v1::run_event::Event;
use famulus::v1::run_step::Details;
use famulus::v1::tool_call::Call;
use famulus::v1::*;
use famulus::{Error, RunResult, RunView, text_of};
use serde_json::{Value, json};

fn state_of_run(run: Option<&Run>) -> &'static str {
    run.map_or("", |run| without(run.state().as_str_name(), "RUN_STATE_"))
}

fn error_of_run(run: Option<&Run>) -> &'static str {
    let error = run.and_then(|run| run.error.as_ref());
    error.map_or("", |error| without(error.code().as_str_name(), "RUN_ERROR_CODE_"))
}

fn without(name: &'static str, prefix: &str) -> &'static str {
    name.strip_prefix(prefix).unwrap_or(name)
}

fn step(kind: &str, step: Option<&RunStep>) -> Value {
    let step = step.cloned().unwrap_or_default();
    let state = without(step.state().as_str_name(), "RUN_STEP_STATE_");
    let calls = match step.details {
        Some(Details::ToolCalls(batch)) => batch.tool_calls,
        _ => Vec::new(),
    };
    let calls: Vec<Value> = functions(&calls)
        .map(|call| json!({"name": call.name, "arguments": call.arguments_json, "output": call.output()}))
        .collect();
    json!({"kind": kind, "state": state, "calls": calls})
}

fn message(kind: &str, message: Option<&Message>) -> Value {
    let message = message.cloned().unwrap_or_default();
    let state = without(message.state().as_str_name(), "MESSAGE_STATE_");
    json!({"kind": kind, "state": state, "text": text_of(&message)})
}

fn functions(calls: &[ToolCall]) -> impl Iterator<Item = &FunctionCall> {
    calls.iter().filter_map(|call| match &call.call {
        Some(Call::Function(function)) => Some(function),
        _ => None,
    })
}

/// What stands behind `event`.
pub fn event(event: &RunEvent) -> Value {
    let mut line = match &event.event {
        None => json!({"kind": "unknown"}),
        Some(kind) => kind_of(kind),
    };
    line["sequence"] = event.sequence.into();
    line
}

fn kind_of(event: &Event) -> Value {
    match event {
        Event::RunStateChanged(changed) => {
            let run = changed.run.as_deref();
            json!({"kind": "run_state_changed", "state": state_of_run(run), "error": error_of_run(run)})
        }
        Event::StepStarted(started) => step("step_started", started.step.as_ref()),
        Event::StepCompleted(completed) => step("step_completed", completed.step.as_ref()),
        Event::MessageStarted(started) => message("message_started", started.message.as_ref()),
        Event::MessageCompleted(completed) => message("message_completed", completed.message.as_ref()),
        Event::TextDelta(delta) => json!({"kind": "text_delta", "part_index": delta.part_index, "text": delta.text}),
        Event::RefusalDelta(delta) => {
            json!({"kind": "refusal_delta", "part_index": delta.part_index, "refusal": delta.refusal})
        }
        Event::AnnotationAdded(added) => json!({"kind": "annotation_added", "part_index": added.part_index}),
        Event::ToolCallDelta(delta) => {
            json!({"kind": "tool_call_delta", "name": delta.name, "arguments": delta.arguments_json_delta})
        }
        Event::ToolCallsRequested(requested) => {
            let names: Vec<&str> = functions(&requested.tool_calls).map(|call| call.name.as_str()).collect();
            json!({"kind": "tool_calls_requested", "names": names})
        }
        Event::ToolOutputReceived(received) => {
            let call = functions(&received.tool_calls).next().cloned().unwrap_or_default();
            json!({"kind": "tool_output_received", "output": call.output(), "is_error": call.output_is_error})
        }
        Event::ReasoningDelta(delta) => json!({"kind": "reasoning_delta", "text": delta.text}),
        Event::RetryScheduled(scheduled) => {
            let reason = without(scheduled.reason().as_str_name(), "RUN_ERROR_CODE_");
            json!({"kind": "retry_scheduled", "reason": reason})
        }
        Event::AttemptStarted(started) => json!({
            "kind": "attempt_started",
            "attempt": started.attempt,
            "discards_after": started.discards_after_sequence,
        }),
        Event::Snapshot(snapshot) => {
            let texts: Vec<String> = snapshot.messages.iter().map(text_of).collect();
            json!({"kind": "snapshot", "state": state_of_run(snapshot.run.as_deref()), "texts": texts})
        }
    }
}

/// What stands behind `view`.
pub fn view(view: &RunView) -> Value {
    json!({
        "state": state_of_run(view.run()),
        "text": view.text(),
        "attempt": view.attempt(),
        "messages": view.messages().count(),
        "steps": view.steps().len(),
    })
}

/// What stands behind `result`.
pub fn result(result: &RunResult) -> Value {
    let usage = result.run.usage.unwrap_or_default();
    json!({
        "state": state_of_run(Some(&result.run)),
        "error": error_of_run(Some(&result.run)),
        "text": result.text(),
        "messages": result.messages.len(),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    })
}

/// What stands behind `error`.
pub fn error(error: &Error) -> Value {
    let violations: Vec<Value> = error
        .violations()
        .iter()
        .map(|wrong| json!({"field": wrong.field, "description": wrong.description}))
        .collect();
    json!({
        "code": code(error.code()),
        "reason": error.reason_name(),
        "message": error.message(),
        "metadata": error.metadata(),
        "violations": violations,
        "retry_after": error.retry_after().is_some(),
    })
}

/// The code as gRPC names it: tonic says `NotFound`.
fn code(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}
