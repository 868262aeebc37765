package bridge

import "strings"

// dedupe records the cursor, and holds events back until their id has come. Only the last event of one resourceVersion or of
// a difference has an id, and a resume repeats what has no id (docs/protocol.md#cursor). What is held back is forgotten if
// the connection is cut before the id. Another replica may send other events instead, in another order.
type dedupe struct {
	// cursor is the last id that was returned.
	cursor string
	// held are the events whose id has not come, and heldBytes their bytes.
	held      []Event
	heldBytes int
	// complete are the events that are returned next.
	complete []Event
}

// accept records an event: it is returned next, or held back.
func (d *dedupe) accept(event Event) {
	waits := event.ID == "" && (len(d.held) > 0 || d.isFollowedByID(&event))
	d.held = append(d.held, event)
	d.heldBytes += len(event.JSON)
	if !waits || d.heldBytes > MaxHeldBytes {
		d.release()
	}
}

// isFollowedByID returns whether another event follows at once, which has the id of this one. Only the keys of a bridge end
// with the type: the events of other servers do not wait.
func (d *dedupe) isFollowedByID(event *Event) bool {
	return d.cursor != "" && event.Type != "" && strings.HasSuffix(event.Key, "."+event.Type)
}

// release returns what is held back next.
func (d *dedupe) release() {
	d.complete = append(d.complete, d.held...)
	d.forget()
}

// next returns the next event that is complete.
func (d *dedupe) next() (Event, bool) {
	if len(d.complete) == 0 {
		return Event{}, false
	}
	event := d.complete[0]
	if d.complete = d.complete[1:]; len(d.complete) == 0 {
		d.complete = nil
	}
	if event.ID != "" {
		d.cursor = event.ID
	}
	return event, true
}

// connectionEnded forgets what is held back. lastID is an id that no event carries, if there was one: SSE knows blocks
// without data. An empty one means that there is none any more.
func (d *dedupe) connectionEnded(lastID string, hasLastID bool) {
	// Such an id does not cover what is forgotten here. One that cannot be sent back would end every further try.
	if hasLastID && len(d.held) == 0 && checkCursor(lastID) == nil {
		d.cursor = lastID
	}
	d.forget()
}

func (d *dedupe) forget() {
	d.held, d.heldBytes = nil, 0
}
