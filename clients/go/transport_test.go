package famulus_test

import (
	"encoding/binary"
	"net"
	"net/http"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/famulus/famulus/clients/go/famulusv1"
)

// frame is a message as gRPC puts it on the wire.
func frame(t *testing.T, message proto.Message) []byte {
	t.Helper()
	body, err := proto.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
}

// The scripted server cannot break a stream below gRPC; one that speaks HTTP/2 by itself can.
func TestAStreamThatBreaksBelowGRPCIsResumed(t *testing.T) {
	for name, breakOff := range map[string]func(http.ResponseWriter){
		"reset":              func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"without trailers":   func(http.ResponseWriter) {},
		"within a message":   func(w http.ResponseWriter) { _, _ = w.Write([]byte{0, 0, 0, 0, 9, 1}); trailers(w) },
		"within its head":    func(w http.ResponseWriter) { _, _ = w.Write([]byte{0, 0}); trailers(w) },
		"before its message": func(w http.ResponseWriter) { _, _ = w.Write([]byte{0, 0, 0, 0, 9}); panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			log := plain()
			first := frame(t, &famulusv1.StreamRunResponse{Events: log[:3]})
			runs, calls := newRuns(log), atomic.Int32{}
			service := grpc.NewServer()
			famulusv1.RegisterRunServiceServer(service, runs)
			target := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
				if calls.Add(1) > 1 {
					service.ServeHTTP(w, r)
					return
				}
				w.Header().Set("Content-Type", "application/grpc")
				w.Header().Set("Trailer", "Grpc-Status")
				_, _ = w.Write(first)
				_ = http.NewResponseController(w).Flush()
				breakOff(w)
			})
			seen := follow(dial(t, target).StreamRun(t.Context(), create()))
			if seen.err != nil || !equal(seen.events, log) {
				t.Errorf("saw %d events, %v", len(seen.events), seen.err)
			}
			if len(runs.streams) != 1 || runs.streams[0].after != 3 {
				t.Errorf("%d streams", len(runs.streams))
			}
		})
	}
}

func trailers(w http.ResponseWriter) { w.Header().Set("Grpc-Status", "0") }

func serveHTTP(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler, Protocols: new(http.Protocols)}
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return listener.Addr().String()
}
