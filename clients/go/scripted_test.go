package famulus_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/famulus/famulus/clients/go/famulusv1"
)

// patience is until a test that waits for something fails.
const patience = 10 * time.Second

// serving serves one stream; what it returns is the end of the stream.
type serving func(*scriptedStream) error

// scriptedStream is one stream that is served.
type scriptedStream struct {
	runs  *scriptedRuns
	ctx   context.Context
	runID string // empty: of StreamRun
	key   string // request id
	after int64
	send  func(...*famulusv1.RunEvent) error
}

// scriptedRuns is a RunService that tells a log and breaks its streams as planned. A stream is served by the next entry of
// the plan, and wholly when the plan is used up. The log is published up to the first event at which the run waits for tool
// outputs; submitting publishes the rest.
type scriptedRuns struct {
	famulusv1.UnimplementedRunServiceServer
	log    []*famulusv1.RunEvent
	opened chan *scriptedStream
	ended  chan *scriptedStream

	mu        sync.Mutex
	plan      []serving
	refusals  []error // of the next unary calls but GetRun
	visible   int
	grown     chan struct{} // closed when more is published
	streams   []*scriptedStream
	created   []*famulusv1.CreateRunRequest
	submitted []*famulusv1.SubmitToolOutputsRequest
	cancelled []string
	waits     int
}

func newRuns(log []*famulusv1.RunEvent, plan ...serving) *scriptedRuns {
	r := &scriptedRuns{
		log: log, plan: plan, grown: make(chan struct{}),
		opened: make(chan *scriptedStream, 1000), ended: make(chan *scriptedStream, 1000),
	}
	r.visible = r.pauseAfter(0)
	return r
}

// serve serves on a port of its own until the test ends.
func (r *scriptedRuns) serve(t *testing.T, options ...grpc.ServerOption) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return r.serveOn(t, listener, options...).addr
}

type running struct {
	*grpc.Server
	addr string
}

func (r *scriptedRuns) serveOn(t *testing.T, listener net.Listener, options ...grpc.ServerOption) running {
	t.Helper()
	server := grpc.NewServer(options...)
	famulusv1.RegisterRunServiceServer(server, r)
	var done sync.WaitGroup
	done.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		server.Stop()
		done.Wait()
	})
	return running{server, listener.Addr().String()}
}

func (r *scriptedRuns) pauseAfter(index int) int {
	for i, event := range r.log[index:] {
		if event.GetRunStateChanged().GetRun().GetState() == requiresAction {
			return index + i + 1
		}
	}
	return len(r.log)
}

// publish publishes up to the next pause.
func (r *scriptedRuns) publish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.visible = r.pauseAfter(r.visible)
	close(r.grown)
	r.grown = make(chan struct{})
}

// run is the run as it is now.
func (r *scriptedRuns) run() *famulusv1.Run {
	r.mu.Lock()
	defer r.mu.Unlock()
	run := &famulusv1.Run{Id: runID}
	for _, event := range r.log[:r.visible] {
		if changed := event.GetRunStateChanged().GetRun(); changed != nil {
			run = changed
		}
	}
	return run
}

// each tells what follows the sequence that the client named, as it is published, until tell fails or the run has ended.
func (s *scriptedStream) each(tell func(*famulusv1.RunEvent) error) error {
	for told := 0; ; {
		s.runs.mu.Lock()
		fresh, grown, whole := s.runs.log[told:s.runs.visible], s.runs.grown, s.runs.visible == len(s.runs.log)
		s.runs.mu.Unlock()
		for _, event := range fresh {
			told++
			if event.Sequence > s.after {
				if err := tell(event); err != nil {
					return err
				}
			}
		}
		if whole {
			return nil
		}
		select {
		case <-grown:
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
}

func (r *scriptedRuns) stream(s *scriptedStream) error {
	r.mu.Lock()
	r.streams = append(r.streams, s)
	serve := whole
	if len(r.plan) > 0 {
		serve, r.plan = r.plan[0], r.plan[1:]
	}
	r.mu.Unlock()
	r.opened <- s
	defer func() { r.ended <- s }()
	return serve(s)
}

func (r *scriptedRuns) StreamRun(
	request *famulusv1.StreamRunRequest, stream grpc.ServerStreamingServer[famulusv1.StreamRunResponse],
) error {
	return r.stream(&scriptedStream{
		runs: r, ctx: stream.Context(), key: request.GetCreate().GetRequestId(), after: request.GetAfterSequence(),
		send: func(events ...*famulusv1.RunEvent) error {
			return stream.Send(&famulusv1.StreamRunResponse{Events: events})
		},
	})
}

func (r *scriptedRuns) WatchRun(
	request *famulusv1.WatchRunRequest, stream grpc.ServerStreamingServer[famulusv1.WatchRunResponse],
) error {
	return r.stream(&scriptedStream{
		runs: r, ctx: stream.Context(), runID: request.GetRunId(), after: request.GetAfterSequence(),
		send: func(events ...*famulusv1.RunEvent) error {
			return stream.Send(&famulusv1.WatchRunResponse{Events: events})
		},
	})
}

// refusal returns the next of the planned ones.
func (r *scriptedRuns) refusal() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.refusals) == 0 {
		return nil
	}
	next := r.refusals[0]
	r.refusals = r.refusals[1:]
	return next
}

func (r *scriptedRuns) refusedAll() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.refusals) == 0
}

func (r *scriptedRuns) CreateRun(
	_ context.Context, request *famulusv1.CreateRunRequest,
) (*famulusv1.CreateRunResponse, error) {
	if err := r.refusal(); err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.created = append(r.created, request)
	r.mu.Unlock()
	return &famulusv1.CreateRunResponse{Run: r.run()}, nil
}

func (r *scriptedRuns) GetRun(context.Context, *famulusv1.GetRunRequest) (*famulusv1.GetRunResponse, error) {
	return &famulusv1.GetRunResponse{Run: r.run()}, nil
}

func (r *scriptedRuns) WaitRun(ctx context.Context, _ *famulusv1.WaitRunRequest) (*famulusv1.WaitRunResponse, error) {
	r.mu.Lock()
	r.waits++
	r.mu.Unlock()
	if err := r.refusal(); err == errHang {
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	} else if err != nil {
		return nil, err
	}
	response := &famulusv1.WaitRunResponse{Run: r.run()}
	for _, event := range r.log {
		if message := event.GetMessageCompleted().GetMessage(); message != nil {
			response.Messages = append(response.Messages, message)
		}
	}
	return response, nil
}

func (r *scriptedRuns) SubmitToolOutputs(
	_ context.Context, request *famulusv1.SubmitToolOutputsRequest,
) (*famulusv1.SubmitToolOutputsResponse, error) {
	if err := r.refusal(); err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.submitted = append(r.submitted, request)
	r.mu.Unlock()
	r.publish()
	return &famulusv1.SubmitToolOutputsResponse{Run: r.run()}, nil
}

func (r *scriptedRuns) CancelRun(
	_ context.Context, request *famulusv1.CancelRunRequest,
) (*famulusv1.CancelRunResponse, error) {
	r.mu.Lock()
	r.cancelled = append(r.cancelled, request.GetRunId())
	r.mu.Unlock()
	return &famulusv1.CancelRunResponse{Run: r.run()}, nil
}

// errHang makes WaitRun hang until its deadline.
var errHang = status.Error(codes.Canceled, "hang")

// refused makes an error with details in the service's manner.
func refused(code codes.Code, reason famulusv1.ErrorReason, details ...protoadapt.MessageV1) error {
	info := &errdetails.ErrorInfo{Domain: "famulus", Reason: reason.String()[len("ERROR_REASON_"):]}
	told, err := status.New(code, "as planned").WithDetails(append(details, info)...)
	if err != nil {
		panic(err)
	}
	return told.Err()
}

func retryAfter(wait time.Duration) *errdetails.RetryInfo {
	return &errdetails.RetryInfo{RetryDelay: durationpb.New(wait)}
}
