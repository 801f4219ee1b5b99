package famulus_test

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	famulus "github.com/famulus/famulus/clients/go"
	"github.com/famulus/famulus/clients/go/famulusv1"
)

func TestWhateverEventTheStreamIsCutAtTheCallerSeesTheWholeLog(t *testing.T) {
	for name, log := range map[string][]*famulusv1.RunEvent{"plain": plain(), "taken over": takenOver()} {
		for cut := range len(log) + 1 {
			t.Run(fmt.Sprintf("%s, %d", name, cut), func(t *testing.T) {
				runs := newRuns(log, cutAfter(cut, errCut))
				followAll(t, runs)
				if want := min(2, len(log)+1-cut); len(runs.streams) != want {
					t.Errorf("%d streams, not %d", len(runs.streams), want)
				}
			})
		}
	}
}

func TestAStreamMayBreakAtEverySingleEvent(t *testing.T) {
	log := takenOver()
	var plan []serving
	for range log {
		plan = append(plan, cutAfter(1, errCut))
	}
	stream := followAll(t, newRuns(log, plan...))
	if text := stream.View().Text(); text != "One\n\nTwo, we say" {
		t.Errorf("the text is %q", text)
	}
	if attempt := stream.View().Attempt(); attempt != 3 {
		t.Errorf("the attempt is %d", attempt)
	}
}

func TestAResumeIsTheSameRequestUntilTheRunHasAName(t *testing.T) {
	runs := newRuns(plain(), cutAfter(0, errCut), cutAfter(3, errCut))
	followAll(t, runs)
	first, second, third := runs.streams[0], runs.streams[1], runs.streams[2]
	if len(first.key) != 36 || second.key != first.key || second.after != 0 {
		t.Errorf("request ids %q and %q", first.key, second.key)
	}
	if third.runID != runID || third.after != 3 {
		t.Errorf("resumed %q after %d", third.runID, third.after)
	}
}

func TestARequestIDOfTheCallerIsKept(t *testing.T) {
	runs := newRuns(plain())
	request := create()
	request.RequestId = "mine"
	follow(dial(t, runs.serve(t)).StreamRun(t.Context(), request))
	if runs.streams[0].key != "mine" {
		t.Errorf("the request id is %q", runs.streams[0].key)
	}
}

func TestAStreamIsResumedAfter(t *testing.T) {
	for name, err := range map[string]error{
		"unavailable":       errCut,
		"slow consumer":     refused(codes.Aborted, famulusv1.ErrorReason_ERROR_REASON_SLOW_CONSUMER),
		"reset":             status.Error(codes.Internal, "Received RST_STREAM with error code 2"),
		"stream removed":    status.Error(codes.Unknown, "Stream removed"),
		"socket closed":     status.Error(codes.Unknown, "Socket closed"),
		"goaway":            status.Error(codes.Internal, "GOAWAY received"),
		"cut off":           status.Error(codes.Canceled, "CANCELLED"),
		"draining":          refused(codes.Unavailable, famulusv1.ErrorReason_ERROR_REASON_SERVER_DRAINING, retryAfter(time.Millisecond)),
		"token ran out":     refused(codes.Unauthenticated, famulusv1.ErrorReason_ERROR_REASON_CREDENTIALS_EXPIRED),
		"OK before the end": nil,
	} {
		t.Run(name, func(t *testing.T) {
			runs := newRuns(plain(), cutAfter(4, err))
			followAll(t, runs)
			if len(runs.streams) != 2 || runs.streams[1].after != 4 {
				t.Errorf("%d streams", len(runs.streams))
			}
		})
	}
}

func TestAStreamIsNotResumedAfter(t *testing.T) {
	for name, err := range map[string]error{
		"deleted":     refused(codes.NotFound, famulusv1.ErrorReason_ERROR_REASON_THREAD_DELETED),
		"stale":       refused(codes.Aborted, famulusv1.ErrorReason_ERROR_REASON_ETAG_MISMATCH),
		"internal":    refused(codes.Internal, famulusv1.ErrorReason_ERROR_REASON_INTERNAL),
		"unexplained": status.Error(codes.Internal, "no idea"),
		"limited":     refused(codes.ResourceExhausted, famulusv1.ErrorReason_ERROR_REASON_RATE_LIMITED, retryAfter(1)),
	} {
		t.Run(name, func(t *testing.T) {
			runs := newRuns(plain(), cutAfter(4, err))
			stream := dial(t, runs.serve(t)).StreamRun(t.Context(), create())
			seen := follow(stream)
			failure := new(famulus.Error)
			if !errors.As(seen.err, &failure) || failure.Code != status.Code(err) {
				t.Errorf("got %v", seen.err)
			}
			if !equal(seen.events, plain()[:4]) || stream.LastSequence() != 4 || len(runs.streams) != 1 {
				t.Errorf("saw %d events on %d streams", len(seen.events), len(runs.streams))
			}
			if _, again := stream.Next(); again != seen.err {
				t.Errorf("then got %v", again)
			}
		})
	}
}

func TestARunThatEndedWithoutALastEventIsTakenOver(t *testing.T) {
	log := plain()
	runs := newRuns(log, cutAfter(len(log), nil))
	// The run of the service says it has ended at the event before the last: what comes after was never an event.
	log[len(log)-1].GetRunStateChanged().Run.LastSequence = int64(len(log) - 1)
	runs.plan = []serving{cutAfter(len(log)-1, nil)}
	stream := dial(t, runs.serve(t)).WatchRun(t.Context(), runID)
	seen := follow(stream)
	if seen.err != nil || !equal(seen.events, log[:len(log)-1]) {
		t.Errorf("saw %d events, %v", len(seen.events), seen.err)
	}
	if !stream.View().Finished() || len(runs.streams) != 1 {
		t.Errorf("%d streams, the run is %v", len(runs.streams), stream.View().Run())
	}
}

func TestARunWithoutANameIsLookedUpByItsRequest(t *testing.T) {
	runs := newRuns(plain(), cutAfter(0, nil))
	followAll(t, runs)
	if len(runs.created) != 1 || runs.created[0].RequestId != runs.streams[0].key {
		t.Errorf("created %v", runs.created)
	}
	if runs.streams[1].runID != runID {
		t.Errorf("resumed %q", runs.streams[1].runID)
	}
}

func TestTheWaitThatTheServiceAsksForIsKept(t *testing.T) {
	wait := 50 * time.Millisecond
	overloaded := refused(codes.Unavailable, famulusv1.ErrorReason_ERROR_REASON_SERVER_OVERLOADED, retryAfter(wait))
	start := time.Now()
	followAll(t, newRuns(plain(), cutAfter(2, overloaded)))
	if time.Since(start) < wait {
		t.Error("it came back too early")
	}
}

func TestAWaitLongerThanThePatienceIsNotBegun(t *testing.T) {
	overloaded := refused(codes.Unavailable, famulusv1.ErrorReason_ERROR_REASON_SERVER_OVERLOADED, retryAfter(time.Hour))
	runs := newRuns(plain(), cutAfter(3, overloaded))
	seen := follow(dial(t, runs.serve(t)).StreamRun(t.Context(), create()))
	failure := new(famulus.Error)
	if !errors.As(seen.err, &failure) || failure.RetryAfter != time.Hour || failure.ReasonName != "SERVER_OVERLOADED" {
		t.Errorf("got %v", seen.err)
	}
}

func TestAnOutageThatLastsTooLongIsToldWithThePlaceToResumeAt(t *testing.T) {
	plan := []serving{cutAfter(3, errCut)}
	for range 1000 {
		plan = append(plan, cutAfter(0, errCut))
	}
	impatient := quick
	impatient.GiveUpAfter = 50 * time.Millisecond
	client := dial(t, newRuns(plain(), plan...).serve(t), famulus.WithRetryPolicy(impatient))
	stream := client.StreamRun(t.Context(), create())
	if seen := follow(stream); status.Code(seen.err) != codes.Unavailable || stream.LastSequence() != 3 {
		t.Errorf("got %v after event %d", seen.err, stream.LastSequence())
	}
}

func TestASilentStreamIsLeftForAnother(t *testing.T) {
	alert := quick
	alert.Silence = 100 * time.Millisecond
	runs := newRuns(plain(), silentAfter(5))
	client := dial(t, runs.serve(t), famulus.WithRetryPolicy(alert))
	if seen := follow(client.StreamRun(t.Context(), create())); seen.err != nil || !equal(seen.events, plain()) {
		t.Errorf("saw %d events, %v", len(seen.events), seen.err)
	}
	if left := await(t, "the end of the silent stream", runs.ended); left != runs.streams[0] || len(runs.streams) != 2 {
		t.Errorf("%d streams", len(runs.streams))
	}
}

func TestHeartbeatsKeepAStreamWithoutEvents(t *testing.T) {
	alert := quick
	alert.Silence = 500 * time.Millisecond
	runs := newRuns(plain(), heartbeats(4, 200*time.Millisecond))
	client := dial(t, runs.serve(t), famulus.WithRetryPolicy(alert))
	if seen := follow(client.StreamRun(t.Context(), create())); seen.err != nil || len(runs.streams) != 1 {
		t.Errorf("%d streams, %v", len(runs.streams), seen.err)
	}
}

func TestAReaderMayTakeLongerThanTheStreamMayBeSilent(t *testing.T) {
	alert := quick
	alert.Silence = 50 * time.Millisecond
	runs := newRuns(withTools())
	stream := dial(t, runs.serve(t), famulus.WithRetryPolicy(alert)).StreamRun(t.Context(), create())
	read(t, stream, 3)
	time.Sleep(2 * alert.Silence) // stands for the reader's work
	runs.publish()
	if seen := follow(stream); seen.err != nil || len(runs.streams) != 1 {
		t.Errorf("%d streams, %v", len(runs.streams), seen.err)
	}
}

func TestAResponseEndsTheOutage(t *testing.T) {
	steady := famulus.RetryPolicy{InitialDelay: 20 * time.Millisecond, Multiplier: 1, Jitter: -1, GiveUpAfter: 50 * time.Millisecond}
	beat := func(s *scriptedStream) error {
		_ = s.send()
		return errCut
	}
	runs := newRuns(plain(), beat, beat, beat, beat, beat, beat)
	client := dial(t, runs.serve(t), famulus.WithRetryPolicy(steady))
	if seen := follow(client.StreamRun(t.Context(), create())); seen.err != nil || len(runs.streams) != 7 {
		t.Errorf("%d streams, %v", len(runs.streams), seen.err)
	}
}

func TestAServerThatRestartsInTheMiddleIsNotNoticed(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	runs := newRuns(plain(), silentAfter(4))
	first := runs.serveOn(t, listener)
	stream := dial(t, first.addr).StreamRun(t.Context(), create())
	defer stream.Close()
	read(t, stream, 4)
	first.Stop()
	listener, err = net.Listen("tcp", first.addr)
	if err != nil {
		t.Fatal(err)
	}
	runs.serveOn(t, listener)
	read(t, stream, len(plain())-4)
	expectEnd(t, stream)
}
