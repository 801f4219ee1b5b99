package famulus

import (
	"context"
	"errors"
	"time"

	"github.com/famulus/famulus/clients/go/famulusv1"
)

var errSilent = errors.New("silent for too long")

// receiver returns the events of the next response; none for a heartbeat.
type receiver func() ([]*famulusv1.RunEvent, error)

// eventCall is one StreamRun or WatchRun.
type eventCall struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	open    func(context.Context) (receiver, error)
	receive receiver // nil before the first read
}

// join prepares the call that goes on after the last event seen.
func (s *RunStream) join() *eventCall {
	f := s.following
	f.asked = true
	call := &eventCall{}
	call.ctx, call.cancel = context.WithCancelCause(s.ctx)
	// By its id as soon as that is known: a request id is forgotten after a day, and would start another run.
	if runID, after := f.view.RunID(), f.last.Load(); runID != "" {
		call.open = func(ctx context.Context) (receiver, error) {
			stream, err := s.runs.WatchRun(ctx, &famulusv1.WatchRunRequest{RunId: runID, AfterSequence: after})
			return func() ([]*famulusv1.RunEvent, error) {
				response, err := stream.Recv()
				return response.GetEvents(), err
			}, err
		}
	} else {
		call.open = func(ctx context.Context) (receiver, error) {
			stream, err := s.runs.StreamRun(ctx, &famulusv1.StreamRunRequest{Create: f.create, AfterSequence: after})
			return func() ([]*famulusv1.RunEvent, error) {
				response, err := stream.Recv()
				return response.GetEvents(), err
			}, err
		}
	}
	return call
}

// read waits for the next response, for so long. It returns io.EOF where the server ended the stream with OK.
func (c *eventCall) read(silence time.Duration) ([]*famulusv1.RunEvent, error) {
	timer := time.AfterFunc(silence, func() { c.cancel(errSilent) })
	defer timer.Stop()
	events, err := c.next()
	if err != nil && context.Cause(c.ctx) == errSilent {
		return nil, unavailable("nothing came for %s", silence)
	}
	return events, err
}

func (c *eventCall) next() ([]*famulusv1.RunEvent, error) {
	if c.receive == nil {
		receive, err := c.open(c.ctx)
		if err != nil {
			return nil, err
		}
		c.receive = receive
	}
	return c.receive()
}

// drain lets the server end the call, for so long: cancelled, it would count as failed there.
func (c *eventCall) drain(wait time.Duration) {
	timer := time.AfterFunc(wait, func() { c.cancel(nil) })
	defer timer.Stop()
	for err := error(nil); err == nil; {
		_, err = c.next()
	}
	c.cancel(nil)
}
