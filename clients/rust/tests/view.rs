//! What a run looks like after the events seen so far.
#![allow(missing_docs)]

use famulus::RunView;
use famulus::v1::message_part::Part;
use famulus::v1::run_event::Event;
use famulus::v1::run_step::Details;
use famulus::v1::tool_call::Call;
use famulus::v1::*;

fn event(sequence: i64, event: Event) -> RunEvent {
    RunEvent { sequence, event: Some(event), ..RunEvent::default() }
}

fn state(sequence: i64, state: RunState) -> RunEvent {
    let run = Run { id: "run_1".into(), state: state.into(), ..Run::default() };
    event(sequence, Event::RunStateChanged(RunStateChanged { run: Some(Box::new(run)) }))
}

fn message(id: &str, text: &str, state: MessageState) -> Message {
    let state = state.into();
    Message { id: id.into(), run_id: "run_1".into(), state, ..famulus::user_message(text) }
}

fn started(sequence: i64, id: &str) -> RunEvent {
    let message = Message { content: Vec::new(), ..message(id, "", MessageState::InProgress) };
    event(sequence, Event::MessageStarted(MessageStarted { message: Some(message) }))
}

fn completed(sequence: i64, id: &str, text: &str) -> RunEvent {
    let message = Some(message(id, text, MessageState::Completed));
    event(sequence, Event::MessageCompleted(MessageCompleted { message }))
}

fn text(sequence: i64, id: &str, part_index: i32, text: &str) -> RunEvent {
    event(sequence, Event::TextDelta(TextDelta { message_id: id.into(), part_index, text: text.into() }))
}

fn attempt(sequence: i64, discards_after_sequence: i64) -> RunEvent {
    event(sequence, Event::AttemptStarted(AttemptStarted { attempt: 2, discards_after_sequence }))
}

fn after(events: &[RunEvent]) -> RunView {
    let mut view = RunView::new();
    events.iter().for_each(|event| view.apply(event));
    view
}

#[test]
fn text_grows_and_a_stored_message_replaces_what_was_shown() {
    let mut view = after(&[started(1, "a"), text(2, "a", 0, "Hel"), text(3, "a", 0, "lo")]);
    assert_eq!((view.text().as_str(), view.run_id()), ("Hello", "run_1"));
    view.apply(&completed(4, "a", "Hello!"));
    view.apply(&text(5, "a", 0, " late"));
    assert_eq!((view.text().as_str(), view.messages().count()), ("Hello!", 1));
}

#[test]
fn messages_are_joined_by_a_blank_line_and_empty_ones_left_out() {
    let view = after(&[completed(1, "a", "one"), completed(2, "b", ""), completed(3, "c", "two")]);
    assert_eq!(view.text(), "one\n\ntwo");
}

#[test]
fn parts_of_a_message_keep_their_places() {
    let refusal = RefusalDelta { message_id: "a".into(), part_index: 1, refusal: "No.".into() };
    let note = Annotation { text: "[1]".into(), ..Annotation::default() };
    let noted = AnnotationAdded { message_id: "a".into(), part_index: 2, annotation: Some(note) };
    let view = after(&[
        text(1, "a", 2, "last"),
        event(2, Event::RefusalDelta(refusal)),
        event(3, Event::AnnotationAdded(noted)),
        text(4, "a", 0, "first "),
    ]);
    let message = view.messages().next().unwrap();
    assert_eq!((message.role(), message.state()), (MessageRole::Assistant, MessageState::InProgress));
    assert!(matches!(&message.content[1].part, Some(Part::Refusal(refusal)) if refusal.refusal == "No."));
    assert!(matches!(&message.content[2].part, Some(Part::Text(text)) if text.annotations.len() == 1));
    assert_eq!(view.text(), "first last");
}

#[test]
fn an_index_that_makes_no_sense_is_ignored() {
    for index in [-1, 1_000, i32::MAX] {
        assert!(after(&[started(1, "a"), text(2, "a", index, "x")]).messages().next().unwrap().content.is_empty());
    }
    assert_eq!(after(&[text(2, "a", 999, "x")]).messages().next().unwrap().content.len(), 1_000);
}

#[test]
fn an_attempt_discards_exactly_what_came_behind_a_sequence() {
    let events = [started(1, "a"), text(2, "a", 0, "1"), text(3, "a", 0, "2"), text(4, "a", 0, "3")];
    for (kept, expected) in [(0, ""), (1, ""), (2, "1"), (3, "12"), (4, "123")] {
        let mut view = after(&events);
        view.apply(&attempt(1001, kept));
        assert_eq!(view.text(), expected);
        assert_eq!((view.messages().count(), view.attempt()), (usize::from(kept > 0), 2));
    }
    let mut view = after(&[completed(1, "a", "stored"), started(2, "b"), text(3, "b", 0, "draft")]);
    view.apply(&attempt(1001, 0));
    assert_eq!(view.text(), "stored");
}

#[test]
fn a_snapshot_replaces_everything_and_deltas_go_on_from_it() {
    let run = Run { id: "run_1".into(), state: RunState::InProgress.into(), ..Run::default() };
    let messages = vec![message("b", "kept", MessageState::Completed), message("c", "dra", MessageState::InProgress)];
    let steps = vec![RunStep { id: "s".into(), position: 1, ..RunStep::default() }];
    let snapshot = Snapshot { run: Some(Box::new(run)), steps, messages };
    let mut view = after(&[completed(1, "a", "gone"), event(9, Event::Snapshot(snapshot)), text(10, "c", 0, "ft")]);
    assert_eq!((view.text().as_str(), view.steps().len()), ("kept\n\ndraft", 1));
    view.apply(&attempt(1001, 9));
    assert_eq!(view.text(), "kept\n\ndra");
    view.apply(&attempt(2001, 8));
    assert_eq!(view.text(), "kept");
}

#[test]
fn what_was_never_stored_is_gone_when_the_run_ends() {
    let mut view = after(&[state(1, RunState::InProgress), completed(2, "a", "stored"), started(3, "b")]);
    view.apply(&text(4, "b", 0, "draft"));
    assert!(!view.is_finished());
    view.apply(&state(5, RunState::Cancelled));
    assert!(view.is_finished());
    let result = view.result().unwrap();
    assert_eq!((result.text().as_str(), result.messages.len()), ("stored", 1));
}

#[test]
fn arguments_of_tool_calls_grow_in_their_step_and_steps_are_in_order() {
    let delta = |sequence, call_id: &str, name: &str, arguments: &str| {
        let delta = ToolCallDelta {
            step_id: "s2".into(),
            call_id: call_id.into(),
            name: name.into(),
            arguments_json_delta: arguments.into(),
        };
        event(sequence, Event::ToolCallDelta(delta))
    };
    let step = |sequence, id: &str, position| {
        let step = RunStep { id: id.into(), position, state: RunStepState::InProgress.into(), ..RunStep::default() };
        event(sequence, Event::StepStarted(StepStarted { step: Some(step) }))
    };
    let view = after(&[
        step(1, "s2", 2),
        step(2, "s1", 1),
        delta(3, "x", "f", ""),
        delta(4, "x", "", "{\"a\":"),
        delta(5, "y", "g", "{}"),
        delta(6, "x", "", "1}"),
    ]);
    let steps = view.steps();
    assert_eq!(steps.iter().map(|step| step.id.as_str()).collect::<Vec<_>>(), ["s1", "s2"]);
    let Some(Details::ToolCalls(batch)) = &steps[1].details else { panic!("it calls tools") };
    let calls: Vec<_> = batch
        .tool_calls
        .iter()
        .map(|call| match &call.call {
            Some(Call::Function(function)) => (function.name.as_str(), function.arguments_json.as_str()),
            _ => panic!("it is a function"),
        })
        .collect();
    assert_eq!(calls, [("f", "{\"a\":1}"), ("g", "{}")]);
}

#[test]
fn the_result_needs_a_run_and_unknown_kinds_change_nothing() {
    let view = after(&[RunEvent { sequence: 1, ..RunEvent::default() }, text(2, "a", 0, "x")]);
    assert!(view.result().is_none());
    assert_eq!((view.run_id(), view.text().as_str()), ("", "x"));
}
