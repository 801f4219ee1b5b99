package famulus

import (
	"context"
	"errors"
	"slices"

	"github.com/famulus/famulus/clients/go/famulusv1"
)

// lookUp returns the run as it is now, and repeats the call through outages.
func (f *following) lookUp(
	ctx context.Context, policy RetryPolicy, runs famulusv1.RunServiceClient,
) (*famulusv1.Run, error) {
	return lookUp(ctx, policy, runs, f.view.RunID(), f.create)
}

// lookUp asks for a run by its id, or where that is not known yet by the request that made it: CreateRun shares its
// request ids with StreamRun.
func lookUp(
	ctx context.Context, policy RetryPolicy, runs famulusv1.RunServiceClient, runID string, create *famulusv1.CreateRunRequest,
) (*famulusv1.Run, error) {
	if runID == "" {
		created, err := send(ctx, policy, runs.CreateRun, create)
		return created.GetRun(), err
	}
	got, err := send(ctx, policy, runs.GetRun, &famulusv1.GetRunRequest{RunId: runID})
	return got.GetRun(), err
}

// answer starts to answer those calls that no earlier event asked for.
func (s *RunStream) answer(calls []*famulusv1.ToolCall) {
	if s.tools == nil || len(calls) == 0 {
		return
	}
	claimed := s.tools.claim(calls)
	if len(claimed) == 0 {
		return
	}
	runID := s.following.view.RunID()
	s.answering.Go(func() {
		if err := s.runTools(s.toolsCtx, runID, claimed); err != nil && s.toolsCtx.Err() == nil {
			s.cancel(err) // wakes up the reader
		}
	})
}

func (s *RunStream) runTools(ctx context.Context, runID string, claimed map[string]bool) error {
	// An old event may ask for what was answered long ago: a tool must not run again for it.
	run, err := lookUp(ctx, s.policy, s.runs, runID, s.following.create)
	if err != nil {
		return err
	}
	calls := slices.DeleteFunc(openCalls(run), func(c *famulusv1.ToolCall) bool { return !claimed[c.GetId()] })
	if len(calls) == 0 {
		return nil
	}
	outputs := s.tools.answerAll(ctx, calls)
	if err := ended(ctx); err != nil {
		return err // what the tools said is that they were stopped
	}
	request := &famulusv1.SubmitToolOutputsRequest{RunId: run.GetId(), ToolOutputs: outputs}
	_, err = send(ctx, s.policy, s.runs.SubmitToolOutputs, request)
	if overtaken(err) {
		return nil // the stream tells how the run goes on
	}
	return err
}

// overtaken tells whether outputs were refused because the run had ended, or somebody else was faster.
func overtaken(err error) bool {
	failure := new(Error)
	if !errors.As(err, &failure) {
		return false
	}
	switch failure.Reason {
	case famulusv1.ErrorReason_ERROR_REASON_RUN_NOT_WAITING,
		famulusv1.ErrorReason_ERROR_REASON_TOOL_OUTPUT_CONFLICT,
		famulusv1.ErrorReason_ERROR_REASON_RUN_EXPIRED:
		return true
	default:
		return false
	}
}

// openCalls returns the function calls that a run waits for.
func openCalls(run *famulusv1.Run) []*famulusv1.ToolCall {
	if run.GetState() != famulusv1.RunState_RUN_STATE_REQUIRES_ACTION {
		return nil
	}
	return onlyOpen(run.GetRequiredAction().GetToolCalls())
}

// requestedCalls returns the function calls that an event says the run waits, or waited, for.
func requestedCalls(event *famulusv1.RunEvent) []*famulusv1.ToolCall {
	switch kind := event.GetEvent().(type) {
	case *famulusv1.RunEvent_ToolCallsRequested:
		return onlyOpen(kind.ToolCallsRequested.GetToolCalls())
	case *famulusv1.RunEvent_RunStateChanged:
		return openCalls(kind.RunStateChanged.GetRun())
	case *famulusv1.RunEvent_Snapshot:
		return openCalls(kind.Snapshot.GetRun())
	default:
		return nil
	}
}

func onlyOpen(calls []*famulusv1.ToolCall) []*famulusv1.ToolCall {
	var open []*famulusv1.ToolCall
	for _, call := range calls {
		function := call.GetFunction()
		if function != nil && function.Output == nil &&
			function.GetProblem() == famulusv1.FunctionCallProblem_FUNCTION_CALL_PROBLEM_UNSPECIFIED {
			open = append(open, call)
		}
	}
	return open
}
