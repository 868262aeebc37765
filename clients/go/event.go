package bridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// phaseDeleted is the phase of an object that does not exist any more.
const phaseDeleted = "Deleted"

// Event is one event of a stream.
type Event struct {
	// ID is the cursor of the event, or empty. Only the last event of one resourceVersion or of a difference has one.
	ID string
	// Type is the type, for example instance.state. Where the data has none, it is the name of the SSE event.
	Type string
	// Key identifies an event about an object, on every replica. It is empty for other events.
	Key string
	// JSON is the data as it was sent.
	JSON json.RawMessage
	// Payload is the data as a type: [*StateInitial], [*InstanceState], [*ClaimState], [*PoolReady], [*PoolDepth],
	// [*TenantClaimed], [*TenantReleased], [*Telemetry], [*MQTTMessage], [*Heartbeat], [*UpstreamDown], [*UpstreamUp],
	// [*AuthExpiring], [*StreamClosing], [*RelayGap] or [*Unknown].
	Payload Payload
	// RateLimit is nil unless the bridge limits the rate of the stream.
	RateLimit *RateLimit
	// Connection is the number of the connection that delivered the event, from 1. Connections that did not work count too,
	// so that it can be larger than [Stream.Connections]. It is 0 for [ParseEvent].
	Connection int
}

// ParseEvent parses the JSON of an event, for example a line that `boilerhouse-bridge events -o json` has printed.
func ParseEvent(data []byte) (Event, error) {
	return parseEvent(block{data: bytes.Clone(data)})
}

// parseEvent parses a block. The event keeps its data.
func parseEvent(b block) (Event, error) {
	// Another server can use these names for values of other types.
	var head struct {
		Type any `json:"type"`
		ID   any `json:"id"`
		Key  any `json:"key"`
		// Another server can use this name for a value of another type.
		RateLimit json.RawMessage `json:"rate_limit"`
	}
	// JSON also decodes null into a struct.
	if !bytes.HasPrefix(bytes.TrimLeft(b.data, " \t\r\n"), []byte("{")) {
		return Event{}, errors.New("not a JSON object")
	}
	if err := json.Unmarshal(b.data, &head); err != nil {
		return Event{}, err
	}
	event := Event{ID: b.id, Type: b.name, JSON: b.data}
	if kind, ok := head.Type.(string); ok {
		event.Type = kind
	}
	event.Key, _ = head.Key.(string)
	if len(head.RateLimit) > 0 && json.Unmarshal(head.RateLimit, &event.RateLimit) != nil {
		event.RateLimit = nil
	}
	// A member id of another server is no cursor of SSE, which has a field for it.
	if id, ok := head.ID.(string); ok && !b.isSSE {
		event.ID = id
	}
	if err := checkCursor(event.ID); err != nil {
		return Event{}, err
	}
	payload, err := parsePayload(event.Type, b.data)
	event.Payload = payload
	return event, err
}

// checkCursor returns an error for a text that cannot be sent back in a header.
func checkCursor(cursor string) error {
	if len(cursor) > MaxCursorBytes {
		return fmt.Errorf("the id is longer than %d bytes", MaxCursorBytes)
	}
	if !isHeaderValue(cursor) {
		return errors.New("the id has control characters")
	}
	return nil
}

// isHeaderValue returns whether a text has no control characters.
func isHeaderValue(text string) bool {
	for i := range len(text) {
		if text[i] < ' ' || text[i] == 0x7F {
			return false
		}
	}
	return true
}

func parsePayload(kind string, data []byte) (Payload, error) {
	payload := newPayload(kind)
	if err := json.Unmarshal(data, payload); err != nil {
		switch payload.(type) {
		case *UpstreamDown, *UpstreamUp:
			// Another server can use these names with other keys.
			return &Unknown{}, nil
		}
		return nil, err
	}
	return payload, checkPayload(payload)
}

func newPayload(kind string) Payload {
	switch kind {
	case "state.initial":
		return &StateInitial{}
	case "instance.state":
		return &InstanceState{}
	case "claim.state":
		return &ClaimState{}
	case "pool.instance.ready":
		return &PoolReady{}
	case "pool.depth":
		return &PoolDepth{}
	case "telemetry":
		return &Telemetry{}
	case "mqtt.message":
		return &MQTTMessage{}
	case "tenant.claimed":
		return &TenantClaimed{}
	case "tenant.released":
		return &TenantReleased{}
	case "heartbeat":
		return &Heartbeat{}
	case "upstream.down", "matrix-down":
		return &UpstreamDown{}
	case "upstream.up", "matrix-up":
		return &UpstreamUp{}
	case "auth.expiring":
		return &AuthExpiring{}
	case "stream.closing":
		return &StreamClosing{}
	case "relay.gap":
		return &RelayGap{}
	}
	return &Unknown{}
}

// checkPayload returns an error if the fold cannot use the payload.
func checkPayload(payload Payload) error {
	switch payload := payload.(type) {
	case *InstanceState:
		if payload.Instance.UID == "" {
			return errors.New("instance.uid is missing")
		}
	case *ClaimState:
		if payload.Claim.UID == "" {
			return errors.New("claim.uid is missing")
		}
	case *PoolDepth:
		if payload.WorkloadRef == "" {
			return errors.New("workloadRef is missing")
		}
	}
	return nil
}
