package famulus_test

import (
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/famulus/famulus/clients/go/famulusv1"
)

var (
	errEnough = errors.New("enough")
	errCut    = status.Error(codes.Unavailable, "cut")
)

func whole(s *scriptedStream) error {
	return s.each(func(event *famulusv1.RunEvent) error { return s.send(event) })
}

func inOneBatch(s *scriptedStream) error {
	var events []*famulusv1.RunEvent
	if err := s.each(func(event *famulusv1.RunEvent) error { events = append(events, event); return nil }); err != nil {
		return err
	}
	return s.send(events...)
}

// some tells so many events.
func (s *scriptedStream) some(count int) {
	if count == 0 {
		return
	}
	_ = s.each(func(event *famulusv1.RunEvent) error {
		if err := s.send(event); err != nil {
			return err
		}
		if count--; count == 0 {
			return errEnough
		}
		return nil
	})
}

// cutAfter ends a stream with an error after so many events; nil is OK, too early.
func cutAfter(count int, err error) serving {
	return func(s *scriptedStream) error {
		s.some(count)
		return err
	}
}

// silentAfter says nothing more after so many events.
func silentAfter(count int) serving {
	return func(s *scriptedStream) error {
		s.some(count)
		<-s.ctx.Done()
		return s.ctx.Err()
	}
}

// heartbeats sends heartbeats before the events.
func heartbeats(count int, apart time.Duration) serving {
	return func(s *scriptedStream) error {
		ticker := time.NewTicker(apart)
		defer ticker.Stop()
		for range count {
			select {
			case <-ticker.C:
			case <-s.ctx.Done():
			}
			if err := s.send(); err != nil {
				return err
			}
		}
		return whole(s)
	}
}

// tells tells these events, whatever the client asked for, and goes on after the last of them.
func tells(events ...*famulusv1.RunEvent) serving {
	return func(s *scriptedStream) error {
		for _, event := range events {
			if err := s.send(event); err != nil {
				return err
			}
		}
		s.after = events[len(events)-1].Sequence
		return whole(s)
	}
}

// without leaves an event out.
func without(sequence int64) serving {
	return func(s *scriptedStream) error {
		return s.each(func(event *famulusv1.RunEvent) error {
			if event.Sequence == sequence {
				return nil
			}
			return s.send(event)
		})
	}
}

// repeatsAll starts at the first event, whatever the client has seen, and tells each twice.
func repeatsAll(s *scriptedStream) error {
	s.after = 0
	return s.each(func(event *famulusv1.RunEvent) error { return s.send(event, event) })
}
