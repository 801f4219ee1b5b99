// Command property asks an assistant that sells houses, and prints its answer as it grows. The assistant calls functions
// of this program.
//
//	go run ./examples/property [HOST:PORT [MODEL [QUESTION]]]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"

	famulus "github.com/famulus/famulus/clients/go"
	"github.com/famulus/famulus/clients/go/famulusv1"
)

func main() {
	data := flag.String("data", "../examples/properties.json", "the properties for sale")
	flag.Parse()
	argument := func(index int, otherwise string) string {
		if flag.NArg() > index {
			return flag.Arg(index)
		}
		return otherwise
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := ask(ctx, *data,
		argument(0, "127.0.0.1:7461"), argument(1, "scripted"), argument(2, "Please call search_properties for me."))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// ask makes the assistant, or gets the one that was made before, and puts the question on a new thread.
func ask(ctx context.Context, data, target, model, question string) error {
	properties, err := loadListing(data)
	if err != nil {
		return err
	}
	client, err := famulus.Dial(target)
	if err != nil {
		return err
	}
	defer client.Close()
	ensured, err := client.Assistants.EnsureAssistant(ctx, &famulusv1.EnsureAssistantRequest{
		Assistant: &famulusv1.Assistant{
			Name:         "Property assistant",
			Model:        model,
			Instructions: "You help people to find a home. Answer from what the tools say, in a few sentences.",
			Tools:        properties.tools(),
		},
	})
	if err != nil {
		return famulus.FromError(err)
	}
	create := &famulusv1.CreateRunRequest{
		Target:             &famulusv1.CreateRunRequest_NewThread{NewThread: &famulusv1.Thread{UserId: "user-1"}},
		AssistantId:        ensured.GetAssistant().GetId(),
		AdditionalMessages: []*famulusv1.Message{fromUser(question)},
	}
	stream := client.StreamRun(ctx, create, famulus.WithTools(properties.handlers()), famulus.WithCancelOnExit())
	for event, err := range stream.Events() {
		if err != nil {
			return err
		}
		show(event, stream.View())
	}
	fmt.Println()
	run := stream.View().Run()
	if run.GetState() != famulusv1.RunState_RUN_STATE_COMPLETED {
		return errors.New(run.GetState().String() + ": " + run.GetError().GetMessage())
	}
	return nil
}

func fromUser(text string) *famulusv1.Message {
	part := &famulusv1.MessagePart{Part: &famulusv1.MessagePart_Text{Text: &famulusv1.TextPart{Text: text}}}
	return &famulusv1.Message{Role: famulusv1.MessageRole_MESSAGE_ROLE_USER, Content: []*famulusv1.MessagePart{part}}
}

func show(event *famulusv1.RunEvent, view *famulus.RunView) {
	switch kind := event.GetEvent().(type) {
	case *famulusv1.RunEvent_TextDelta:
		fmt.Print(kind.TextDelta.GetText())
	case *famulusv1.RunEvent_ToolCallsRequested:
		for _, call := range kind.ToolCallsRequested.GetToolCalls() {
			fmt.Printf("[%s %s]\n", call.GetFunction().GetName(), call.GetFunction().GetArgumentsJson())
		}
	case *famulusv1.RunEvent_AttemptStarted, *famulusv1.RunEvent_Snapshot: // what was printed may not hold any more
		fmt.Printf("\n%s", view.Text())
	}
}
