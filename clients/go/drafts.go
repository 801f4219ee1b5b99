package famulus

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/famulus/famulus/clients/go/famulusv1"
)

// mostParts is more than any message has: a damaged index must not cost memory.
const mostParts = 1000

// drafts are the messages or steps of a run in order of appearance, finished ones and drafts.
type drafts[T item] struct {
	entries []*entry[T]
}

// entry is one of them. That of a draft has the draft as it began, and the deltas that came since.
type entry[T item] struct {
	base    T
	draft   bool
	began   int64 // sequence
	deltas  []*famulusv1.RunEvent
	grow    func(T, *famulusv1.RunEvent)
	built   T
	applied int // deltas that are in built; built is not valid while 0
}

func (d *drafts[T]) all() []T {
	items := make([]T, 0, len(d.entries))
	for _, entry := range d.entries {
		items = append(items, entry.build())
	}
	return items
}

func (d *drafts[T]) find(id string) *entry[T] {
	// From the end: it is nearly always the newest.
	for _, entry := range slices.Backward(d.entries) {
		if entry.base.GetId() == id {
			return entry
		}
	}
	return nil
}

// put puts an entry in the place of the one with its id, or behind all others.
func (d *drafts[T]) put(fresh *entry[T]) {
	if old := d.find(fresh.base.GetId()); old != nil {
		*old = *fresh
	} else {
		d.entries = append(d.entries, fresh)
	}
}

func (d *drafts[T]) start(sequence int64, item T) {
	d.put(&entry[T]{base: item, draft: true, began: sequence})
}

func (d *drafts[T]) finish(item T) { d.put(&entry[T]{base: item}) }

// extend adds a delta to a draft. Whoever joined in the middle has not seen its start, and begins with blank.
func (d *drafts[T]) extend(delta *famulusv1.RunEvent, blank T, grow func(T, *famulusv1.RunEvent)) {
	entry := d.find(blank.GetId())
	if entry == nil {
		d.start(delta.GetSequence(), blank)
		entry = d.entries[len(d.entries)-1]
	}
	if entry.draft {
		entry.grow = grow
		entry.deltas = append(entry.deltas, delta)
	}
}

// discard drops what was shown behind a sequence and is not stored.
func (d *drafts[T]) discard(after int64) {
	d.entries = slices.DeleteFunc(d.entries, func(e *entry[T]) bool { return e.draft && e.began > after })
	for _, entry := range d.entries {
		if entry.draft {
			entry.deltas, entry.applied = upTo(entry.deltas, after), 0
		}
	}
}

// build returns the item as it is now. Each delta is applied once, however often this is called.
func (e *entry[T]) build() T {
	if len(e.deltas) == 0 {
		return e.base
	}
	if e.applied == 0 {
		e.built = proto.Clone(e.base).(T)
	}
	for _, delta := range e.deltas[e.applied:] {
		e.grow(e.built, delta)
	}
	e.applied = len(e.deltas)
	return e.built
}

// upTo returns the events up to a sequence.
func upTo(events []*famulusv1.RunEvent, sequence int64) []*famulusv1.RunEvent {
	for i, event := range events {
		if event.GetSequence() > sequence {
			return events[:i:i]
		}
	}
	return events
}

// growMessage applies a delta to a message.
func growMessage(message *famulusv1.Message, event *famulusv1.RunEvent) {
	switch delta := event.GetEvent().(type) {
	case *famulusv1.RunEvent_TextDelta:
		if part := textPart(message, delta.TextDelta.GetPartIndex()); part != nil {
			part.Text += delta.TextDelta.GetText()
		}
	case *famulusv1.RunEvent_AnnotationAdded:
		if part := textPart(message, delta.AnnotationAdded.GetPartIndex()); part != nil {
			part.Annotations = append(part.Annotations, delta.AnnotationAdded.GetAnnotation())
		}
	case *famulusv1.RunEvent_RefusalDelta:
		part := partAt(message, delta.RefusalDelta.GetPartIndex())
		if part == nil {
			return
		}
		if part.GetRefusal() == nil {
			part.Part = &famulusv1.MessagePart_Refusal{Refusal: &famulusv1.RefusalPart{}}
		}
		part.GetRefusal().Refusal += delta.RefusalDelta.GetRefusal()
	}
}

func textPart(message *famulusv1.Message, index int32) *famulusv1.TextPart {
	part := partAt(message, index)
	if part == nil {
		return nil
	}
	if part.GetText() == nil {
		part.Part = &famulusv1.MessagePart_Text{Text: &famulusv1.TextPart{}}
	}
	return part.GetText()
}

// partAt returns the part at an index, made if need be; nil where the index makes no sense.
func partAt(message *famulusv1.Message, index int32) *famulusv1.MessagePart {
	if index < 0 || index >= mostParts {
		return nil
	}
	for len(message.Content) <= int(index) {
		message.Content = append(message.Content, &famulusv1.MessagePart{})
	}
	return message.Content[index]
}

// growStep applies a fragment of a call's arguments to its step.
func growStep(step *famulusv1.RunStep, event *famulusv1.RunEvent) {
	delta := event.GetToolCallDelta()
	call := callOf(step, delta.GetCallId())
	if call.Name == "" {
		call.Name = delta.GetName()
	}
	call.ArgumentsJson += delta.GetArgumentsJsonDelta()
}

// callOf returns the function call of a step, added if need be.
func callOf(step *famulusv1.RunStep, id string) *famulusv1.FunctionCall {
	if step.GetToolCalls() == nil {
		step.Details = &famulusv1.RunStep_ToolCalls{ToolCalls: &famulusv1.ToolCallBatch{}}
	}
	batch := step.GetToolCalls()
	i := slices.IndexFunc(batch.ToolCalls, func(c *famulusv1.ToolCall) bool { return c.GetId() == id })
	if i < 0 {
		i = len(batch.ToolCalls)
		batch.ToolCalls = append(batch.ToolCalls, &famulusv1.ToolCall{Id: id})
	}
	call := batch.ToolCalls[i]
	if call.GetFunction() == nil {
		call.Call = &famulusv1.ToolCall_Function{Function: &famulusv1.FunctionCall{}}
	}
	return call.GetFunction()
}
