package famulus

import (
	"context"
	"fmt"

	"google.golang.org/grpc"

	"github.com/famulus/famulus/clients/go/famulusv1"
)

// Client is a connection to famulus with the generated stubs on it, and follows runs through broken connections.
//
// It may be shared by goroutines. Calls on the stubs return gRPC's errors (see [FromError]), the methods [*Error].
type Client struct {
	// Assistants is the stub of AssistantService.
	Assistants famulusv1.AssistantServiceClient
	// Threads is the stub of ThreadService.
	Threads famulusv1.ThreadServiceClient
	// Runs is the stub of RunService.
	Runs famulusv1.RunServiceClient
	// Usage is the stub of UsageService.
	Usage famulusv1.UsageServiceClient
	// UserData is the stub of UserDataService.
	UserData famulusv1.UserDataServiceClient

	connection *grpc.ClientConn
	retry      RetryPolicy
}

// Dial makes a client of the service at target: host:port, or any name of gRPC's such as dns:///famulus:8443, which
// spreads calls over all addresses of the name. It does not wait for a connection, and refuses what cannot be right: a URL, or options that
// contradict each other. Close the client after use.
func Dial(target string, options ...Option) (*Client, error) {
	var settings settings
	for _, option := range options {
		option(&settings)
	}
	if err := checkTarget(target); err != nil {
		return nil, err
	}
	retry, err := settings.retry.withDefaults()
	if err != nil {
		return nil, err
	}
	dial, err := dialOptions(target, &settings)
	if err != nil {
		return nil, err
	}
	connection, err := grpc.NewClient(target, dial...)
	if err != nil {
		return nil, fmt.Errorf("famulus: %w", err)
	}
	return &Client{
		Assistants: famulusv1.NewAssistantServiceClient(connection),
		Threads:    famulusv1.NewThreadServiceClient(connection),
		Runs:       famulusv1.NewRunServiceClient(connection),
		Usage:      famulusv1.NewUsageServiceClient(connection),
		UserData:   famulusv1.NewUserDataServiceClient(connection),
		connection: connection,
		retry:      retry,
	}, nil
}

// Close closes the connection and ends what is open on it.
func (c *Client) Close() error { return c.connection.Close() }

// Conn returns the connection, for stubs of other services such as grpc.health.v1.
func (c *Client) Conn() grpc.ClientConnInterface { return c.connection }

// StreamRun starts a run and follows it to its end.
//
// With a request_id in create, the same call joins the run that an earlier one started, for 24 hours; without one, each call
// starts a run. The call is made by the first [RunStream.Next]. The stream ends with ctx; leaving it does not stop the run
// (see [WithCancelOnExit]). Close it, or range over its Events.
func (c *Client) StreamRun(
	ctx context.Context, create *famulusv1.CreateRunRequest, options ...StreamOption,
) *RunStream {
	settings := newStreamSettings(options)
	return newRunStream(ctx, c.Runs, c.retry, newFollowing(repeatable(create), "", settings.after, c.retry), settings)
}

// WatchRun follows a run that exists, to its end; otherwise it is like [Client.StreamRun].
func (c *Client) WatchRun(ctx context.Context, runID string, options ...StreamOption) *RunStream {
	settings := newStreamSettings(options)
	return newRunStream(ctx, c.Runs, c.retry, newFollowing(nil, runID, settings.after, c.retry), settings)
}

// RunToEnd starts a run and returns it when it has ended. Without [WithTools] it also returns one in REQUIRES_ACTION.
// If ctx ends before, the run goes on (see [WithCancelOnExit]).
func (c *Client) RunToEnd(
	ctx context.Context, create *famulusv1.CreateRunRequest, options ...StreamOption,
) (*RunResult, error) {
	if settings := newStreamSettings(options); settings.tools == nil {
		return c.createAndWait(ctx, create, settings.cancelOnExit)
	}
	stream := c.StreamRun(ctx, create, options...)
	for _, err := range stream.Events() {
		if err != nil {
			return nil, err
		}
	}
	return stream.View().Result(), nil
}

func (c *Client) createAndWait(
	ctx context.Context, create *famulusv1.CreateRunRequest, cancelOnExit bool,
) (*RunResult, error) {
	created, err := send(ctx, c.retry, c.Runs.CreateRun, repeatable(create))
	if err != nil {
		return nil, err
	}
	runID := created.GetRun().GetId()
	result, err := c.WaitRun(ctx, runID)
	if err != nil && cancelOnExit {
		ctx, cancel := leaving(ctx)
		defer cancel()
		_ = cancelRun(ctx, c.retry, c.Runs, runID) // what the caller needs to know is why the wait ended
	}
	return result, err
}

// WaitRun waits until a run has ended or needs action, and returns it with its messages. If ctx ends before, the run
// goes on.
func (c *Client) WaitRun(ctx context.Context, runID string) (*RunResult, error) {
	outage := newOutage(c.retry)
	for {
		response, err := c.waitOnce(ctx, runID)
		if err == nil {
			return &RunResult{Run: response.GetRun(), Messages: response.GetMessages()}, nil
		}
		if err := ended(ctx); err != nil {
			return nil, err
		}
		wait, err := outage.delayOfWait(FromError(err))
		if err != nil {
			return nil, err
		}
		if err := pause(ctx, wait); err != nil {
			return nil, err
		}
	}
}

func (c *Client) waitOnce(ctx context.Context, runID string) (*famulusv1.WaitRunResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, c.retry.Silence)
	defer cancel()
	return c.Runs.WaitRun(ctx, &famulusv1.WaitRunRequest{RunId: runID})
}
