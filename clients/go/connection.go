package famulus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

const (
	keepaliveTime    = 20 * time.Second // the server allows pings 10 seconds apart
	keepaliveTimeout = 10 * time.Second
	largestReceived  = 64 << 20 // bytes; a Snapshot holds all messages of a run
)

var errNoToken = errors.New("famulus: the token is empty, or not all of printable ASCII")

var errTokenInPlaintext = errors.New(
	"famulus: a token is sent over TLS only: pass WithTLS, or WithTokenInPlaintext where the way to the service is safe")

// LoadTLS returns a configuration for [WithTLS] from PEM files: the certificates that may have signed the server's (empty:
// those of the system), and for mutual TLS the client's own certificate with its key (empty: none). The latter two are read
// anew for each connection, so that they can be replaced while the client runs.
func LoadTLS(caFile, certFile, keyFile string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("famulus: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("famulus: %s holds no certificate", caFile)
		}
	}
	if certFile == "" && keyFile == "" {
		return config, nil
	}
	load := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		return &pair, err
	}
	if _, err := load(nil); err != nil {
		return nil, fmt.Errorf("famulus: %w", err)
	}
	config.GetClientCertificate = load
	return config, nil
}

// dialOptions are gRPC's options of a connection to target; the caller's own ones come last and win.
func dialOptions(target string, settings *settings) ([]grpc.DialOption, error) {
	transport := insecure.NewCredentials()
	if settings.tls != nil {
		transport = credentials.NewTLS(settings.tls)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		// A dead connection is noticed after 20 + 10 seconds.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true,
		}),
		// Back on the line soon after a restart; the waits between calls are this client's own.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: keepaliveTimeout,
		}),
		grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(largestReceived)),
		// Calls spread over all replicas that a name stands for, whatever DNS says of a service config.
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		grpc.WithDisableServiceConfig(),
		// Idle connections stay, as the streams of the next run should not wait for one.
		grpc.WithIdleTimeout(0),
	}
	if settings.tokenFault != nil {
		return nil, settings.tokenFault
	}
	if settings.token != nil {
		secure := settings.tls != nil
		if !secure && !settings.tokenInPlaintext && !isLoopback(target) {
			return nil, errTokenInPlaintext
		}
		options = append(options, grpc.WithPerRPCCredentials(&bearer{settings.token, secure}))
	}
	return append(options, settings.dial...), nil
}

// bearer shows a token with every call.
type bearer struct {
	token  TokenSource
	secure bool
}

func (b *bearer) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, err := b.token(ctx)
	header := ""
	if err == nil {
		header, err = authorization(token)
	}
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "there is no token: %v", err) // a moment later there may be one
	}
	return map[string]string{"authorization": header}, nil
}

func (b *bearer) RequireTransportSecurity() bool { return b.secure }

// authorization is the header that shows a token.
func authorization(token string) (string, error) {
	token = strings.TrimSpace(token) // files end with a newline
	unprintable := func(letter rune) bool { return letter <= ' ' || letter > '~' }
	if token == "" || strings.ContainsFunc(token, unprintable) {
		return "", errNoToken
	}
	return "Bearer " + token, nil
}

// checkTarget refuses what is no target: gRPC would look for it in the DNS, again and again.
func checkTarget(target string) error {
	scheme, _, _ := strings.Cut(strings.ToLower(target), "://")
	if strings.TrimSpace(target) == "" || scheme == "http" || scheme == "https" {
		return fmt.Errorf("famulus: the target is not host:port, nor a name such as dns:///host:port: %q", target)
	}
	return nil
}

// isLoopback tells whether a target of gRPC's names this machine, as far as can be told without resolving names.
func isLoopback(target string) bool {
	if strings.HasPrefix(target, "unix:") || strings.HasPrefix(target, "unix-abstract:") {
		return true
	}
	for _, scheme := range []string{"dns:", "passthrough:"} {
		if rest, ok := strings.CutPrefix(target, scheme); ok {
			target = strings.TrimPrefix(rest, "///")
			break
		}
	}
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		host = strings.Trim(target, "[]")
	}
	if host == "localhost" {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.Unmap().IsLoopback()
}
