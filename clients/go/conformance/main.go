// Command conformance runs one scenario of the conformance suite of all clients, and writes what the client did.
//
//	runner TARGET < scenario.json > transcript.jsonl
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	famulus "github.com/famulus/famulus/clients/go"
)

// scenario is what comes on standard input.
type scenario struct {
	Name  string `json:"name"`
	Token string `json:"token"`
	Steps []step `json:"steps"`
}

// step has the fields of all kinds of steps. Requests are serialized messages.
type step struct {
	Op      string `json:"op"`
	Method  string `json:"method"`
	Request []byte `json:"request"`
	Timeout int64  `json:"timeout_ms"`

	Create        []byte   `json:"create"`
	RunID         string   `json:"run_id"`
	AfterSequence int64    `json:"after_sequence"`
	Tools         []string `json:"tools"` // nil: none are given to the client
	ToolTimeout   int64    `json:"tool_timeout_ms"`
	LeaveAfter    *int     `json:"leave_after"`
	CancelOnExit  bool     `json:"cancel_on_exit"`
	CancelAfter   *int     `json:"cancel_after"`
}

// line is a line of the transcript.
type line map[string]any

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: runner TARGET < scenario.json")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Args[1], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, target string, in io.Reader, out io.Writer) error {
	var scenario scenario
	if err := json.NewDecoder(in).Decode(&scenario); err != nil {
		return fmt.Errorf("the scenario cannot be read: %w", err)
	}
	options := []famulus.Option{}
	if scenario.Token != "" {
		options = append(options, famulus.WithToken(scenario.Token), famulus.WithTokenInPlaintext())
	}
	client, err := famulus.Dial(target, options...)
	if err != nil {
		return err
	}
	defer client.Close()
	for index, step := range scenario.Steps {
		if err := newRunner(client, index, out).do(ctx, step); err != nil {
			return fmt.Errorf("%s, step %d: %w", scenario.Name, index, err)
		}
	}
	return nil
}
