package famulus

import (
	"context"
	"crypto/tls"
	"time"

	"google.golang.org/grpc"
)

// TokenSource returns a bearer token that is good now. It is called before each call, by many goroutines at once, and
// should keep the token until it runs out. An error of it is an outage: the call ends with codes.Unavailable.
type TokenSource func(ctx context.Context) (string, error)

// Option changes how a [Client] connects.
type Option func(*settings)

type settings struct {
	tls              *tls.Config
	token            TokenSource
	tokenFault       error
	tokenInPlaintext bool
	retry            RetryPolicy
	dial             []grpc.DialOption
}

// WithTLS encrypts the connection. Nil trusts the certificates of the system; [LoadTLS] reads others, and those for mutual
// TLS, from files. Without WithTLS the connection is plaintext.
func WithTLS(config *tls.Config) Option {
	if config == nil {
		config = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return func(s *settings) { s.tls = config }
}

// WithToken sends a bearer token with every call. Without [WithTLS], [Dial] refuses it unless the target is a loopback
// address. White space around it is taken off.
func WithToken(token string) Option {
	_, fault := authorization(token)
	source := func(context.Context) (string, error) { return token, nil }
	return func(s *settings) { s.token, s.tokenFault = source, fault }
}

// WithTokenSource is [WithToken] where tokens run out before the client does: streams go on with a fresh one.
func WithTokenSource(source TokenSource) Option {
	return func(s *settings) { s.token, s.tokenFault = source, nil }
}

// WithTokenInPlaintext allows a token on a connection without TLS, such as one that a mesh encrypts.
func WithTokenInPlaintext() Option {
	return func(s *settings) { s.tokenInPlaintext = true }
}

// WithRetryPolicy replaces the defaults of [RetryPolicy].
func WithRetryPolicy(policy RetryPolicy) Option {
	return func(s *settings) { s.retry = policy }
}

// WithDialOptions passes options to gRPC. They win over those of this package.
func WithDialOptions(options ...grpc.DialOption) Option {
	return func(s *settings) { s.dial = append(s.dial, options...) }
}

// StreamOption changes how a run is followed.
type StreamOption func(*streamSettings)

type streamSettings struct {
	after        int64
	tools        Tools
	toolTimeout  time.Duration
	cancelOnExit bool
}

// defaultToolTimeout is how long each call of a tool may take.
const defaultToolTimeout = 60 * time.Second

func newStreamSettings(options []StreamOption) streamSettings {
	settings := streamSettings{toolTimeout: defaultToolTimeout}
	for _, option := range options {
		option(&settings)
	}
	return settings
}

// WithAfterSequence goes on after the last event that was seen before: [RunStream.LastSequence], from any process.
func WithAfterSequence(sequence int64) StreamOption {
	return func(s *streamSettings) { s.after = sequence }
}

// WithTools answers the function calls of the run. Nil, the default, leaves them to somebody else; calls of tools that a
// map which is not nil lacks are answered with an error.
func WithTools(tools Tools) StreamOption {
	return func(s *streamSettings) { s.tools = tools }
}

// WithToolTimeout is how long each call of a tool may take; 60 seconds by default.
func WithToolTimeout(timeout time.Duration) StreamOption {
	return func(s *streamSettings) { s.toolTimeout = timeout }
}

// WithCancelOnExit cancels the run when its stream is left before its end. Without it the run goes on.
func WithCancelOnExit() StreamOption {
	return func(s *streamSettings) { s.cancelOnExit = true }
}
