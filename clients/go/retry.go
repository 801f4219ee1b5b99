package famulus

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
)

// RetryPolicy says how a client bears outages. A field that is 0 stands for its default.
//
// The wait before attempt n is InitialDelay * Multiplier^(n-1), at most MaxDelay, made shorter or longer by up to
// Jitter. Where the service says when to come back, the wait is at least that long.
type RetryPolicy struct {
	// InitialDelay is the first wait; 100 ms by default.
	InitialDelay time.Duration
	// Multiplier is by how much each wait is longer than the last, at least 1; 2 by default.
	Multiplier float64
	// MaxDelay is the longest wait; 5 s by default.
	MaxDelay time.Duration
	// Jitter is a fraction up to 1; 0.5 by default, none if negative.
	Jitter float64
	// GiveUpAfter is how long an outage may last until its last error is given to the caller; 60 s by default, no second
	// attempt if negative.
	GiveUpAfter time.Duration
	// Silence is how long a stream may be silent, heartbeats included, until it counts as broken, and the deadline of each
	// WaitRun; 45 s by default. The service sends a heartbeat after 15 s.
	Silence time.Duration
}

func (p RetryPolicy) withDefaults() (RetryPolicy, error) {
	fill(&p.InitialDelay, 100*time.Millisecond)
	fill(&p.Multiplier, 2)
	fill(&p.MaxDelay, 5*time.Second)
	fill(&p.Jitter, 0.5)
	fill(&p.GiveUpAfter, time.Minute)
	fill(&p.Silence, 45*time.Second)
	if p.InitialDelay < 0 || p.MaxDelay < 0 || p.Silence < 0 {
		return p, errors.New("famulus: times of a RetryPolicy must not be negative")
	}
	if p.Multiplier < 1 || p.Jitter > 1 {
		return p, errors.New("famulus: Multiplier must be at least 1, Jitter at most 1")
	}
	p.Jitter = max(p.Jitter, 0)
	return p, nil
}

func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// outage counts failures in a row, for one call or stream.
type outage struct {
	policy  RetryPolicy
	backoff time.Duration
	since   time.Time // zero while all is well

	now    func() time.Time
	random func() float64 // 0 to 1
}

func newOutage(policy RetryPolicy) *outage {
	return &outage{policy: policy, backoff: policy.InitialDelay, now: time.Now, random: rand.Float64}
}

// over notes progress: the next failure is a first one.
func (o *outage) over() {
	o.since = time.Time{}
	o.backoff = o.policy.InitialDelay
}

// delay returns how long to wait before the next attempt, or failure where there must be none.
func (o *outage) delay(failure *Error) (time.Duration, error) {
	if !failure.Transient() {
		return 0, failure
	}
	now := o.now()
	if o.since.IsZero() {
		o.since = now
	}
	wait, factor := o.backoff, 1+o.policy.Jitter*(2*o.random()-1)
	if failure.RetryAfter > 0 {
		// Never earlier than told; a little later, or all clients of a stopped replica would come at once.
		wait, factor = max(wait, failure.RetryAfter), max(factor, 2-factor)
	}
	wait = time.Duration(float64(wait) * factor)
	if now.Add(wait).After(o.since.Add(o.policy.GiveUpAfter)) {
		return 0, failure
	}
	o.backoff = min(time.Duration(float64(o.backoff)*o.policy.Multiplier), o.policy.MaxDelay)
	return wait, nil
}

// delayOfWait is delay for a call that waits for something, where to run into the deadline of the call is no failure.
func (o *outage) delayOfWait(failure *Error) (time.Duration, error) {
	if failure.Code != codes.DeadlineExceeded {
		return o.delay(failure)
	}
	o.over()
	return o.backoff, nil
}

// pause waits. It fails where the context ends before.
func pause(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}
