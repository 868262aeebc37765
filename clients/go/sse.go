package bridge

import (
	"bytes"
	"strconv"
	"strings"
	"time"
)

// keptLineBytes is the size of a line buffer that is used again. A larger one is released.
const keptLineBytes = 64 << 10

// block is one event as it was sent: a block of SSE, or a WebSocket message, which has data only.
type block struct {
	id, name string
	data     []byte
	isSSE    bool
}

// parser parses an event stream (HTML standard, section 9.2.6). The input may be split anywhere. It holds at most one
// block. A block without data is no event.
type parser struct {
	line []byte
	// afterCR: the last byte was a carriage return. A line feed that follows belongs to it.
	afterCR bool
	// hasBegun: a byte order mark is no longer skipped.
	hasBegun bool

	id, name       string
	data           []byte
	hasID, hasData bool

	// lastID is the last id of the stream, also that of a block without data. hasLastID: there was one.
	lastID    string
	hasLastID bool
	retry     time.Duration
}

// push parses bytes and passes each complete block to emit.
func (p *parser) push(chunk []byte, emit func(block)) {
	for len(chunk) > 0 {
		if p.afterCR && chunk[0] == '\n' {
			p.afterCR = false
			chunk = chunk[1:]
			continue
		}
		p.afterCR = false
		end := bytes.IndexAny(chunk, "\r\n")
		if end < 0 {
			p.line = append(p.line, chunk...)
			return
		}
		p.afterCR = chunk[end] == '\r'
		line := chunk[:end]
		if len(p.line) > 0 {
			p.line = append(p.line, line...)
			line = p.line
		}
		p.onLine(line, emit)
		p.line = p.line[:0]
		if cap(p.line) > keptLineBytes {
			p.line = nil
		}
		chunk = chunk[end+1:]
	}
}

// heldBytes returns the number of bytes that are held.
func (p *parser) heldBytes() int { return len(p.line) + len(p.id) + len(p.name) + len(p.data) }

func (p *parser) onLine(line []byte, emit func(block)) {
	if !p.hasBegun {
		p.hasBegun = true
		line = bytes.TrimPrefix(line, []byte("\uFEFF"))
	}
	if len(line) == 0 {
		p.endBlock(emit)
		return
	}
	field, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	switch string(field) {
	case "event":
		p.name = valid(value)
	case "id":
		if bytes.IndexByte(value, 0) < 0 {
			p.id, p.hasID = valid(value), true
		}
	case "data":
		if p.hasData {
			p.data = append(p.data, '\n')
		}
		p.data, p.hasData = append(p.data, value...), true
	case "retry":
		// ParseUint accepts digits only.
		if milliseconds, err := strconv.ParseUint(string(value), 10, 31); err == nil {
			p.retry = time.Duration(milliseconds) * time.Millisecond
		}
	}
}

func (p *parser) endBlock(emit func(block)) {
	if p.hasID {
		p.lastID, p.hasLastID = p.id, true
	}
	complete, isEvent := block{p.id, p.name, p.data, true}, p.hasData
	p.id, p.name, p.data, p.hasID, p.hasData = "", "", nil, false, false
	if isEvent {
		emit(complete)
	}
}

// valid replaces bytes that are not UTF-8, as the standard says.
func valid(text []byte) string { return strings.ToValidUTF8(string(text), "\uFFFD") }
