package famulus_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	famulus "github.com/famulus/famulus/clients/go"
	"github.com/famulus/famulus/clients/go/famulusv1"
)

// shown collects the authorization of each call.
type shown struct {
	mu     sync.Mutex
	values []string
}

func (s *shown) note(ctx context.Context) {
	headers, _ := metadata.FromIncomingContext(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values = append(s.values, headers.Get("authorization")...)
}

func (s *shown) options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.UnaryInterceptor(func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			s.note(ctx)
			return handler(ctx, request)
		}),
		grpc.StreamInterceptor(func(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			s.note(stream.Context())
			return handler(server, stream)
		}),
	}
}

func TestANameWithoutAnAddressIsNamedAsTheFault(t *testing.T) {
	names := manual.NewBuilderWithScheme("nowhere")
	names.InitialState(resolver.State{}) // what gRPC makes of a name that DNS does not know
	client, err := famulus.Dial("nowhere:///famulus.example:443", famulus.WithDialOptions(grpc.WithResolvers(names)))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, err = client.Runs.GetRun(t.Context(), &famulusv1.GetRunRequest{})
	told := famulus.FromError(err)
	if told.Code != codes.Unavailable || !strings.Contains(told.Message, "no address was found") {
		t.Errorf("told %v", told)
	}
}

func TestATokenIsNotSentInPlaintext(t *testing.T) {
	for _, target := range []string{"famulus.example:80", "dns:///10.0.0.1:80", "dns://10.0.0.1/localhost:80"} {
		if _, err := famulus.Dial(target, famulus.WithToken("secret")); err == nil {
			t.Errorf("%s: a client was made", target)
		}
		client, err := famulus.Dial(target, famulus.WithToken("secret"), famulus.WithTokenInPlaintext())
		if err != nil {
			t.Fatal(err)
		}
		_ = client.Close()
	}
}

func TestATokenGoesWithEveryCallOnLoopback(t *testing.T) {
	shown := new(shown)
	runs := newRuns(plain())
	client := dial(t, runs.serve(t, shown.options()...), famulus.WithToken("secret"))
	follow(client.StreamRun(t.Context(), create()))
	if _, err := client.Runs.GetRun(t.Context(), &famulusv1.GetRunRequest{}); err != nil {
		t.Fatal(err)
	}
	if len(shown.values) != 2 || shown.values[0] != "Bearer secret" || shown.values[1] != "Bearer secret" {
		t.Errorf("the server saw %q", shown.values)
	}
}

func TestAStreamGoesOnWithAFreshToken(t *testing.T) {
	shown := new(shown)
	expired := refused(codes.Unauthenticated, famulusv1.ErrorReason_ERROR_REASON_CREDENTIALS_EXPIRED)
	runs := newRuns(plain(), cutAfter(3, expired))
	tokens := []string{"old", "new"}
	source := func(context.Context) (string, error) {
		token := tokens[0]
		tokens = tokens[1:]
		return token, nil
	}
	client := dial(t, runs.serve(t, shown.options()...), famulus.WithTokenSource(source))
	if seen := follow(client.StreamRun(t.Context(), create())); seen.err != nil {
		t.Fatal(seen.err)
	}
	if len(shown.values) != 2 || shown.values[1] != "Bearer new" {
		t.Errorf("the server saw %q", shown.values)
	}
}

func TestATokenSourceThatFailsIsAskedAgain(t *testing.T) {
	shown := new(shown)
	asked := 0
	source := func(context.Context) (string, error) {
		if asked++; asked == 1 {
			return "", errors.New("no token yet")
		}
		return " token\n", nil // as files end
	}
	client := dial(t, newRuns(plain()).serve(t, shown.options()...), famulus.WithTokenSource(source))
	if seen := follow(client.StreamRun(t.Context(), create())); seen.err != nil {
		t.Fatal(seen.err)
	}
	if len(shown.values) != 1 || shown.values[0] != "Bearer token" {
		t.Errorf("the server saw %q", shown.values)
	}
}

func TestATokenSourceThatGoesOnFailingIsToldWhenPatienceEnds(t *testing.T) {
	impatient := quick
	impatient.GiveUpAfter = -1
	for _, source := range []famulus.TokenSource{
		func(context.Context) (string, error) { return "", errors.New("no token today") },
		func(context.Context) (string, error) { return "no\ttoken today", nil },
	} {
		client := dial(t, newRuns(plain()).serve(t), famulus.WithTokenSource(source), famulus.WithRetryPolicy(impatient))
		told := famulus.FromError(follow(client.StreamRun(t.Context(), create())).err)
		if told.Code != codes.Unavailable || !strings.Contains(told.Message, "there is no token: ") {
			t.Errorf("got %v", told)
		}
	}
}

func TestWhatIsNoTokenIsRefusedAtOnce(t *testing.T) {
	for _, token := range []string{"", " \n", "two words", "line\nbreak", "tök"} {
		if _, err := famulus.Dial("127.0.0.1:1", famulus.WithToken(token)); err == nil {
			t.Errorf("%q was accepted", token)
		}
	}
}

func TestWhatIsNoTargetIsRefusedAtOnce(t *testing.T) {
	for _, target := range []string{"", " ", "http://127.0.0.1:7461", "HTTPS://famulus.example"} {
		if _, err := famulus.Dial(target); err == nil {
			t.Errorf("%q was accepted", target)
		}
	}
}

func TestTLSTrustsTheGivenAuthorityAndShowsTheOwnCertificate(t *testing.T) {
	ca := newAuthority(t)
	serverCert, serverKey := ca.issue(t, "server")
	pair, err := tls.LoadX509KeyPair(serverCert, serverKey)
	if err != nil {
		t.Fatal(err)
	}
	shown := new(shown)
	mutual := credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: ca.pool, ClientAuth: tls.RequireAndVerifyClientCert,
	})
	target := newRuns(plain()).serve(t, append(shown.options(), grpc.Creds(mutual))...)
	clientCert, clientKey := ca.issue(t, "client")
	impatient := quick
	impatient.GiveUpAfter = -1
	call := func(caFile, certFile, keyFile string) error {
		config, err := famulus.LoadTLS(caFile, certFile, keyFile)
		if err != nil {
			t.Fatal(err)
		}
		client := dial(t, target,
			famulus.WithTLS(config), famulus.WithToken("secret"), famulus.WithRetryPolicy(impatient))
		return follow(client.StreamRun(t.Context(), create())).err
	}
	if err := call(ca.file, clientCert, clientKey); err != nil {
		t.Error(err)
	}
	if len(shown.values) != 1 || shown.values[0] != "Bearer secret" {
		t.Errorf("the server saw %q", shown.values)
	}
	if err := call(ca.file, "", ""); status.Code(err) != codes.Unavailable {
		t.Errorf("without a certificate: %v", err)
	}
	if err := call("", clientCert, clientKey); status.Code(err) != codes.Unavailable || famulus.FromError(err).Transient() {
		t.Errorf("with another authority: %v", err)
	}
}

func TestFilesThatAreNoCertificatesAreRefused(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, files := range [][3]string{{empty, "", ""}, {"missing", "", ""}, {"", empty, empty}, {"", "missing", ""}} {
		if _, err := famulus.LoadTLS(files[0], files[1], files[2]); err == nil {
			t.Errorf("%q were accepted", files)
		}
	}
}

func TestPoliciesThatMakeNoSenseAreRefused(t *testing.T) {
	for _, policy := range []famulus.RetryPolicy{{InitialDelay: -1}, {Multiplier: 0.5}, {Jitter: 2}, {Silence: -1}} {
		if _, err := famulus.Dial("localhost:1", famulus.WithRetryPolicy(policy)); err == nil {
			t.Errorf("%+v was accepted", policy)
		}
	}
}

// authority issues certificates for this machine.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pool        *x509.CertPool
	file        string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	ca := &authority{pool: x509.NewCertPool()}
	ca.certificate = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	ca.file, _ = ca.issueFor(t, ca.certificate, "ca")
	return ca
}

func (a *authority) issue(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	return a.issueFor(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, name)
}

func (a *authority) issueFor(t *testing.T, template *x509.Certificate, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if a.key == nil {
		a.key = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if template == a.certificate {
		parsed, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		a.pool.AddCert(parsed)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return writePEM(t, name+".crt", "CERTIFICATE", der), writePEM(t, name+".key", "PRIVATE KEY", keyDER)
}

func writePEM(t *testing.T, name, kind string, der []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
