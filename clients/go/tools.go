package famulus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/famulus/famulus/clients/go/famulusv1"
)

// largestOutput is what the service takes, in bytes.
const largestOutput = 1 << 20

// Handler answers a call of a function tool. The arguments are the text of a JSON object. What it returns is the output: a
// string as it is, anything else as JSON.
//
// An error is told to the model: of a [*ToolError] its text, of any other the name of its type only; that one is logged by
// slog, and so is a panic. The context ends
// with the tool's time-out and with the stream: a handler that goes on after that goes on for nobody.
type Handler func(ctx context.Context, arguments json.RawMessage) (any, error)

// Tools are handlers by name. The calls of a turn run at the same time, each in a goroutine of its own.
type Tools map[string]Handler

// Typed makes a [Handler] of a function that takes its arguments as a struct, or as anything else that encoding/json
// can make of an object. Arguments that do not fit are told to the model.
func Typed[Arguments, Result any](function func(context.Context, Arguments) (Result, error)) Handler {
	return func(ctx context.Context, text json.RawMessage) (any, error) {
		var arguments Arguments
		if err := json.Unmarshal(text, &arguments); err != nil {
			return nil, misfit(err)
		}
		return function(ctx, arguments)
	}
}

func misfit(err error) error {
	if wrong := new(json.UnmarshalTypeError); errors.As(err, &wrong) && wrong.Field != "" {
		return ToolErrorf("the arguments do not fit: %s must not be of type %s", wrong.Field, wrong.Value)
	}
	return ToolErrorf("the arguments do not fit")
}

// ToolError tells the model why a call failed. Return it from a [Handler].
type ToolError struct {
	// Text is what the model is told.
	Text string
}

// ToolErrorf makes a [*ToolError] with the text of fmt.Sprintf.
func ToolErrorf(format string, arguments ...any) *ToolError {
	return &ToolError{Text: fmt.Sprintf(format, arguments...)}
}

// Error implements the error interface.
func (e *ToolError) Error() string { return e.Text }

// toolbox answers function calls. Each is claimed once.
type toolbox struct {
	tools   Tools
	timeout time.Duration
	claimed map[string]bool
}

func newToolbox(tools Tools, timeout time.Duration) *toolbox {
	return &toolbox{tools: tools, timeout: timeout, claimed: map[string]bool{}}
}

// claim returns the ids of those calls that nobody claimed before: the caller must answer them.
func (t *toolbox) claim(calls []*famulusv1.ToolCall) map[string]bool {
	fresh := map[string]bool{}
	for _, call := range calls {
		if id := call.GetId(); !t.claimed[id] {
			t.claimed[id], fresh[id] = true, true
		}
	}
	return fresh
}

// answerAll runs the calls in parallel, and returns when all are answered or ctx has ended.
func (t *toolbox) answerAll(ctx context.Context, calls []*famulusv1.ToolCall) []*famulusv1.ToolOutput {
	outputs := make([]*famulusv1.ToolOutput, len(calls))
	var running sync.WaitGroup
	for i, call := range calls {
		running.Go(func() { outputs[i] = t.answer(ctx, call) })
	}
	running.Wait()
	return outputs
}

func (t *toolbox) answer(ctx context.Context, call *famulusv1.ToolCall) *famulusv1.ToolOutput {
	text, err := t.run(ctx, call)
	if err == nil {
		text = clean(text)
		if len(text) <= largestOutput {
			return &famulusv1.ToolOutput{CallId: call.GetId(), Output: text}
		}
		err = ToolErrorf("the tool's result is larger than 1 MiB")
	}
	return &famulusv1.ToolOutput{CallId: call.GetId(), Output: toldToModel(err), IsError: true}
}

func (t *toolbox) run(ctx context.Context, call *famulusv1.ToolCall) (string, error) {
	name := call.GetFunction().GetName()
	handler := t.tools[name]
	if handler == nil {
		return "", ToolErrorf("there is no tool of this name")
	}
	arguments, err := argumentsOf(call.GetFunction().GetArgumentsJson())
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	answered := make(chan answer, 1)
	go handle(ctx, handler, arguments, answered)
	var got answer
	select {
	case got = <-answered:
	case <-ctx.Done():
		got.err = ctx.Err()
	}
	if got.err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		seconds := strconv.FormatFloat(t.timeout.Seconds(), 'f', -1, 64)
		return "", ToolErrorf("the tool took longer than %s seconds", seconds)
	}
	if got.err != nil && ctx.Err() == nil && !meant(got.err) {
		slog.ErrorContext(ctx, "a tool failed", "tool", name, "call_id", call.GetId(), "error", got.err)
	}
	return got.text, got.err
}

type answer struct {
	text string
	err  error
}

// handle calls a handler. A panic in it, or runtime.Goexit, is an error like others: it must not end the program or leave
// the run without an answer.
func handle(ctx context.Context, handler Handler, arguments json.RawMessage, answered chan<- answer) {
	got := answer{err: new(panicked)}
	defer func() {
		if value := recover(); value != nil {
			got.err = &panicked{fmt.Sprintf("%v\n%s", value, debug.Stack())}
		}
		answered <- got
	}()
	result, err := handler(ctx, arguments)
	if err != nil {
		got = answer{err: err}
		return
	}
	text, err := outputOf(result)
	got = answer{text, err}
}

// panicked is the error of a handler that did not return.
type panicked struct{ trace string }

// Error implements the error interface.
func (p *panicked) Error() string { return "panic: " + p.trace }

// meant tells whether an error says itself what the model is told.
func meant(err error) bool {
	own := new(ToolError)
	return errors.As(err, &own) && own != nil
}

func argumentsOf(text string) (json.RawMessage, error) {
	if text == "" {
		text = "{}"
	}
	if !json.Valid([]byte(text)) {
		return nil, ToolErrorf("the arguments are not JSON")
	}
	arguments := bytes.TrimSpace([]byte(text))
	if arguments[0] != '{' {
		return nil, ToolErrorf("the arguments are not a JSON object")
	}
	return arguments, nil
}

func outputOf(result any) (string, error) {
	if text, ok := result.(string); ok {
		return text, nil
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(result); err != nil {
		return "", ToolErrorf("the tool's result cannot be written as JSON")
	}
	return strings.TrimSuffix(text.String(), "\n"), nil
}

// toldToModel returns what the model is told of an error. The text of any but a ToolError may hold what is not the
// model's to see.
func toldToModel(err error) string {
	if own := new(ToolError); errors.As(err, &own) && own != nil {
		return clean(own.Text)
	}
	if _, ok := err.(*panicked); ok {
		return "the tool failed: panic"
	}
	kind := reflect.TypeOf(err)
	for kind.Kind() == reflect.Pointer {
		kind = kind.Elem()
	}
	return "the tool failed: " + kind.String()
}

// clean returns the text without what the service would refuse.
func clean(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}
