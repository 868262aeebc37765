// Command released prints each tenant that releases an instance, also those of the time when it did not run:
// released [URL [CURSOR-FILE]].
//
// The cursor is written after the line was printed. A program that is killed in between prints the line again, so an action
// in its place must be safe to repeat: by the key of the event, for example.
package main

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	bridge "github.com/boilerhouse/boilerhouse-bridge/clients/go"
)

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	url, path := "http://localhost:3000", "released.cursor"
	if len(os.Args) > 1 {
		url = os.Args[1]
	}
	if len(os.Args) > 2 {
		path = os.Args[2]
	}
	// A file that does not exist is the first start.
	cursor, _ := os.ReadFile(path)
	client, err := bridge.New(url, bridge.Options{
		Types:    []string{"tenant.released"},
		Snapshot: bridge.SnapshotNone,
		Since:    string(bytes.TrimSpace(cursor)),
	})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	stream := client.Stream()
	defer stream.Close()
	for event, err := range stream.Events(ctx) {
		switch {
		case ctx.Err() != nil:
			return nil
		case bridge.IsFinal(err):
			return err
		case err != nil:
			log.Print(err)
			continue
		}
		switch payload := event.Payload.(type) {
		case *bridge.TenantReleased:
			fmt.Println(payload.Time, payload.TenantID, payload.Name, event.Key)
		case *bridge.StateInitial:
			// The cursor was too old: releases in between are not known.
			log.Printf("events may be missing: %s", payload.Reason)
		}
		if event.ID == "" {
			continue
		}
		if err := save(path, stream.Cursor()); err != nil {
			return err
		}
	}
	return nil
}

// save replaces the file, so that it always has a complete cursor.
func save(path, cursor string) error {
	if err := os.WriteFile(path+".new", []byte(cursor+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
