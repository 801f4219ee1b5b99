package famulus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/famulus/famulus/clients/go/famulusv1"
)

const (
	errorDomain  = "famulus"
	reasonPrefix = "ERROR_REASON_"
)

// brokenTransport is how gRPC's implementations, at either end, word the end of a connection where they do not call it
// UNAVAILABLE. In lower case.
var brokenTransport = []string{
	"rst_stream",
	"connection reset",
	"stream reset",
	"stream removed",
	"closed",
	"goaway",
	"unexpected eof",
	"cancelling all calls",
}

// mistrust is how crypto/tls words that a server's certificate is not to be trusted. It will not be a moment later either.
const mistrust = "tls: failed to verify certificate"

// noAddress is all that gRPC's balancer says of a target whose name DNS does not know.
const noAddress = "no children to pick from"

// cutOff is all that a server says of a call which it cut off because it stops.
const cutOff = "CANCELLED"

// Error says that a call was refused or failed, or that a stream broke and could not be resumed.
//
// Get it with errors.As, or of an error of a stub with [FromError]. Where the caller's context ended the call,
// errors.Is finds [context.Canceled] or [context.DeadlineExceeded] in it, too.
type Error struct {
	// Code is the gRPC status.
	Code codes.Code
	// Message is a sentence for people. It may change: decide by Code and Reason.
	Message string
	// Reason is the service's reason; 0 if it gave none, or one that this client does not know yet.
	Reason famulusv1.ErrorReason
	// ReasonName is the name of the reason without prefix, such as RATE_LIMITED. Empty if the service gave none.
	ReasonName string
	// Metadata are the facts documented with the reason, such as the run_id of THREAD_HAS_ACTIVE_RUN.
	Metadata map[string]string
	// Violations are the wrong fields of the request.
	Violations []Violation
	// RetryAfter is the time after which the service invites another attempt; 0 if it does not.
	RetryAfter time.Duration

	cause error
}

// Violation says what is wrong with one field of a request.
type Violation struct {
	// Field is the path of the field, such as assistant.tools[3].function.name.
	Field string
	// Description is a sentence for people.
	Description string
}

// GapError says that events are missing from a stream, time and again. It is found by errors.As in an [Error] with the
// code DATA_LOSS.
type GapError struct {
	// After is the sequence of the last event, Received that of the one which came next.
	After, Received int64
}

// Error implements the error interface.
func (e *GapError) Error() string {
	return fmt.Sprintf("event %d came after event %d", e.Received, e.After)
}

// FromError makes an [*Error] of the error of any call, with the details that the service sent along: ErrorInfo,
// BadRequest and RetryInfo of google.rpc. It returns nil for nil.
func FromError(err error) *Error {
	if err == nil {
		return nil
	}
	if own := new(Error); errors.As(err, &own) {
		return own
	}
	told, ok := status.FromError(err)
	if !ok {
		told = status.FromContextError(err)
	}
	made := &Error{Code: told.Code(), Message: told.Message(), cause: err}
	if made.Code == codes.Unavailable && made.Message == noAddress {
		made.Message = "no address was found for the name of the target"
	}
	for _, detail := range told.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == errorDomain {
				made.ReasonName = detail.GetReason()
				made.Reason = famulusv1.ErrorReason(famulusv1.ErrorReason_value[reasonPrefix+made.ReasonName])
				made.Metadata = maps.Clone(detail.GetMetadata())
			}
		case *errdetails.BadRequest:
			for _, each := range detail.GetFieldViolations() {
				made.Violations = append(made.Violations, Violation{each.GetField(), each.GetDescription()})
			}
		case *errdetails.RetryInfo:
			made.RetryAfter = detail.GetRetryDelay().AsDuration()
		}
	}
	return made
}

// Error implements the error interface.
func (e *Error) Error() string {
	if e.ReasonName == "" {
		return fmt.Sprintf("famulus: %s: %s", e.Code, e.Message)
	}
	return fmt.Sprintf("famulus: %s (%s): %s", e.Code, e.ReasonName, e.Message)
}

// Unwrap returns what the error was made from: the error of the stub, a [*GapError], or that of the context.
func (e *Error) Unwrap() error { return e.cause }

// GRPCStatus lets the functions of gRPC's package status work on the error.
func (e *Error) GRPCStatus() *status.Status {
	if told, ok := e.cause.(interface{ GRPCStatus() *status.Status }); ok {
		return told.GRPCStatus()
	}
	return status.New(e.Code, e.Message)
}

// Transient tells whether it is the connection or the replica that failed, so that the same call may go well elsewhere;
// or the credentials ran out in the middle of it, so that it may go well with fresh ones.
func (e *Error) Transient() bool {
	switch e.Code {
	case codes.Unavailable:
		return e.ReasonName != "" || !strings.Contains(e.Message, mistrust)
	case codes.Aborted:
		return e.Reason == famulusv1.ErrorReason_ERROR_REASON_SLOW_CONSUMER
	case codes.Unauthenticated:
		return e.Reason == famulusv1.ErrorReason_ERROR_REASON_CREDENTIALS_EXPIRED
	case codes.DataLoss:
		_, gap := e.cause.(*GapError) // a new stream, perhaps from another replica, may have what is missing
		return gap
	case codes.Internal, codes.Unknown, codes.Canceled:
		return e.ReasonName == "" && madeByTransport(e.Message)
	default:
		return false
	}
}

func madeByTransport(message string) bool {
	if message == cutOff {
		return true
	}
	message = strings.ToLower(message)
	for _, words := range brokenTransport {
		if strings.Contains(message, words) {
			return true
		}
	}
	return false
}

// unavailable makes an error for a stream that this client counts as broken.
func unavailable(format string, arguments ...any) *Error {
	return &Error{Code: codes.Unavailable, Message: fmt.Sprintf(format, arguments...)}
}

// ended makes the error for a call that the caller's context ended; nil if it did not.
func ended(ctx context.Context) *Error {
	err := ctx.Err()
	if err == nil {
		return nil
	}
	code := codes.Canceled
	if errors.Is(err, context.DeadlineExceeded) {
		code = codes.DeadlineExceeded
	}
	return &Error{Code: code, Message: context.Cause(ctx).Error(), cause: err}
}
