package famulus_test

import (
	"testing"

	famulus "github.com/famulus/famulus/clients/go"
	"github.com/famulus/famulus/clients/go/famulusv1"
)

// viewOf is the view after all of these events.
func viewOf(events []*famulusv1.RunEvent) *famulus.RunView {
	view := new(famulus.RunView)
	for _, event := range events {
		view.Apply(event)
	}
	return view
}

func expectText(t *testing.T, view *famulus.RunView, want string) {
	t.Helper()
	if text := view.Text(); text != want {
		t.Errorf("the text is %q, not %q", text, want)
	}
}

func TestTextGrowsWithItsDeltas(t *testing.T) {
	view := viewOf(new(story).state(inProgress).begin("msg_1").log)
	for i, want := range []string{"a", "aa", "aaa"} {
		delta := textDelta("msg_1", 0, "a")
		delta.Sequence = int64(4 + i)
		view.Apply(delta)
		expectText(t, view, want)
		expectText(t, view, want) // built once
	}
}

func TestAStoredMessageReplacesWhatWasShown(t *testing.T) {
	view := viewOf(new(story).begin("msg_1").text("msg_1", "shown").end("msg_1", "stored").text("msg_1", "late").log)
	expectText(t, view, "stored")
}

func TestPartsOfAMessageKeepTheirPlaces(t *testing.T) {
	refusal := &famulusv1.RunEvent{Event: &famulusv1.RunEvent_RefusalDelta{
		RefusalDelta: &famulusv1.RefusalDelta{MessageId: "msg_1", PartIndex: 1, Refusal: "no"},
	}}
	note := &famulusv1.RunEvent{Event: &famulusv1.RunEvent_AnnotationAdded{AnnotationAdded: &famulusv1.AnnotationAdded{
		MessageId: "msg_1", PartIndex: 2, Annotation: &famulusv1.Annotation{Text: "b"},
	}}}
	view := viewOf(new(story).tell(textDelta("msg_1", 2, "b")).tell(refusal).tell(note).tell(textDelta("msg_1", 0, "a")).log)
	content := view.Messages()[0].GetContent()
	if len(content) != 3 || content[1].GetRefusal().GetRefusal() != "no" || len(content[2].GetText().GetAnnotations()) != 1 {
		t.Errorf("the parts are %v", content)
	}
	expectText(t, view, "ab")
}

func TestAnIndexThatMakesNoSenseIsIgnored(t *testing.T) {
	for _, index := range []int32{-1, 1000, 1 << 30} {
		expectText(t, viewOf(new(story).begin("msg_1").tell(textDelta("msg_1", index, "x")).log), "")
	}
	if parts := viewOf(new(story).tell(textDelta("msg_1", 999, "x")).log).Messages()[0].GetContent(); len(parts) != 1000 {
		t.Errorf("%d parts", len(parts))
	}
}

func TestAnAttemptDiscardsExactlyWhatCameBehindASequence(t *testing.T) {
	for kept := range int64(4) {
		log := new(story).state(inProgress).begin("msg_1").text("msg_1", "1", "2", "3").takeover(2, 3+kept, 100).log
		view := viewOf(log[:6])
		expectText(t, view, "123")
		view.Apply(log[6])
		expectText(t, view, "123"[:kept])
	}
	view := viewOf(new(story).state(inProgress).begin("msg_1").text("msg_1", "1").takeover(2, 1, 100).log)
	if len(view.Messages()) != 0 || len(view.Steps()) != 0 || view.Attempt() != 2 {
		t.Errorf("left are %v and %v", view.Messages(), view.Steps())
	}
}

func TestAnAttemptDiscardsReasoningAndWhatASnapshotShowed(t *testing.T) {
	reasoning := &famulusv1.RunEvent{Event: &famulusv1.RunEvent_ReasoningDelta{
		ReasoningDelta: &famulusv1.ReasoningDelta{Text: "hm"},
	}}
	log := new(story).tell(snapshot(5, &famulusv1.Run{Id: runID, State: inProgress},
		written("msg_1", "stored", famulusv1.MessageState_MESSAGE_STATE_COMPLETED),
		written("msg_2", "shown", famulusv1.MessageState_MESSAGE_STATE_IN_PROGRESS),
	)).tell(reasoning).text("msg_2", ", too").takeover(2, 4, 100).log
	view := viewOf(log[:3])
	expectText(t, view, "stored\n\nshown, too")
	if view.Reasoning() != "hm" {
		t.Errorf("the reasoning is %q", view.Reasoning())
	}
	view.Apply(log[3])
	expectText(t, view, "stored")
	if view.Reasoning() != "" {
		t.Errorf("the reasoning is %q", view.Reasoning())
	}
}

func TestASnapshotReplacesEverything(t *testing.T) {
	log := new(story).begin("msg_1").text("msg_1", "old").tell(snapshot(0, &famulusv1.Run{Id: runID})).log
	view := viewOf(log)
	if len(view.Messages()) != 0 || len(view.Steps()) != 0 || view.Run().GetId() != runID {
		t.Errorf("left are %v and %v", view.Messages(), view.Steps())
	}
}

func TestWhatWasNeverStoredIsGoneWhenTheRunEnds(t *testing.T) {
	view := viewOf(new(story).begin("msg_1").text("msg_1", "old").state(completed).log)
	if len(view.Messages()) != 0 || len(view.Steps()) != 0 || !view.Finished() {
		t.Errorf("left are %v and %v", view.Messages(), view.Steps())
	}
}

func TestArgumentsOfToolCallsGrowInTheirStep(t *testing.T) {
	fragment := func(call, name, text string) *famulusv1.RunEvent {
		return &famulusv1.RunEvent{Event: &famulusv1.RunEvent_ToolCallDelta{ToolCallDelta: &famulusv1.ToolCallDelta{
			StepId: "step_1", CallId: call, Name: name, ArgumentsJsonDelta: text,
		}}}
	}
	view := viewOf(new(story).tell(fragment("call_1", "add", `{"a"`)).tell(fragment("call_2", "sub", "{}")).
		tell(fragment("call_1", "", `:1}`)).log)
	calls := view.Steps()[0].GetToolCalls().GetToolCalls()
	if len(calls) != 2 || calls[0].GetFunction().GetName() != "add" || calls[0].GetFunction().GetArgumentsJson() != `{"a":1}` {
		t.Errorf("the calls are %v", calls)
	}
}

func TestWhatTheEventsBroughtIsNotChangedByTheView(t *testing.T) {
	log := new(story).begin("msg_1").text("msg_1", "x").log
	expectText(t, viewOf(log), "x")
	if len(log[1].GetMessageStarted().GetMessage().GetContent()) != 0 {
		t.Error("the event grew")
	}
}
