package bridge

// dedupe records the cursor, and recognizes events that a resumed connection sends again: only the last event of one
// resourceVersion has an id, so a cut between two events of one version repeats the first.
type dedupe struct {
	cursor string
	// keys are those of the events that were delivered after the cursor, on all connections.
	keys map[string]struct{}
}

// accept records an event. It returns false if the event was delivered before.
func (d *dedupe) accept(event *Event) bool {
	_, isRepeated := d.keys[event.Key]
	isRepeated = isRepeated && event.Key != ""
	if event.ID != "" {
		d.cursor = event.ID
		// A heartbeat, and the stream.closing of a rejected resume, repeat the cursor: events that follow can still be
		// those of before.
		if event.Key != "" || event.Type == "state.initial" {
			clear(d.keys)
		}
		return !isRepeated
	}
	if event.Key != "" && len(event.Key) <= MaxKeyBytes && len(d.keys) < MaxRememberedKeys {
		if d.keys == nil {
			d.keys = map[string]struct{}{}
		}
		d.keys[event.Key] = struct{}{}
	}
	return !isRepeated
}
