package main

import (
	"strings"

	"google.golang.org/genproto/googleapis/rpc/code"

	famulus "github.com/famulus/famulus/clients/go"
	"github.com/famulus/famulus/clients/go/famulusv1"
)

// eventOf describes an event by its kind.
func eventOf(event *famulusv1.RunEvent) line {
	fields := line{"kind": "unknown"}
	message := event.ProtoReflect()
	if kind := message.WhichOneof(message.Descriptor().Oneofs().ByName("event")); kind != nil {
		fields = detailsOf(event)
		fields["kind"] = string(kind.Name())
	}
	fields["sequence"] = event.GetSequence()
	return fields
}

func detailsOf(event *famulusv1.RunEvent) line {
	switch kind := event.GetEvent().(type) {
	case *famulusv1.RunEvent_RunStateChanged:
		run := kind.RunStateChanged.GetRun()
		return line{"state": runState(run), "error": runError(run)}
	case *famulusv1.RunEvent_StepStarted:
		return stepOf(kind.StepStarted.GetStep())
	case *famulusv1.RunEvent_StepCompleted:
		return stepOf(kind.StepCompleted.GetStep())
	case *famulusv1.RunEvent_MessageStarted:
		return messageOf(kind.MessageStarted.GetMessage())
	case *famulusv1.RunEvent_MessageCompleted:
		return messageOf(kind.MessageCompleted.GetMessage())
	case *famulusv1.RunEvent_TextDelta:
		return line{"part_index": kind.TextDelta.GetPartIndex(), "text": kind.TextDelta.GetText()}
	case *famulusv1.RunEvent_RefusalDelta:
		return line{"part_index": kind.RefusalDelta.GetPartIndex(), "refusal": kind.RefusalDelta.GetRefusal()}
	case *famulusv1.RunEvent_AnnotationAdded:
		return line{"part_index": kind.AnnotationAdded.GetPartIndex()}
	case *famulusv1.RunEvent_ToolCallDelta:
		return line{"name": kind.ToolCallDelta.GetName(), "arguments": kind.ToolCallDelta.GetArgumentsJsonDelta()}
	case *famulusv1.RunEvent_ToolCallsRequested:
		names := []string{}
		for _, call := range kind.ToolCallsRequested.GetToolCalls() {
			names = append(names, call.GetFunction().GetName())
		}
		return line{"names": names}
	case *famulusv1.RunEvent_ToolOutputReceived:
		var function *famulusv1.FunctionCall
		if calls := kind.ToolOutputReceived.GetToolCalls(); len(calls) > 0 {
			function = calls[0].GetFunction()
		}
		return line{"output": function.GetOutput(), "is_error": function.GetOutputIsError()}
	case *famulusv1.RunEvent_ReasoningDelta:
		return line{"text": kind.ReasoningDelta.GetText()}
	case *famulusv1.RunEvent_RetryScheduled:
		return line{"reason": runErrorCode(kind.RetryScheduled.GetReason())}
	case *famulusv1.RunEvent_AttemptStarted:
		started := kind.AttemptStarted
		return line{"attempt": started.GetAttempt(), "discards_after": started.GetDiscardsAfterSequence()}
	case *famulusv1.RunEvent_Snapshot:
		texts := []string{}
		for _, message := range kind.Snapshot.GetMessages() {
			texts = append(texts, textOf(message))
		}
		return line{"state": runState(kind.Snapshot.GetRun()), "texts": texts}
	default:
		return line{}
	}
}

func viewOf(view *famulus.RunView) line {
	return line{
		"state":    runState(view.Run()),
		"text":     view.Text(),
		"attempt":  view.Attempt(),
		"messages": len(view.Messages()),
		"steps":    len(view.Steps()),
	}
}

func resultOf(result *famulus.RunResult) line {
	return line{
		"state":             runState(result.Run),
		"error":             runError(result.Run),
		"text":              result.Text(),
		"messages":          len(result.Messages),
		"prompt_tokens":     result.Run.GetUsage().GetPromptTokens(),
		"completion_tokens": result.Run.GetUsage().GetCompletionTokens(),
	}
}

func errorOf(err error) line {
	failure := famulus.FromError(err)
	metadata, violations := map[string]string{}, []line{}
	for key, value := range failure.Metadata {
		metadata[key] = value
	}
	for _, each := range failure.Violations {
		violations = append(violations, line{"field": each.Field, "description": each.Description})
	}
	return line{
		"code":        code.Code(failure.Code).String(),
		"reason":      failure.ReasonName,
		"message":     failure.Message,
		"metadata":    metadata,
		"violations":  violations,
		"retry_after": failure.RetryAfter > 0,
	}
}

func stepOf(step *famulusv1.RunStep) line {
	calls := []line{}
	for _, call := range step.GetToolCalls().GetToolCalls() {
		function := call.GetFunction()
		calls = append(calls, line{
			"name": function.GetName(), "arguments": function.GetArgumentsJson(), "output": function.GetOutput(),
		})
	}
	return line{"state": strings.TrimPrefix(step.GetState().String(), "RUN_STEP_STATE_"), "calls": calls}
}

func messageOf(message *famulusv1.Message) line {
	return line{"state": strings.TrimPrefix(message.GetState().String(), "MESSAGE_STATE_"), "text": textOf(message)}
}

func textOf(message *famulusv1.Message) string {
	var text strings.Builder
	for _, part := range message.GetContent() {
		text.WriteString(part.GetText().GetText())
	}
	return text.String()
}

func runState(run *famulusv1.Run) string {
	if run == nil {
		return ""
	}
	return strings.TrimPrefix(run.GetState().String(), "RUN_STATE_")
}

func runError(run *famulusv1.Run) string {
	if run.GetError() == nil {
		return ""
	}
	return runErrorCode(run.GetError().GetCode())
}

func runErrorCode(value famulusv1.RunErrorCode) string {
	return strings.TrimPrefix(value.String(), "RUN_ERROR_CODE_")
}
