package main

import (
	"context"
	"strings"
	"time"

	famulus "github.com/famulus/famulus/clients/go"
)

// known are the tools that every runner has.
var known = famulus.Tools{
	"echo": famulus.Typed(func(_ context.Context, arguments struct{ Text string }) (string, error) {
		return "echo:" + arguments.Text, nil
	}),
	"add": famulus.Typed(func(_ context.Context, arguments struct{ A, B int64 }) (int64, error) {
		return arguments.A + arguments.B, nil
	}),
	"tell": famulus.Typed(func(context.Context, struct{}) (map[string]bool, error) {
		return map[string]bool{"told": true}, nil
	}),
	"refuse": famulus.Typed(func(context.Context, struct{}) (string, error) {
		return "", famulus.ToolErrorf("told to refuse")
	}),
	"slow": famulus.Typed(func(ctx context.Context, _ struct{}) (string, error) {
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(30 * time.Second):
			return "late", nil
		}
	}),
	"large": famulus.Typed(func(context.Context, struct{}) (string, error) {
		return strings.Repeat("x", 1<<20+1), nil
	}),
}

// toolsOf returns those tools that a step names. One that no runner has stays unknown to the client, too.
func toolsOf(names []string) famulus.Tools {
	tools := famulus.Tools{}
	for _, name := range names {
		if handler := known[name]; handler != nil {
			tools[name] = handler
		}
	}
	return tools
}
