package famulus

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"time"

	"github.com/famulus/famulus/clients/go/famulusv1"
)

const (
	lastWord     = time.Second     // that a server has to end a stream after the last event
	cancelWithin = 5 * time.Second // for the CancelRun of a stream that is left
)

var errStreamClosed = errors.New("the stream was closed")

// RunStream gives the events of one run in order, each once, over as many connections as it takes.
//
// Range over Events, or call Next and, in the end, Close. It is for one goroutine; others may call LastSequence, and end
// the stream through its context.
type RunStream struct {
	runs      famulusv1.RunServiceClient
	policy    RetryPolicy
	following *following

	ctx    context.Context // of the stream, as that is what outlives each single call
	cancel context.CancelCauseFunc

	started bool
	call    *eventCall            // nil between two
	pending []*famulusv1.RunEvent // received, and not given out
	err     error                 // how the stream ended

	tools     *toolbox // nil: somebody else answers
	toolsCtx  context.Context
	stopTools context.CancelFunc
	answering sync.WaitGroup

	cancelOnExit bool
	closed       sync.Once
	closeErr     error
}

func newRunStream(
	ctx context.Context, runs famulusv1.RunServiceClient, policy RetryPolicy, following *following, settings streamSettings,
) *RunStream {
	s := &RunStream{runs: runs, policy: policy, following: following, cancelOnExit: settings.cancelOnExit}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.toolsCtx, s.stopTools = context.WithCancel(s.ctx)
	if settings.tools != nil {
		s.tools = newToolbox(settings.tools, settings.toolTimeout)
	}
	return s
}

// Events gives the events to a range loop, which ends after the last one or with an error. Leaving the loop closes the
// stream.
func (s *RunStream) Events() iter.Seq2[*famulusv1.RunEvent, error] {
	return func(yield func(*famulusv1.RunEvent, error) bool) {
		defer func() { _ = s.Close() }() // what it returns can be had by calling it again
		for {
			event, err := s.Next()
			if err == io.EOF {
				return
			}
			if !yield(event, err) || err != nil {
				return
			}
		}
	}
}

// Next waits for the next event. After the last one it returns io.EOF, and an [*Error] where the run cannot be followed
// any more; then it returns the same again.
func (s *RunStream) Next() (*famulusv1.RunEvent, error) {
	if s.err != nil {
		return nil, s.err
	}
	event, err := s.next()
	if err != nil {
		s.err = s.why(err)
		s.release()
		return nil, s.err
	}
	return event, nil
}

// View returns the run as of the event that Next gave last.
func (s *RunStream) View() *RunView { return &s.following.view }

// LastSequence returns the sequence of the last event: go on after it later, see [WithAfterSequence].
func (s *RunStream) LastSequence() int64 { return s.following.last.Load() }

// Close cancels the open call and the tools that still run, and waits for neither a server nor a tool. The run goes on,
// unless [WithCancelOnExit] was given: then Close asks for its end, for at most 5 seconds, also if the context of the
// stream has ended, and returns the error of that. Repeated, it does nothing and returns the same.
func (s *RunStream) Close() error {
	s.closed.Do(func() {
		s.release()
		if s.cancelOnExit && s.following.mayGoOn() {
			s.closeErr = s.cancelRun()
		}
	})
	return s.closeErr
}

func (s *RunStream) release() {
	s.cancel(errStreamClosed) // and with it all that was made from the context
	s.stopTools()
	s.answering.Wait()
	s.call, s.pending = nil, nil
}

// why returns the error for the caller: where the stream's context has ended, that is what all others come from.
func (s *RunStream) why(err error) error {
	if err == io.EOF {
		return err
	}
	if failure := new(Error); errors.As(context.Cause(s.ctx), &failure) {
		return failure // of answering the tools
	}
	if over := ended(s.ctx); over != nil {
		return over
	}
	return err
}

func (s *RunStream) next() (*famulusv1.RunEvent, error) {
	if err := s.start(); err != nil {
		return nil, err
	}
	for {
		event, failure := s.takePending()
		switch {
		case failure != nil:
		case event != nil:
			return event, nil
		case s.following.finished:
			s.finish()
			return nil, io.EOF
		default:
			failure = s.receive()
		}
		if failure != nil {
			if err := s.resume(failure); err != nil {
				return nil, err
			}
		}
	}
}

// start is done once, before the first event.
func (s *RunStream) start() error {
	if s.started {
		return nil
	}
	s.started = true
	if s.tools == nil || s.LastSequence() == 0 {
		return nil
	}
	// The event that asked for outputs may be among those seen before.
	run, err := s.following.lookUp(s.ctx, s.policy, s.runs)
	if err != nil {
		return err
	}
	s.following.view.name(run.GetId())
	s.answer(openCalls(run))
	return nil
}

// takePending returns the next event that was received and is new; nil where there is none.
func (s *RunStream) takePending() (*famulusv1.RunEvent, *Error) {
	for len(s.pending) > 0 {
		event := s.pending[0]
		s.pending = s.pending[1:]
		fresh, failure := s.following.take(event)
		if failure != nil {
			return nil, failure
		}
		if fresh {
			s.answer(requestedCalls(event))
			return event, nil
		}
	}
	return nil, nil
}

// receive waits for a response, on a new call where none is open.
func (s *RunStream) receive() *Error {
	if s.call == nil {
		s.call = s.join()
	}
	events, err := s.call.read(s.policy.Silence)
	switch {
	case err == nil:
		s.following.heard()
		s.pending = events
		return nil
	case err != io.EOF:
		return FromError(err)
	}
	run, err := s.following.lookUp(s.ctx, s.policy, s.runs)
	if err != nil {
		return FromError(err)
	}
	if failure := s.following.ended(run); failure != nil {
		s.following.view.name(run.GetId())
		return failure
	}
	return nil
}

// resume leaves the call that broke and waits until another one may be tried.
func (s *RunStream) resume(failure *Error) error {
	if s.call != nil {
		s.call.cancel(nil)
	}
	s.call, s.pending = nil, nil
	if s.ctx.Err() != nil {
		return failure // in name only: see why
	}
	wait, err := s.following.lost(failure)
	if err != nil {
		return err
	}
	return pause(s.ctx, wait)
}

// finish is done after the last event.
func (s *RunStream) finish() {
	s.stopTools()
	s.answering.Wait()
	if s.call != nil {
		s.call.drain(lastWord)
	}
}

func (s *RunStream) cancelRun() error {
	ctx, cancel := leaving(s.ctx)
	defer cancel()
	runID := s.following.view.RunID()
	if runID == "" {
		run, err := s.following.lookUp(ctx, s.policy, s.runs)
		if err != nil {
			return err
		}
		runID = run.GetId()
	}
	return cancelRun(ctx, s.policy, s.runs, runID)
}

// leaving makes a context for the last call of somebody whose own context may have ended.
func leaving(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cancelWithin)
}

func cancelRun(ctx context.Context, policy RetryPolicy, runs famulusv1.RunServiceClient, runID string) error {
	_, err := send(ctx, policy, runs.CancelRun, &famulusv1.CancelRunRequest{RunId: runID})
	return err
}
