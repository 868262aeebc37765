package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	bridge "github.com/boilerhouse/boilerhouse-bridge/clients/go"
)

// Prints the tenants that get an instance. The loop reconnects by itself, and ends with the context or a final error.
func ExampleClient_Events() {
	client, err := bridge.New("http://127.0.0.1:3000", bridge.Options{Types: []string{"tenant"}})
	if err != nil {
		log.Fatal(err)
	}
	for event, err := range client.Events(context.Background()) {
		if err != nil {
			log.Print(err, ", final: ", bridge.IsFinal(err))
			continue
		}
		if claimed, ok := event.Payload.(*bridge.TenantClaimed); ok {
			fmt.Println(claimed.TenantID, "holds", claimed.Name)
		}
	}
}

// Reads a stream with a deadline for each event, and resumes it with a later program.
func ExampleStream_Next() {
	client, err := bridge.New("https://bridge.example", bridge.Options{TokenFile: "token", Transport: bridge.SSE})
	if err != nil {
		log.Fatal(err)
	}
	stream := client.Stream()
	defer stream.Close()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		event, err := stream.Next(ctx)
		cancel()
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			fmt.Println("continue later after", stream.Cursor())
			return
		case bridge.IsFinal(err):
			log.Fatal(err)
		case err != nil:
			log.Print(err)
		default:
			fmt.Println(event.Type)
		}
	}
}

func ExampleIsFinal() {
	for _, err := range []error{
		&bridge.StatusError{Status: 403, Code: "FORBIDDEN", Message: "the key has no right to it"},
		&bridge.StatusError{Status: 503, Code: "NOT_READY", Message: "the first lists are not complete"},
		context.Canceled,
	} {
		fmt.Println(err, bridge.IsFinal(err))
	}
	// Output:
	// HTTP 403: the key has no right to it true
	// HTTP 503: the first lists are not complete false
	// context canceled true
}

func ExampleInstances() {
	running := bridge.Instances().Workload("web").Phase("Running")
	options := bridge.Options{Instances: running.Label("team", "a").HasLabel("canary")}
	client, err := bridge.New("localhost:3000", options)
	fmt.Println(client.URL(), err)
	// Output:
	// http://localhost:3000/api/websocket <nil>
}

func ExampleState() {
	var state bridge.State
	for _, line := range []string{
		`{"type":"state.initial","reason":"connect","instances":[{"uid":"1","name":"web-1","phase":"Pending"}]}`,
		`{"type":"instance.state","phase":"Running","instance":{"uid":"1","name":"web-1","phase":"Running"}}`,
		`{"type":"a.later.type","anything":true}`,
	} {
		event, err := bridge.ParseEvent([]byte(line))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(event.Type, state.Apply(event))
	}
	fmt.Println(state.Instance("web-1").Phase)
	// Output:
	// state.initial true
	// instance.state true
	// a.later.type false
	// Running
}
