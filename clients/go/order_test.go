package famulus_test

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	famulus "github.com/famulus/famulus/clients/go"
	"github.com/famulus/famulus/clients/go/famulusv1"
)

func TestEventsThatComeAgainAreDropped(t *testing.T) {
	runs := newRuns(plain(), cutAfter(5, errCut), repeatsAll)
	followAll(t, runs)
	if len(runs.streams) != 2 {
		t.Errorf("%d streams", len(runs.streams))
	}
}

func TestABatchIsHandedOutOneByOne(t *testing.T) {
	stream := dial(t, newRuns(plain(), inOneBatch).serve(t)).StreamRun(t.Context(), create())
	defer stream.Close()
	read(t, stream, 3)
	if stream.LastSequence() != 3 || stream.View().Text() != "" {
		t.Errorf("at event %d with the text %q", stream.LastSequence(), stream.View().Text())
	}
}

func TestAGapIsClosedByAnotherStream(t *testing.T) {
	runs := newRuns(plain(), without(6), without(6))
	followAll(t, runs)
	if len(runs.streams) != 3 || runs.streams[1].after != 5 || runs.streams[2].after != 5 {
		t.Errorf("%d streams", len(runs.streams))
	}
}

func TestAGapThatStaysIsAnError(t *testing.T) {
	runs := newRuns(plain(), without(6), without(6), without(6), without(6))
	seen := follow(dial(t, runs.serve(t)).StreamRun(t.Context(), create()))
	gap := new(famulus.GapError)
	if !errors.As(seen.err, &gap) || *gap != (famulus.GapError{After: 5, Received: 7}) {
		t.Errorf("got %v", seen.err)
	}
	if status.Code(seen.err) != codes.DataLoss || len(runs.streams) != 3 || len(seen.events) != 5 {
		t.Errorf("%d streams, %v", len(runs.streams), seen.err)
	}
}

func TestASnapshotStandsForTheEventsThatAreGone(t *testing.T) {
	log := new(story).state(inProgress).begin("msg_1").text("msg_1", "Goo", "d", " m", "or", "ning").
		end("msg_1", "Good morning").state(completed).log
	taken := snapshot(7, &famulusv1.Run{Id: runID, State: inProgress},
		written("msg_1", "Good mor", famulusv1.MessageState_MESSAGE_STATE_IN_PROGRESS))
	runs := newRuns(log, cutAfter(5, errCut), tells(taken))
	seen := follow(dial(t, runs.serve(t)).StreamRun(t.Context(), create()))
	want := append(append(log[:5:5], taken), log[7:]...)
	if seen.err != nil || !equal(seen.events, want) {
		t.Fatalf("saw %v, %v", seen.events, seen.err)
	}
	if got := fmt.Sprint(seen.texts[4:7]); got != "[Good Good mor Good morning]" {
		t.Errorf("the texts are %s", got)
	}
}

func TestASnapshotOfAFinishedRunIsItsEnd(t *testing.T) {
	taken := snapshot(40, &famulusv1.Run{Id: runID, State: completed, LastSequence: 40},
		written("msg_1", "Done", famulusv1.MessageState_MESSAGE_STATE_COMPLETED))
	runs := newRuns(plain(), tells(taken))
	stream := dial(t, runs.serve(t)).WatchRun(t.Context(), runID)
	seen := follow(stream)
	if seen.err != nil || len(seen.events) != 1 || len(runs.streams) != 1 || stream.View().Result().Text() != "Done" {
		t.Errorf("saw %v, %v", seen.events, seen.err)
	}
}

func TestKindsOfANewerVersionChangeNothing(t *testing.T) {
	log := new(story).state(inProgress).tell(&famulusv1.RunEvent{}).begin("msg_1").text("msg_1", "Hi").
		end("msg_1", "Hi").state(completed).log
	stream := followAll(t, newRuns(log, cutAfter(2, errCut)))
	if text := stream.View().Text(); text != "Hi" {
		t.Errorf("the text is %q", text)
	}
}

func TestAReaderJoinsInTheMiddle(t *testing.T) {
	stream := dial(t, newRuns(plain()).serve(t)).WatchRun(t.Context(), runID, famulus.WithAfterSequence(6))
	seen := follow(stream)
	if seen.err != nil || !equal(seen.events, plain()[6:]) {
		t.Fatalf("saw %v, %v", seen.events, seen.err)
	}
	if first, last := seen.texts[0], seen.texts[len(seen.texts)-1]; first != "morning" || last != "Good morning, world" {
		t.Errorf("the text went from %q to %q", first, last)
	}
}
