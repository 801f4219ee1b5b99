package famulus_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	famulus "github.com/famulus/famulus/clients/go"
	"github.com/famulus/famulus/clients/go/famulusv1"
)

func TestARunIsWaitedForThroughOutagesAndDeadlines(t *testing.T) {
	alert := quick
	alert.Silence = 50 * time.Millisecond
	runs := newRuns(plain())
	runs.refusals = []error{errCut, errHang, errHang}
	result, err := dial(t, runs.serve(t), famulus.WithRetryPolicy(alert)).WaitRun(t.Context(), runID)
	if err != nil || result.Text() != "Good morning, world" || result.Run.GetState() != completed || runs.waits != 4 {
		t.Errorf("got %v, %v after %d calls", result, err, runs.waits)
	}
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	runs := newRuns(plain())
	runs.refusals = []error{nil, errHang} // of CreateRun, of WaitRun
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := dial(t, runs.serve(t)).RunToEnd(ctx, create(), famulus.WithCancelOnExit())
	failure := new(famulus.Error)
	if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &failure) || failure.Code != codes.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
	if len(runs.cancelled) != 1 {
		t.Errorf("cancelled %q", runs.cancelled)
	}
}

func TestARunIsCreatedThroughOutages(t *testing.T) {
	runs := newRuns(plain())
	runs.refusals = []error{errCut, errCut}
	result, err := dial(t, runs.serve(t)).RunToEnd(t.Context(), create())
	if err != nil || result.Run.GetId() != runID || len(runs.created) != 1 {
		t.Errorf("got %v, %v", result, err)
	}
}

func TestErrorsSayWhatTheServiceSays(t *testing.T) {
	told, err := status.New(codes.InvalidArgument, "something is wrong").WithDetails(
		&errdetails.ErrorInfo{Domain: "famulus", Reason: "INVALID_FIELD", Metadata: map[string]string{"a": "b"}},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "x.y", Description: "is wrong"}}},
		retryAfter(1500*time.Millisecond),
	)
	if err != nil {
		t.Fatal(err)
	}
	runs := newRuns(plain())
	runs.refusals = []error{told.Err(), told.Err()}
	client := dial(t, runs.serve(t))
	_, raw := client.Runs.CreateRun(t.Context(), create())
	_, err = client.RunToEnd(t.Context(), create())
	for _, failure := range []*famulus.Error{famulus.FromError(raw), famulus.FromError(err)} {
		if failure.Code != codes.InvalidArgument || failure.Message != "something is wrong" {
			t.Errorf("%v: %q", failure.Code, failure.Message)
		}
		if failure.Reason != famulusv1.ErrorReason_ERROR_REASON_INVALID_FIELD || failure.ReasonName != "INVALID_FIELD" {
			t.Errorf("%v: %q", failure.Reason, failure.ReasonName)
		}
		if failure.Metadata["a"] != "b" || failure.RetryAfter != 1500*time.Millisecond {
			t.Errorf("%v: %v", failure.Metadata, failure.RetryAfter)
		}
		if len(failure.Violations) != 1 || failure.Violations[0] != (famulus.Violation{Field: "x.y", Description: "is wrong"}) {
			t.Errorf("%v", failure.Violations)
		}
		if text := failure.Error(); text != "famulus: InvalidArgument (INVALID_FIELD): something is wrong" {
			t.Error(text)
		}
		if len(status.Convert(failure).Details()) != 3 {
			t.Error("the status lacks its details")
		}
	}
}

func TestReasonsOfANewerVersionHaveTheirName(t *testing.T) {
	for domain, name := range map[string]string{"famulus": "BRAND_NEW", "else.where": ""} {
		told, err := status.New(codes.Aborted, "x").WithDetails(&errdetails.ErrorInfo{Domain: domain, Reason: "BRAND_NEW"})
		if err != nil {
			t.Fatal(err)
		}
		if failure := famulus.FromError(told.Err()); failure.Reason != 0 || failure.ReasonName != name {
			t.Errorf("%s: %v, %q", domain, failure.Reason, failure.ReasonName)
		}
	}
	if famulus.FromError(nil) != nil {
		t.Error("nil is an error")
	}
}

func TestAServerThatIsNotThereIsToldWhenPatienceEnds(t *testing.T) {
	impatient := quick
	impatient.GiveUpAfter = 50 * time.Millisecond
	client := dial(t, "127.0.0.1:1", famulus.WithRetryPolicy(impatient))
	if seen := follow(client.StreamRun(t.Context(), create())); status.Code(seen.err) != codes.Unavailable {
		t.Errorf("got %v", seen.err)
	}
	if _, err := client.WaitRun(t.Context(), runID); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
}

func TestMessagesUpTo64MiBAreReceived(t *testing.T) {
	large := string(make([]byte, 20<<20))
	taken := snapshot(1, &famulusv1.Run{Id: runID, State: completed},
		written("msg_1", large, famulusv1.MessageState_MESSAGE_STATE_COMPLETED))
	runs := newRuns([]*famulusv1.RunEvent{taken})
	followAll(t, runs)
}

func TestOwnDialOptionsWin(t *testing.T) {
	runs := newRuns(plain())
	small := grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1))
	client := dial(t, runs.serve(t), famulus.WithDialOptions(small))
	seen := follow(client.StreamRun(t.Context(), create()))
	if status.Code(seen.err) != codes.ResourceExhausted {
		t.Errorf("got %v", seen.err)
	}
}
