package famulus_test

import (
	"context"
	"encoding/json"
	"errors"
	"runtime"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	famulus "github.com/famulus/famulus/clients/go"
	"github.com/famulus/famulus/clients/go/famulusv1"
)

func TestLeavingAStreamCancelsItsCallAndNotTheRun(t *testing.T) {
	runs := newRuns(plain(), silentAfter(4))
	stream := dial(t, runs.serve(t)).StreamRun(t.Context(), create())
	for range stream.Events() {
		if stream.LastSequence() == 3 {
			break
		}
	}
	await(t, "the end of the stream", runs.ended)
	if len(runs.cancelled) != 0 {
		t.Error("the run was cancelled")
	}
	failure := new(famulus.Error)
	if _, err := stream.Next(); !errors.As(err, &failure) || failure.Code != codes.Canceled {
		t.Errorf("then got %v", err)
	}
}

func TestLeavingAStreamCancelsTheRunWhereThatWasAskedFor(t *testing.T) {
	runs := newRuns(plain(), silentAfter(4))
	stream := dial(t, runs.serve(t)).StreamRun(t.Context(), create(), famulus.WithCancelOnExit())
	read(t, stream, 3)
	for range 2 {
		if err := stream.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(runs.cancelled) != 1 || runs.cancelled[0] != runID {
		t.Errorf("cancelled %q", runs.cancelled)
	}
}

func TestARunIsCancelledAlsoWhenTheContextHasEnded(t *testing.T) {
	runs := newRuns(plain(), silentAfter(0))
	ctx, cancel := context.WithCancel(t.Context())
	stream := dial(t, runs.serve(t)).StreamRun(ctx, create(), famulus.WithCancelOnExit())
	go func() {
		<-runs.opened
		cancel()
	}()
	seen := follow(stream)
	failure := new(famulus.Error)
	if !errors.Is(seen.err, context.Canceled) || !errors.As(seen.err, &failure) || failure.Code != codes.Canceled {
		t.Errorf("got %v", seen.err)
	}
	await(t, "the end of the stream", runs.ended)
	if len(runs.cancelled) != 1 || len(runs.created) != 1 {
		t.Errorf("looked up %v, cancelled %q", runs.created, runs.cancelled)
	}
}

func TestARunThatEndedOrWasRefusedOrNeverAskedForIsNotCancelled(t *testing.T) {
	denied := refused(codes.FailedPrecondition, famulusv1.ErrorReason_ERROR_REASON_UNKNOWN_MODEL)
	runs := newRuns(plain(), whole, cutAfter(0, denied))
	client := dial(t, runs.serve(t))
	for range 2 {
		follow(client.StreamRun(t.Context(), create(), famulus.WithCancelOnExit()))
	}
	if err := client.StreamRun(t.Context(), create(), famulus.WithCancelOnExit()).Close(); err != nil {
		t.Error(err)
	}
	if len(runs.cancelled) != 0 || len(runs.streams) != 2 {
		t.Errorf("cancelled %q, %d streams", runs.cancelled, len(runs.streams))
	}
}

func TestTheServerEndsAStreamThatWasReadToItsEnd(t *testing.T) {
	cancelled := make(chan bool, 1)
	runs := newRuns(plain(), func(s *scriptedStream) error {
		err := whole(s)
		select {
		case <-s.ctx.Done():
			cancelled <- true
		case <-time.After(50 * time.Millisecond):
			cancelled <- false
		}
		return err
	})
	followAll(t, runs)
	if await(t, "the end of the stream", cancelled) {
		t.Error("the client cancelled it")
	}
}

func TestAServerThatDoesNotEndAStreamAfterTheLastEventIsLeft(t *testing.T) {
	runs := newRuns(plain(), silentAfter(len(plain())))
	followAll(t, runs)
	await(t, "the end of the stream", runs.ended)
}

func TestNothingIsLeftRunningWhen(t *testing.T) {
	slow := famulus.Tools{"slow": func(ctx context.Context, _ json.RawMessage) (any, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	leaving := map[string]func(*testing.T, *famulus.RunStream, context.CancelFunc){
		"the loop is left": func(_ *testing.T, stream *famulus.RunStream, _ context.CancelFunc) { leaveAfter(stream, 3) },
		"the stream is left": func(t *testing.T, stream *famulus.RunStream, _ context.CancelFunc) {
			read(t, stream, 3)
			_ = stream.Close()
		},
		"the context ends": func(t *testing.T, stream *famulus.RunStream, cancel context.CancelFunc) {
			read(t, stream, 3)
			cancel()
			if _, err := stream.Next(); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		},
		"it never began": func(_ *testing.T, stream *famulus.RunStream, _ context.CancelFunc) { _ = stream.Close() },
	}
	for name, leave := range leaving {
		t.Run(name, func(t *testing.T) {
			runs := newRuns(withTools(toolCall("call_1", "slow", "")))
			client := dial(t, runs.serve(t))
			_, _ = client.Runs.GetRun(t.Context(), &famulusv1.GetRunRequest{}) // so that the connection stands
			before := runtime.NumGoroutine()
			for range 20 {
				ctx, cancel := context.WithCancel(t.Context())
				leave(t, client.StreamRun(ctx, create(), famulus.WithTools(slow)), cancel)
				cancel()
			}
			for range len(runs.opened) {
				await(t, "the end of a stream", runs.ended)
			}
			expectNoMoreGoroutines(t, before)
		})
	}
}

func TestClosingTheClientEndsItsStreamsAndLeavesNothing(t *testing.T) {
	runs := newRuns(plain(), silentAfter(3))
	target := runs.serve(t)
	before := runtime.NumGoroutine()
	client := dial(t, target)
	stream := client.StreamRun(t.Context(), create())
	read(t, stream, 3)
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if _, err := stream.Next(); status.Code(err) != codes.Canceled {
		t.Errorf("got %v", err)
	}
	await(t, "the end of the stream", runs.ended)
	expectNoMoreGoroutines(t, before)
}

func leaveAfter(stream *famulus.RunStream, sequence int64) {
	for range stream.Events() {
		if stream.LastSequence() == sequence {
			return
		}
	}
}
