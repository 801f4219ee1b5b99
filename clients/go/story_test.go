package famulus_test

import (
	"google.golang.org/protobuf/proto"

	"github.com/famulus/famulus/clients/go/famulusv1"
)

const (
	queued         = famulusv1.RunState_RUN_STATE_QUEUED
	inProgress     = famulusv1.RunState_RUN_STATE_IN_PROGRESS
	requiresAction = famulusv1.RunState_RUN_STATE_REQUIRES_ACTION
	completed      = famulusv1.RunState_RUN_STATE_COMPLETED
	runID          = "run_1"
)

// story writes a log, one event per call.
type story struct {
	log []*famulusv1.RunEvent
}

func (s *story) last() int64 {
	if len(s.log) == 0 {
		return 0
	}
	return s.log[len(s.log)-1].Sequence
}

func (s *story) tell(event *famulusv1.RunEvent) *story {
	if event.Sequence == 0 {
		event.Sequence = s.last() + 1
	}
	s.log = append(s.log, event)
	return s
}

func (s *story) state(state famulusv1.RunState, calls ...*famulusv1.ToolCall) *story {
	run := &famulusv1.Run{Id: runID, State: state, LastSequence: s.last() + 1}
	if len(calls) > 0 {
		run.RequiredAction = &famulusv1.RequiredAction{ToolCalls: calls}
	}
	return s.tell(changed(run))
}

// begin starts a step that writes a message.
func (s *story) begin(id string) *story {
	s.tell(&famulusv1.RunEvent{Event: &famulusv1.RunEvent_StepStarted{StepStarted: &famulusv1.StepStarted{
		Step: messageStep(id, famulusv1.RunStepState_RUN_STEP_STATE_IN_PROGRESS),
	}}})
	return s.tell(&famulusv1.RunEvent{Event: &famulusv1.RunEvent_MessageStarted{MessageStarted: &famulusv1.MessageStarted{
		Message: written(id, "", famulusv1.MessageState_MESSAGE_STATE_IN_PROGRESS),
	}}})
}

func (s *story) text(id string, fragments ...string) *story {
	for _, fragment := range fragments {
		s.tell(textDelta(id, 0, fragment))
	}
	return s
}

// end ends the message and its step.
func (s *story) end(id, text string) *story {
	s.tell(&famulusv1.RunEvent{Event: &famulusv1.RunEvent_MessageCompleted{MessageCompleted: &famulusv1.MessageCompleted{
		Message: written(id, text, famulusv1.MessageState_MESSAGE_STATE_COMPLETED),
	}}})
	return s.tell(&famulusv1.RunEvent{Event: &famulusv1.RunEvent_StepCompleted{StepCompleted: &famulusv1.StepCompleted{
		Step: messageStep(id, famulusv1.RunStepState_RUN_STEP_STATE_COMPLETED),
	}}})
}

func (s *story) takeover(attempt int32, discardsAfter, base int64) *story {
	return s.tell(&famulusv1.RunEvent{Sequence: base, Event: &famulusv1.RunEvent_AttemptStarted{
		AttemptStarted: &famulusv1.AttemptStarted{Attempt: attempt, DiscardsAfterSequence: discardsAfter},
	}})
}

// ask asks for tool outputs.
func (s *story) ask(calls ...*famulusv1.ToolCall) *story {
	s.tell(&famulusv1.RunEvent{Event: &famulusv1.RunEvent_ToolCallsRequested{
		ToolCallsRequested: &famulusv1.ToolCallsRequested{ToolCalls: calls},
	}})
	return s.state(requiresAction, calls...)
}

func changed(run *famulusv1.Run) *famulusv1.RunEvent {
	return &famulusv1.RunEvent{Event: &famulusv1.RunEvent_RunStateChanged{
		RunStateChanged: &famulusv1.RunStateChanged{Run: run},
	}}
}

func textDelta(id string, part int32, text string) *famulusv1.RunEvent {
	return &famulusv1.RunEvent{Event: &famulusv1.RunEvent_TextDelta{
		TextDelta: &famulusv1.TextDelta{MessageId: id, PartIndex: part, Text: text},
	}}
}

func written(id, text string, state famulusv1.MessageState) *famulusv1.Message {
	message := &famulusv1.Message{
		Id: id, RunId: runID, State: state, Role: famulusv1.MessageRole_MESSAGE_ROLE_ASSISTANT,
	}
	if text != "" {
		message.Content = []*famulusv1.MessagePart{{
			Part: &famulusv1.MessagePart_Text{Text: &famulusv1.TextPart{Text: text}},
		}}
	}
	return message
}

func messageStep(id string, state famulusv1.RunStepState) *famulusv1.RunStep {
	return &famulusv1.RunStep{Id: "step_of_" + id, RunId: runID, State: state, Details: &famulusv1.RunStep_MessageCreation{
		MessageCreation: &famulusv1.MessageCreation{MessageId: id},
	}}
}

func toolCall(id, name, arguments string) *famulusv1.ToolCall {
	return &famulusv1.ToolCall{Id: id, Call: &famulusv1.ToolCall_Function{
		Function: &famulusv1.FunctionCall{Name: name, ArgumentsJson: arguments},
	}}
}

func snapshot(sequence int64, run *famulusv1.Run, messages ...*famulusv1.Message) *famulusv1.RunEvent {
	return &famulusv1.RunEvent{Sequence: sequence, Event: &famulusv1.RunEvent_Snapshot{
		Snapshot: &famulusv1.Snapshot{Run: run, Messages: messages},
	}}
}

// plain is a run that writes one message.
func plain() []*famulusv1.RunEvent {
	s := new(story).state(queued).state(inProgress).begin("msg_1").text("msg_1", "Good", " ", "morning", ", ", "world")
	return s.end("msg_1", "Good morning, world").state(completed).log
}

// takenOver is a run that was taken over in the middle of its second message, twice.
func takenOver() []*famulusv1.RunEvent {
	s := new(story).state(inProgress).begin("msg_1").text("msg_1", "One").end("msg_1", "One")
	stored := s.last()
	s.begin("msg_2").text("msg_2", "Two, ", "they")
	s.takeover(2, stored, 1000).begin("msg_3").text("msg_3", "Tw")
	s.takeover(3, stored, 2000).begin("msg_4").text("msg_4", "Two, ", "we say")
	return s.end("msg_4", "Two, we say").state(completed).log
}

// withTools is a run that asks for outputs and then writes a message.
func withTools(calls ...*famulusv1.ToolCall) []*famulusv1.RunEvent {
	s := new(story).state(inProgress).ask(calls...).state(inProgress).begin("msg_1").text("msg_1", "Do", "ne")
	return s.end("msg_1", "Done").state(completed).log
}

func equal(a, b []*famulusv1.RunEvent) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !proto.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}
