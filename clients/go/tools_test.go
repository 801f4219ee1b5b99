package famulus_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	famulus "github.com/famulus/famulus/clients/go"
	"github.com/famulus/famulus/clients/go/famulusv1"
)

// fixed is a tool that always returns the same.
func fixed(result any, err error) famulus.Handler {
	return func(context.Context, json.RawMessage) (any, error) { return result, err }
}

// answer runs one call and returns what the service was told.
func answer(t *testing.T, call *famulusv1.ToolCall, options ...famulus.StreamOption) *famulusv1.ToolOutput {
	t.Helper()
	runs := newRuns(withTools(call))
	followAll(t, runs, options...)
	if len(runs.submitted) != 1 || runs.submitted[0].RunId != runID || len(runs.submitted[0].ToolOutputs) != 1 {
		t.Fatalf("submitted %v", runs.submitted)
	}
	return runs.submitted[0].ToolOutputs[0]
}

func TestTheModelIsToldWhatToolsReturn(t *testing.T) {
	greet := famulus.Typed(func(_ context.Context, arguments struct{ Name string }) (string, error) {
		return "Hello " + arguments.Name, nil
	})
	for name, test := range map[string]struct {
		handler   famulus.Handler
		arguments string
		want      string
	}{
		"text":           {fixed("as it is", nil), "{}", "as it is"},
		"a number":       {fixed(5, nil), "", "5"},
		"an object":      {fixed(map[string]any{"a": "<b>"}, nil), "{}", `{"a":"<b>"}`},
		"nothing":        {fixed(nil, nil), "{}", "null"},
		"arguments":      {greet, ` {"name": "Ada"}`, "Hello Ada"},
		"no arguments":   {greet, "", "Hello "},
		"what is no use": {fixed("a\x00b\xffc", nil), "{}", "a\uFFFDb\uFFFDc"},
		"1 MiB":          {fixed(strings.Repeat("x", 1<<20), nil), "{}", strings.Repeat("x", 1<<20)},
	} {
		t.Run(name, func(t *testing.T) {
			output := answer(t, toolCall("call_1", "tool", test.arguments), famulus.WithTools(famulus.Tools{"tool": test.handler}))
			if output.CallId != "call_1" || output.IsError || output.Output != test.want {
				t.Errorf("%.200v", output)
			}
		})
	}
}

func TestTheModelIsToldWhatWentWrongAndNothingElse(t *testing.T) {
	slow := func(ctx context.Context, _ json.RawMessage) (any, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	count := famulus.Typed(func(context.Context, struct {
		N int `json:"n"`
	}) (int, error) {
		return 0, nil
	})
	var nothing *famulus.ToolError
	for name, test := range map[string]struct {
		handler   famulus.Handler
		arguments string
		want      string
	}{
		"unknown":         {nil, "{}", "there is no tool of this name"},
		"no JSON":         {fixed(1, nil), "{", "the arguments are not JSON"},
		"no object":       {fixed(1, nil), "[1]", "the arguments are not a JSON object"},
		"misfit":          {count, `{"n": "x"}`, "the arguments do not fit: n must not be of type string"},
		"too slow":        {slow, "{}", "the tool took longer than 0.2 seconds"},
		"deaf":            {func(context.Context, json.RawMessage) (any, error) { select {} }, "{}", "the tool took longer than 0.2 seconds"},
		"tool error":      {fixed(nil, fmt.Errorf("secret: %w", famulus.ToolErrorf("told to %s", "refuse"))), "{}", "told to refuse"},
		"other error":     {fixed(nil, errors.New("secret")), "{}", "the tool failed: errors.errorString"},
		"nil error":       {fixed(nil, nothing), "{}", "the tool failed: famulus.ToolError"},
		"panic":           {func(context.Context, json.RawMessage) (any, error) { panic("secret") }, "{}", "the tool failed: panic"},
		"exit":            {func(context.Context, json.RawMessage) (any, error) { runtime.Goexit(); return 1, nil }, "{}", "the tool failed: panic"},
		"no JSON result":  {fixed(make(chan int), nil), "{}", "the tool's result cannot be written as JSON"},
		"more than 1 MiB": {fixed(strings.Repeat("x", 1<<20+1), nil), "{}", "the tool's result is larger than 1 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			tools := famulus.Tools{}
			if test.handler != nil {
				tools["tool"] = test.handler
			}
			output := answer(t, toolCall("call_1", "tool", test.arguments),
				famulus.WithTools(tools), famulus.WithToolTimeout(200*time.Millisecond))
			if !output.IsError || output.Output != test.want {
				t.Errorf("%.200v", output)
			}
		})
	}
}

func TestWhatGoesWrongInAToolIsLoggedUnlessItIsForTheModel(t *testing.T) {
	before := slog.Default()
	defer slog.SetDefault(before)
	for name, test := range map[string]struct {
		handler famulus.Handler
		want    []string
	}{
		"error":      {fixed(nil, errors.New("secret")), []string{"a tool failed", "tool=tool", "call_id=call_1", "error=secret"}},
		"panic":      {func(context.Context, json.RawMessage) (any, error) { panic("secret") }, []string{"panic: secret", "tools_test.go"}},
		"tool error": {fixed(nil, famulus.ToolErrorf("told")), nil},
	} {
		t.Run(name, func(t *testing.T) {
			var logged bytes.Buffer
			slog.SetDefault(slog.New(slog.NewTextHandler(&logged, nil)))
			answer(t, toolCall("call_1", "tool", "{}"), famulus.WithTools(famulus.Tools{"tool": test.handler}))
			for _, want := range test.want {
				if !strings.Contains(logged.String(), want) {
					t.Errorf("%q is not in %s", want, &logged)
				}
			}
			if test.want == nil && logged.Len() > 0 {
				t.Errorf("logged %s", &logged)
			}
		})
	}
}

func TestCallsRunAtTheSameTimeAndAreSubmittedTogether(t *testing.T) {
	var both sync.WaitGroup
	both.Add(2)
	meet := func(context.Context, json.RawMessage) (any, error) {
		both.Done()
		both.Wait()
		return "met", nil
	}
	runs := newRuns(withTools(toolCall("call_1", "meet", ""), toolCall("call_2", "meet", "")))
	followAll(t, runs, famulus.WithTools(famulus.Tools{"meet": meet}))
	if len(runs.submitted) != 1 || len(runs.submitted[0].ToolOutputs) != 2 {
		t.Errorf("submitted %v", runs.submitted)
	}
}

// counting is a tool that counts its calls.
func counting(count *atomic.Int32) famulus.Tools {
	return famulus.Tools{"count": func(context.Context, json.RawMessage) (any, error) { return count.Add(1), nil }}
}

func TestACallThatIsAskedForAgainRunsOnce(t *testing.T) {
	log := withTools(toolCall("call_1", "count", ""))
	waiting := snapshot(3, log[2].GetRunStateChanged().GetRun())
	for name, plan := range map[string][]serving{
		"by a second event":   nil,
		"by another stream":   {cutAfter(2, errCut), cutAfter(1, errCut)},
		"by repeated events":  {repeatsAll},
		"by a snapshot, too":  {cutAfter(2, errCut), tells(waiting)},
		"by a snapshot alone": {tells(waiting)},
	} {
		t.Run(name, func(t *testing.T) {
			var count atomic.Int32
			runs := newRuns(log, plan...)
			client := dial(t, runs.serve(t))
			seen := follow(client.StreamRun(t.Context(), create(), famulus.WithTools(counting(&count))))
			if seen.err != nil || count.Load() != 1 || len(runs.submitted) != 1 {
				t.Errorf("ran %d times, submitted %v, %v", count.Load(), runs.submitted, seen.err)
			}
		})
	}
}

func TestACallOfThePastDoesNotRunAgain(t *testing.T) {
	var count atomic.Int32
	runs := newRuns(withTools(toolCall("call_1", "count", "")))
	runs.publish()
	followAll(t, runs, famulus.WithTools(counting(&count)))
	if count.Load() != 0 {
		t.Error("it ran")
	}
}

func TestACallOfThePastDoesNotRunTheOneOfToday(t *testing.T) {
	var count atomic.Int32
	s := new(story).state(inProgress).ask(toolCall("call_1", "count", "")).state(inProgress)
	runs := newRuns(s.ask(toolCall("call_2", "count", "")).state(completed).log)
	runs.publish() // somebody answered call_1
	stream := dial(t, runs.serve(t)).StreamRun(t.Context(), create(), famulus.WithTools(counting(&count)))
	if seen := follow(stream); seen.err != nil || count.Load() != 1 || len(runs.submitted) != 1 {
		t.Errorf("ran %d times, submitted %v, %v", count.Load(), runs.submitted, seen.err)
	}
}

func TestAReaderWhoJoinsAfterTheQuestionAnswersIt(t *testing.T) {
	var count atomic.Int32
	runs := newRuns(withTools(toolCall("call_1", "count", "")))
	stream := dial(t, runs.serve(t)).WatchRun(
		t.Context(), runID, famulus.WithAfterSequence(3), famulus.WithTools(counting(&count)))
	if seen := follow(stream); seen.err != nil || count.Load() != 1 {
		t.Errorf("ran %d times, %v", count.Load(), seen.err)
	}
}

func TestARunMayAskSeveralTimes(t *testing.T) {
	var count atomic.Int32
	s := new(story).state(inProgress).ask(toolCall("call_1", "count", "")).state(inProgress)
	runs := newRuns(s.ask(toolCall("call_2", "count", "")).state(completed).log)
	followAll(t, runs, famulus.WithTools(counting(&count)))
	if count.Load() != 2 || len(runs.submitted) != 2 || runs.submitted[1].ToolOutputs[0].CallId != "call_2" {
		t.Errorf("submitted %v", runs.submitted)
	}
}

func TestCallsThatTheServiceAnsweredItselfAreLeftAlone(t *testing.T) {
	var count atomic.Int32
	wrong, mine := toolCall("call_1", "count", "{"), toolCall("call_2", "count", "")
	wrong.GetFunction().Problem = famulusv1.FunctionCallProblem_FUNCTION_CALL_PROBLEM_ARGUMENTS_NOT_JSON
	runs := newRuns(withTools(wrong, mine))
	followAll(t, runs, famulus.WithTools(counting(&count)))
	if outputs := runs.submitted[0].ToolOutputs; count.Load() != 1 || len(outputs) != 1 || outputs[0].CallId != "call_2" {
		t.Errorf("submitted %v", runs.submitted)
	}
}

func TestOutputsAreSubmittedAgainWhileTheServiceIsAway(t *testing.T) {
	var count atomic.Int32
	runs := newRuns(withTools(toolCall("call_1", "count", "")))
	runs.refusals = []error{errCut, errCut}
	followAll(t, runs, famulus.WithTools(counting(&count)))
	if count.Load() != 1 || len(runs.submitted) != 1 {
		t.Errorf("ran %d times, submitted %v", count.Load(), runs.submitted)
	}
}

func TestThatSomebodyElseAnsweredFirstIsNoError(t *testing.T) {
	for _, reason := range []famulusv1.ErrorReason{
		famulusv1.ErrorReason_ERROR_REASON_RUN_NOT_WAITING,
		famulusv1.ErrorReason_ERROR_REASON_TOOL_OUTPUT_CONFLICT,
		famulusv1.ErrorReason_ERROR_REASON_RUN_EXPIRED,
	} {
		t.Run(reason.String(), func(t *testing.T) {
			s := new(story).state(inProgress).ask(toolCall("call_1", "late", "")).state(inProgress)
			runs := newRuns(s.ask(toolCall("call_2", "next", "")).state(completed).log)
			runs.refusals = []error{refused(codes.FailedPrecondition, reason)}
			late := func(context.Context, json.RawMessage) (any, error) {
				runs.publish() // somebody else's answer
				return "late", nil
			}
			next := func(context.Context, json.RawMessage) (any, error) {
				for !runs.refusedAll() {
					runtime.Gosched()
				}
				return "next", nil
			}
			followAll(t, runs, famulus.WithTools(famulus.Tools{"late": late, "next": next}))
			if len(runs.submitted) != 1 {
				t.Errorf("submitted %v", runs.submitted)
			}
		})
	}
}

func TestARefusalOfOutputsEndsTheStream(t *testing.T) {
	runs := newRuns(withTools(toolCall("call_1", "tool", "")))
	runs.refusals = []error{refused(codes.PermissionDenied, famulusv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)}
	client := dial(t, runs.serve(t))
	seen := follow(client.StreamRun(t.Context(), create(), famulus.WithTools(famulus.Tools{"tool": fixed(1, nil)})))
	if status.Code(seen.err) != codes.PermissionDenied || !equal(seen.events, runs.log[:3]) {
		t.Errorf("saw %d events, %v", len(seen.events), seen.err)
	}
	await(t, "the end of the stream", runs.ended)
}

func TestARunThatEndsDoesNotWaitForItsTools(t *testing.T) {
	stopped := make(chan error, 1)
	runs := newRuns(withTools(toolCall("call_1", "slow", "")))
	slow := func(ctx context.Context, _ json.RawMessage) (any, error) {
		runs.publish() // the run goes on without
		<-ctx.Done()
		stopped <- ctx.Err()
		return nil, ctx.Err()
	}
	followAll(t, runs, famulus.WithTools(famulus.Tools{"slow": slow}))
	if err := await(t, "the end of the tool", stopped); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if len(runs.submitted) != 0 {
		t.Errorf("submitted %v", runs.submitted)
	}
}

func TestWithoutToolsNobodyAnswers(t *testing.T) {
	runs := newRuns(withTools(toolCall("call_1", "tool", "")))
	client := dial(t, runs.serve(t))
	result, err := client.RunToEnd(t.Context(), create())
	if err != nil || result.Run.GetState() != requiresAction || len(runs.created[0].RequestId) != 36 {
		t.Errorf("got %v, %v", result, err)
	}
	result, err = client.RunToEnd(t.Context(), create(), famulus.WithTools(famulus.Tools{"tool": fixed(1, nil)}))
	if err != nil || result.Run.GetState() != completed || result.Text() != "Done" {
		t.Errorf("got %v, %v", result, err)
	}
}
