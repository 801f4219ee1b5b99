package famulus_test

import (
	"io"
	"runtime"
	"testing"
	"time"

	famulus "github.com/famulus/famulus/clients/go"
	"github.com/famulus/famulus/clients/go/famulusv1"
)

// quick is a policy that does not keep tests waiting.
var quick = famulus.RetryPolicy{
	InitialDelay: time.Millisecond, MaxDelay: 10 * time.Millisecond, GiveUpAfter: patience, Silence: patience,
}

func dial(t *testing.T, target string, options ...famulus.Option) *famulus.Client {
	t.Helper()
	client, err := famulus.Dial(target, append([]famulus.Option{famulus.WithRetryPolicy(quick)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func create() *famulusv1.CreateRunRequest {
	return &famulusv1.CreateRunRequest{Target: &famulusv1.CreateRunRequest_ThreadId{ThreadId: "thread_1"}}
}

// seen is what a caller saw of a stream.
type seen struct {
	events []*famulusv1.RunEvent
	texts  []string // of the view, after each event
	err    error
}

// follow reads a stream to its end.
func follow(stream *famulus.RunStream) seen {
	var seen seen
	for event, err := range stream.Events() {
		if err != nil {
			seen.err = err
			break
		}
		seen.events = append(seen.events, event)
		seen.texts = append(seen.texts, stream.View().Text())
	}
	return seen
}

// followAll starts a run and expects to see all of its log.
func followAll(t *testing.T, runs *scriptedRuns, options ...famulus.StreamOption) *famulus.RunStream {
	t.Helper()
	stream := dial(t, runs.serve(t)).StreamRun(t.Context(), create(), options...)
	seen := follow(stream)
	if seen.err != nil {
		t.Fatal(seen.err)
	}
	if !equal(seen.events, runs.log) {
		t.Fatalf("saw %v", seen.events)
	}
	return stream
}

func read(t *testing.T, stream *famulus.RunStream, count int) {
	t.Helper()
	for range count {
		if _, err := stream.Next(); err != nil {
			t.Fatal(err)
		}
	}
}

func expectEnd(t *testing.T, stream *famulus.RunStream) {
	t.Helper()
	if event, err := stream.Next(); err != io.EOF {
		t.Fatalf("got %v, %v after the end", event, err)
	}
}

// await fails the test where nothing comes in time.
func await[T any](t *testing.T, what string, from <-chan T) T {
	t.Helper()
	select {
	case got := <-from:
		return got
	case <-time.After(patience):
		t.Fatalf("waited in vain: %s", what)
		panic("unreachable")
	}
}

// expectNoMoreGoroutines waits until there are as many as before; more than that is a leak.
func expectNoMoreGoroutines(t *testing.T, before int) {
	t.Helper()
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s",
				runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
		}
		time.Sleep(time.Millisecond)
	}
}
