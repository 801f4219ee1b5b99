package famulus

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/famulus/famulus/clients/go/famulusv1"
)

// RunResult is a run that ended or needs action, and the messages it wrote.
type RunResult struct {
	// Run is the run. One that failed is no error of the call: look at its state and error.
	Run *famulusv1.Run
	// Messages are in order.
	Messages []*famulusv1.Message
}

// Text returns the text of all messages, a blank line between two.
func (r *RunResult) Text() string { return textOf(r.Messages) }

// RunView is what a run looks like after the events seen so far. The zero value is one before the first event.
//
// After an AttemptStarted, text that was shown but never stored is gone again; a Snapshot replaces everything. A view of a
// stream that was joined in the middle lacks what came before, until facts or a Snapshot bring it. What the methods return
// belongs to the view: clone it (proto.Clone) to keep it beyond the next event, or to change it.
type RunView struct {
	runID     string
	run       *famulusv1.Run
	attempt   int32
	messages  drafts[*famulusv1.Message]
	steps     drafts[*famulusv1.RunStep]
	reasoning []*famulusv1.RunEvent
}

// RunID returns the id of the run; empty until an event brought it.
func (v *RunView) RunID() string { return v.runID }

// Run returns the run as of its latest change of state; nil until an event brought it.
func (v *RunView) Run() *famulusv1.Run { return v.run }

// Attempt returns the number of the latest attempt that was announced; 0 before a first takeover.
func (v *RunView) Attempt() int32 { return v.attempt }

// Finished tells whether the run reached a final state.
func (v *RunView) Finished() bool { return isFinal(v.run.GetState()) }

// Messages returns the messages that the run wrote, the growing one included.
func (v *RunView) Messages() []*famulusv1.Message { return v.messages.all() }

// Steps returns the steps of the run in order, the current one included.
func (v *RunView) Steps() []*famulusv1.RunStep {
	steps := v.steps.all()
	slices.SortStableFunc(steps, func(a, b *famulusv1.RunStep) int { return int(a.GetPosition()) - int(b.GetPosition()) })
	return steps
}

// Text returns the text of all messages, a blank line between two.
func (v *RunView) Text() string { return textOf(v.Messages()) }

// Reasoning returns the model's reasoning; only of runs created with stream_reasoning.
func (v *RunView) Reasoning() string {
	var text strings.Builder
	for _, event := range v.reasoning {
		text.WriteString(event.GetReasoningDelta().GetText())
	}
	return text.String()
}

// Result returns the run and its messages as they are now.
func (v *RunView) Result() *RunResult { return &RunResult{Run: v.run, Messages: v.Messages()} }

// Apply takes in one event. Events must come in order, each once; unknown kinds change nothing. Streams do this for
// their own view.
func (v *RunView) Apply(event *famulusv1.RunEvent) {
	switch kind := event.GetEvent().(type) {
	case *famulusv1.RunEvent_RunStateChanged:
		v.adopt(kind.RunStateChanged.GetRun())
	case *famulusv1.RunEvent_MessageStarted:
		v.name(kind.MessageStarted.GetMessage().GetRunId())
		v.messages.start(event.GetSequence(), kind.MessageStarted.GetMessage())
	case *famulusv1.RunEvent_MessageCompleted:
		v.name(kind.MessageCompleted.GetMessage().GetRunId())
		v.messages.finish(kind.MessageCompleted.GetMessage())
	case *famulusv1.RunEvent_TextDelta:
		v.extendMessage(kind.TextDelta.GetMessageId(), event)
	case *famulusv1.RunEvent_RefusalDelta:
		v.extendMessage(kind.RefusalDelta.GetMessageId(), event)
	case *famulusv1.RunEvent_AnnotationAdded:
		v.extendMessage(kind.AnnotationAdded.GetMessageId(), event)
	case *famulusv1.RunEvent_StepStarted:
		v.name(kind.StepStarted.GetStep().GetRunId())
		v.steps.start(event.GetSequence(), kind.StepStarted.GetStep())
	case *famulusv1.RunEvent_StepCompleted:
		v.name(kind.StepCompleted.GetStep().GetRunId())
		v.steps.finish(kind.StepCompleted.GetStep())
	case *famulusv1.RunEvent_ToolCallDelta:
		id := kind.ToolCallDelta.GetStepId()
		v.steps.extend(event, &famulusv1.RunStep{Id: id}, growStep)
	case *famulusv1.RunEvent_ReasoningDelta:
		v.reasoning = append(v.reasoning, event)
	case *famulusv1.RunEvent_AttemptStarted:
		v.attempt = kind.AttemptStarted.GetAttempt()
		v.discard(kind.AttemptStarted.GetDiscardsAfterSequence())
	case *famulusv1.RunEvent_Snapshot:
		v.replace(event.GetSequence(), kind.Snapshot)
	}
}

// adopt takes over a newer state of the run.
func (v *RunView) adopt(run *famulusv1.Run) {
	v.run = run
	v.name(run.GetId())
	if v.Finished() {
		v.discard(0) // what is not stored when the run ends never will be
	}
}

func (v *RunView) name(runID string) {
	if v.runID == "" {
		v.runID = runID
	}
}

func (v *RunView) extendMessage(id string, event *famulusv1.RunEvent) {
	v.messages.extend(event, &famulusv1.Message{
		Id:    id,
		Role:  famulusv1.MessageRole_MESSAGE_ROLE_ASSISTANT,
		State: famulusv1.MessageState_MESSAGE_STATE_IN_PROGRESS,
	}, growMessage)
}

func (v *RunView) discard(after int64) {
	v.messages.discard(after)
	v.steps.discard(after)
	v.reasoning = upTo(v.reasoning, after)
}

func (v *RunView) replace(sequence int64, snapshot *famulusv1.Snapshot) {
	v.messages, v.steps, v.reasoning = drafts[*famulusv1.Message]{}, drafts[*famulusv1.RunStep]{}, nil
	for _, message := range snapshot.GetMessages() {
		if message.GetState() == famulusv1.MessageState_MESSAGE_STATE_IN_PROGRESS {
			v.messages.start(sequence, message)
		} else {
			v.messages.finish(message)
		}
	}
	for _, step := range snapshot.GetSteps() {
		if step.GetState() == famulusv1.RunStepState_RUN_STEP_STATE_IN_PROGRESS {
			v.steps.start(sequence, step)
		} else {
			v.steps.finish(step)
		}
	}
	v.adopt(snapshot.GetRun())
}

func isFinal(state famulusv1.RunState) bool {
	switch state {
	case famulusv1.RunState_RUN_STATE_CANCELLED,
		famulusv1.RunState_RUN_STATE_FAILED,
		famulusv1.RunState_RUN_STATE_COMPLETED,
		famulusv1.RunState_RUN_STATE_INCOMPLETE,
		famulusv1.RunState_RUN_STATE_EXPIRED:
		return true
	default:
		return false
	}
}

func textOf(messages []*famulusv1.Message) string {
	var texts []string
	for _, message := range messages {
		var text strings.Builder
		for _, part := range message.GetContent() {
			text.WriteString(part.GetText().GetText())
		}
		if text.Len() > 0 {
			texts = append(texts, text.String())
		}
	}
	return strings.Join(texts, "\n\n")
}

// item is a message or a step.
type item interface {
	proto.Message
	GetId() string
}
