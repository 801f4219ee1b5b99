package famulus

import (
	"context"

	"google.golang.org/grpc"
)

// unary is a method of a stub, such as RunServiceClient.GetRun.
type unary[Request, Response any] func(context.Context, *Request, ...grpc.CallOption) (*Response, error)

// send makes a call that is safe to repeat, and repeats it while the service cannot be reached.
func send[Request, Response any](
	ctx context.Context, policy RetryPolicy, method unary[Request, Response], request *Request,
) (*Response, error) {
	outage := newOutage(policy)
	for {
		response, err := method(ctx, request)
		if err == nil {
			return response, nil
		}
		if err := ended(ctx); err != nil {
			return nil, err
		}
		wait, err := outage.delay(FromError(err))
		if err != nil {
			return nil, err
		}
		if err := pause(ctx, wait); err != nil {
			return nil, err
		}
	}
}
