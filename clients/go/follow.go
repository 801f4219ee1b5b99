package famulus

import (
	"crypto/rand"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/famulus/famulus/clients/go/famulusv1"
)

// mostGaps is how many gaps in a row, at the same place, are an error.
const mostGaps = 3

// following is one run, followed over any number of streams: the place in its log, its view, and what to do when a
// stream breaks. It does no I/O.
type following struct {
	view     RunView
	last     atomic.Int64 // sequence of the last event seen; read by any goroutine
	create   *famulusv1.CreateRunRequest
	outage   *outage
	gaps     int
	asked    bool // whether a run may have been started
	finished bool
}

// newFollowing follows the run that create starts, or the one that runID names.
func newFollowing(create *famulusv1.CreateRunRequest, runID string, after int64, policy RetryPolicy) *following {
	f := &following{create: create, outage: newOutage(policy)}
	f.view.name(runID)
	f.last.Store(after)
	return f
}

// mayGoOn tells whether there may be a run that goes on without us: it was asked for, and neither refused nor seen to end.
func (f *following) mayGoOn() bool { return f.asked && !f.finished }

// take takes in an event of a stream. It returns false where the event was seen before, and an error where events before
// it are missing.
func (f *following) take(event *famulusv1.RunEvent) (bool, *Error) {
	last, sequence := f.last.Load(), event.GetSequence()
	if sequence <= last {
		return false, nil
	}
	if sequence != last+1 && !mayJump(event) {
		gap := &GapError{After: last, Received: sequence}
		return false, &Error{Code: codes.DataLoss, Message: gap.Error(), cause: gap}
	}
	f.view.Apply(event)
	f.last.Store(sequence)
	f.finished = f.view.Finished()
	f.gaps = 0
	return true, nil
}

func mayJump(event *famulusv1.RunEvent) bool {
	switch event.GetEvent().(type) {
	case *famulusv1.RunEvent_AttemptStarted, *famulusv1.RunEvent_Snapshot:
		return true
	default:
		return false
	}
}

// heard notes a response, with events or without.
func (f *following) heard() { f.outage.over() }

// lost notes that the stream broke. It returns how long to wait before joining again, or failure where that is of no use.
func (f *following) lost(failure *Error) (time.Duration, error) {
	if failure.Code == codes.DataLoss {
		f.gaps++
	}
	if f.gaps >= mostGaps {
		return 0, failure
	}
	if !failure.Transient() && f.view.RunID() == "" {
		f.asked = false // refused
	}
	return f.outage.delay(failure)
}

// ended notes that the stream ended OK without a last event; run is the run as it is now. It returns an error where that
// has more to say.
func (f *following) ended(run *famulusv1.Run) *Error {
	if !isFinal(run.GetState()) || run.GetLastSequence() > f.last.Load() {
		return unavailable("the stream ended before the run did")
	}
	f.view.adopt(run)
	f.finished = true
	return nil
}

// repeatable returns a copy of the request with a request id: without one, each attempt would start another run.
func repeatable(create *famulusv1.CreateRunRequest) *famulusv1.CreateRunRequest {
	named := &famulusv1.CreateRunRequest{}
	proto.Merge(named, create)
	if named.RequestId == "" {
		named.RequestId = newUUID()
	}
	return named
}

// newUUID returns a random UUID (RFC 9562, version 4).
func newUUID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails: it ends the program before
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
