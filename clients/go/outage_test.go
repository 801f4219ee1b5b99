package famulus

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

// fixture is an outage with a clock and a chance of the test's own.
func fixture(t *testing.T, policy RetryPolicy, random float64) (*outage, *time.Time) {
	t.Helper()
	policy, err := policy.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1, 0)
	o := newOutage(policy)
	o.now = func() time.Time { return now }
	o.random = func() float64 { return random }
	return o, &now
}

var away = &Error{Code: codes.Unavailable}

func TestWaitsGrowUpToALimit(t *testing.T) {
	for random, factor := range map[float64]float64{0: 0.5, 0.5: 1, 1: 1.5} {
		o, _ := fixture(t, RetryPolicy{}, random)
		for _, want := range []float64{0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5} {
			if wait, err := o.delay(away); err != nil || (wait.Seconds()-want*factor) > 1e-6 || (want*factor-wait.Seconds()) > 1e-6 {
				t.Errorf("%v, %v instead of %v s", wait, err, want*factor)
			}
		}
		o.over()
		if wait, _ := o.delay(away); wait > 150*time.Millisecond {
			t.Errorf("%v after the outage was over", wait)
		}
	}
}

func TestNobodyComesBackEarlierThanTold(t *testing.T) {
	for _, random := range []float64{0, 0.25, 0.5, 1} {
		o, _ := fixture(t, RetryPolicy{}, random)
		wait, err := o.delay(&Error{Code: codes.Unavailable, RetryAfter: 2 * time.Second})
		if err != nil || wait < 2*time.Second || wait > 3*time.Second {
			t.Errorf("%v, %v", wait, err)
		}
	}
}

func TestPatienceCountsFromTheFirstFailureWithoutProgress(t *testing.T) {
	o, now := fixture(t, RetryPolicy{}, 0.5)
	for range 3 {
		if _, err := o.delay(away); err != nil {
			t.Fatal(err)
		}
		*now = now.Add(59 * time.Second)
		if _, err := o.delay(away); err != nil {
			t.Fatal(err)
		}
		o.over()
	}
	_, _ = o.delay(away)
	*now = now.Add(60 * time.Second)
	if _, err := o.delay(away); !errors.Is(err, away) {
		t.Errorf("got %v", err)
	}
}

func TestTheDeadlineOfAWaitIsNoFailure(t *testing.T) {
	o, now := fixture(t, RetryPolicy{}, 0.5)
	for range 10 {
		if wait, err := o.delayOfWait(&Error{Code: codes.DeadlineExceeded}); err != nil || wait != 100*time.Millisecond {
			t.Fatalf("%v, %v", wait, err)
		}
		*now = now.Add(45 * time.Second)
	}
}

func TestNamesOfThisMachine(t *testing.T) {
	for target, want := range map[string]bool{
		"127.0.0.1:7461": true, "localhost:7461": true, "[::1]:7461": true, "dns:///localhost:1": true, "localhost": true,
		"dns:127.0.0.1:1": true, "passthrough:///127.1.2.3:1": true, "unix:///run/famulus": true, "[::ffff:127.0.0.1]:1": true,
		"example.com:1": false, "10.0.0.1:1": false, "dns://127.0.0.1/example.com": false, "dns://10.0.0.1/localhost:1": false,
		"localhost.example.com:1": false, "[2001:db8::1]:1": false, "": false,
	} {
		if got := isLoopback(target); got != want {
			t.Errorf("%q: %v", target, got)
		}
	}
}
