// Command follow prints the events of a bridge and how many instances are running: follow [-sse] [-token-file FILE] [URL].
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"

	bridge "github.com/boilerhouse/boilerhouse-bridge/clients/go"
)

func main() {
	sse := flag.Bool("sse", false, "use SSE instead of WebSocket")
	tokenFile := flag.String("token-file", "", "file with an API key or a Kubernetes token")
	flag.Parse()
	url := flag.Arg(0)
	if url == "" {
		url = "http://localhost:3000"
	}
	options := bridge.Options{TokenFile: *tokenFile}
	if *sse {
		options.Transport = bridge.SSE
	}
	client, err := bridge.New(url, options)
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var state bridge.State
	for event, err := range client.Events(ctx) {
		switch {
		case ctx.Err() != nil:
			return
		case bridge.IsFinal(err):
			log.Fatal(err)
		case err != nil:
			log.Print(err)
			continue
		}
		state.Apply(event)
		print(event, &state)
	}
}

// print prints one line for an event.
func print(event bridge.Event, state *bridge.State) {
	switch payload := event.Payload.(type) {
	case *bridge.StateInitial:
		fmt.Printf("state (%s): %d instances, %d claims\n", payload.Reason, len(state.Instances()), len(state.Claims()))
	case *bridge.InstanceState:
		fmt.Printf("%s %s is %s; %d of %d run\n", payload.Time, payload.Name, payload.Phase, running(state), len(state.Instances()))
	case *bridge.TenantClaimed:
		fmt.Printf("%s %s holds %s\n", payload.Time, payload.TenantID, payload.Name)
	case *bridge.TenantReleased:
		fmt.Printf("%s %s has released %s\n", payload.Time, payload.TenantID, payload.Name)
	case *bridge.UpstreamDown:
		fmt.Printf("%s the bridge has lost %s: %s\n", payload.Time, payload.Resource, payload.Reason)
	case *bridge.Unknown:
		fmt.Printf("%s (a type of a later release)\n", event.Type)
	default:
		fmt.Println(event.Type)
	}
}

func running(state *bridge.State) int {
	count := 0
	for _, instance := range state.Instances() {
		if instance.Phase == "Running" {
			count++
		}
	}
	return count
}
