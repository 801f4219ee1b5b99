//! What a run makes - messages, steps - while it grows.

use crate::v1::message_part::Part;
use crate::v1::run_event::Event;
use crate::v1::run_step::Details;
use crate::v1::tool_call::Call;
use crate::v1::{
    FunctionCall, Message, MessageRole, MessageState, RefusalPart, RunStep, RunStepState, TextPart, ToolCall,
};

/// More than any message has. A damaged index must not cost memory.
const MOST_PARTS: usize = 1_000;

/// Something that deltas make larger.
pub(crate) trait Growing: Clone {
    fn id(&self) -> &str;
    fn named(id: &str) -> Self;
    fn unfinished(&self) -> bool;
    /// Applies a delta; those of other kinds change nothing.
    fn grow(&mut self, delta: &Event);
}

/// Items of one kind in order of appearance, finished ones and drafts.
#[derive(Clone, Debug)]
pub(crate) struct Items<T>(Vec<Item<T>>);

#[derive(Clone, Debug)]
struct Item<T> {
    now: T,
    /// How it began, while it is a draft.
    draft: Option<Draft<T>>,
}

/// What to go back to where an attempt is given up.
#[derive(Clone, Debug)]
struct Draft<T> {
    began: i64,
    base: T,
    deltas: Vec<(i64, Event)>,
}

impl<T> Default for Items<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Growing> Items<T> {
    pub(crate) fn all(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|item| &item.now)
    }

    pub(crate) fn start(&mut self, sequence: i64, item: &T) {
        self.put(Item::draft(sequence, item.clone()));
    }

    pub(crate) fn finish(&mut self, item: &T) {
        self.put(Item { now: item.clone(), draft: None });
    }

    pub(crate) fn extend(&mut self, id: &str, sequence: i64, delta: &Event) {
        let item = match self.place(id) {
            Some(place) => &mut self.0[place],
            None => {
                // Who joined in the middle has not seen the start.
                self.0.push(Item::draft(sequence, T::named(id)));
                self.0.last_mut().expect("an item was pushed")
            }
        };
        if let Some(draft) = &mut item.draft {
            item.now.grow(delta);
            draft.deltas.push((sequence, delta.clone()));
        }
    }

    /// Drops what was shown behind a sequence and is not stored.
    pub(crate) fn discard(&mut self, after: i64) {
        self.0.retain(|item| item.draft.as_ref().is_none_or(|draft| draft.began <= after));
        for item in &mut self.0 {
            if let Some(draft) = &mut item.draft {
                draft.deltas.retain(|(sequence, _)| *sequence <= after);
                item.now = draft.base.clone();
                draft.deltas.iter().for_each(|(_, delta)| item.now.grow(delta));
            }
        }
    }

    /// Replaces everything by what is there as of a sequence.
    pub(crate) fn replace(&mut self, sequence: i64, items: &[T]) {
        let item = |item: &T| match item.unfinished() {
            true => Item::draft(sequence, item.clone()),
            false => Item { now: item.clone(), draft: None },
        };
        self.0 = items.iter().map(item).collect();
    }

    fn put(&mut self, item: Item<T>) {
        match self.place(item.now.id()) {
            Some(place) => self.0[place] = item,
            None => self.0.push(item),
        }
    }

    fn place(&self, id: &str) -> Option<usize> {
        // From the end: it is mostly the newest one that grows.
        self.0.iter().rposition(|item| item.now.id() == id)
    }
}

impl<T: Growing> Item<T> {
    fn draft(began: i64, base: T) -> Self {
        Self { now: base.clone(), draft: Some(Draft { began, base, deltas: Vec::new() }) }
    }
}

impl Growing for Message {
    fn id(&self) -> &str {
        &self.id
    }

    fn named(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            role: MessageRole::Assistant.into(),
            state: MessageState::InProgress.into(),
            ..Self::default()
        }
    }

    fn unfinished(&self) -> bool {
        self.state() == MessageState::InProgress
    }

    fn grow(&mut self, delta: &Event) {
        match delta {
            Event::TextDelta(delta) => {
                if let Some(text) = text(self, delta.part_index) {
                    text.text.push_str(&delta.text);
                }
            }
            Event::AnnotationAdded(delta) => {
                if let Some(text) = text(self, delta.part_index) {
                    text.annotations.extend(delta.annotation.clone());
                }
            }
            Event::RefusalDelta(delta) => {
                let Some(part) = part(self, delta.part_index) else { return };
                if !matches!(part, Some(Part::Refusal(_))) {
                    *part = Some(Part::Refusal(RefusalPart::default()));
                }
                if let Some(Part::Refusal(refusal)) = part {
                    refusal.refusal.push_str(&delta.refusal);
                }
            }
            _ => {}
        }
    }
}

/// The text part at an index; None where the index makes no sense.
fn text(message: &mut Message, index: i32) -> Option<&mut TextPart> {
    let part = part(message, index)?;
    if !matches!(part, Some(Part::Text(_))) {
        *part = Some(Part::Text(TextPart::default()));
    }
    match part {
        Some(Part::Text(text)) => Some(text),
        _ => None,
    }
}

/// The part at an index, made if need be; None where the index makes no sense.
fn part(message: &mut Message, index: i32) -> Option<&mut Option<Part>> {
    let index = usize::try_from(index).ok().filter(|index| *index < MOST_PARTS)?;
    if message.content.len() <= index {
        message.content.resize_with(index + 1, Default::default);
    }
    Some(&mut message.content[index].part)
}

impl Growing for RunStep {
    fn id(&self) -> &str {
        &self.id
    }

    fn named(id: &str) -> Self {
        Self { id: id.to_owned(), state: RunStepState::InProgress.into(), ..Self::default() }
    }

    fn unfinished(&self) -> bool {
        self.state() == RunStepState::InProgress
    }

    fn grow(&mut self, delta: &Event) {
        let Event::ToolCallDelta(delta) = delta else { return };
        if !matches!(self.details, Some(Details::ToolCalls(_))) {
            self.details = Some(Details::ToolCalls(Default::default()));
        }
        let Some(Details::ToolCalls(batch)) = &mut self.details else { return };
        let calls = &mut batch.tool_calls;
        let place = calls.iter().position(|call| call.id == delta.call_id).unwrap_or_else(|| {
            calls.push(ToolCall { id: delta.call_id.clone(), call: None });
            calls.len() - 1
        });
        let call = calls[place].call.get_or_insert_with(|| Call::Function(FunctionCall::default()));
        if let Call::Function(function) = call {
            if function.name.is_empty() {
                function.name.clone_from(&delta.name);
            }
            function.arguments_json.push_str(&delta.arguments_json_delta);
        }
    }
}
