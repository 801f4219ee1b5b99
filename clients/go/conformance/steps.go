package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/proto"

	famulus "github.com/famulus/famulus/clients/go"
	"github.com/famulus/famulus/clients/go/famulusv1"
)

// runner does one step. Errors of its methods are those of the scenario or the runner: what the client says is written.
type runner struct {
	client *famulus.Client
	step   int
	out    *json.Encoder
}

func newRunner(client *famulus.Client, step int, out io.Writer) *runner {
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	return &runner{client, step, encoder}
}

func (r *runner) write(fields line) error {
	fields["step"] = r.step
	return r.out.Encode(fields)
}

func (r *runner) do(ctx context.Context, step step) error {
	switch step.Op {
	case "call":
		return r.call(ctx, step)
	case "pages":
		return r.pages(ctx, step)
	case "stream":
		create, err := createOf(step)
		if err != nil {
			return err
		}
		return r.follow(ctx, step, r.client.StreamRun(ctx, create, optionsOf(step)...))
	case "watch":
		return r.follow(ctx, step, r.client.WatchRun(ctx, step.RunID, optionsOf(step)...))
	case "run_to_end":
		create, err := createOf(step)
		if err != nil {
			return err
		}
		return r.result(r.client.RunToEnd(ctx, create, optionsOf(step)...))
	case "wait":
		return r.result(r.client.WaitRun(ctx, step.RunID))
	default:
		return fmt.Errorf("unknown op %q", step.Op)
	}
}

func (r *runner) follow(ctx context.Context, step step, stream *famulus.RunStream) error {
	defer stream.Close()
	end, seen := line{"end": "finished"}, 0
	left := func() bool { return step.LeaveAfter != nil && seen >= *step.LeaveAfter }
	for !left() {
		event, err := stream.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			end = line{"end": "error", "error": errorOf(err)}
			break
		}
		if err := r.write(line{"event": eventOf(event)}); err != nil {
			return err
		}
		seen++
		if step.CancelAfter != nil && seen == *step.CancelAfter {
			// Late or refused it changes nothing: the stream tells.
			_, _ = r.client.Runs.CancelRun(ctx, &famulusv1.CancelRunRequest{RunId: stream.View().RunID()})
		}
	}
	if left() {
		end = line{"end": "left"}
	}
	_ = stream.Close() // of cancel_on_exit, which is best effort
	end["last_sequence"] = stream.LastSequence()
	end["view"] = viewOf(stream.View())
	return r.write(end)
}

func (r *runner) result(result *famulus.RunResult, err error) error {
	if err != nil {
		return r.write(line{"error": errorOf(err)})
	}
	return r.write(line{"result": resultOf(result)})
}

func createOf(step step) (*famulusv1.CreateRunRequest, error) {
	create := &famulusv1.CreateRunRequest{}
	return create, proto.Unmarshal(step.Create, create)
}

func optionsOf(step step) []famulus.StreamOption {
	options := []famulus.StreamOption{famulus.WithAfterSequence(step.AfterSequence)}
	if step.Tools != nil {
		options = append(options, famulus.WithTools(toolsOf(step.Tools)))
	}
	if step.ToolTimeout > 0 {
		options = append(options, famulus.WithToolTimeout(time.Duration(step.ToolTimeout)*time.Millisecond))
	}
	if step.CancelOnExit {
		options = append(options, famulus.WithCancelOnExit())
	}
	return options
}
