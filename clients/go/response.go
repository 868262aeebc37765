package bridge

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// readStart returns the start of a body. An error of the body ends it: what has arrived is enough for a message.
func readStart(body io.Reader) []byte {
	start, _ := io.ReadAll(io.LimitReader(body, MaxErrorBytes))
	return start
}

// responseError returns the error for a response that is not what the client asked for.
func responseError(response *http.Response, body []byte, expected string) error {
	status := response.StatusCode
	header := response.Header
	switch {
	case status < 300:
		kind := cmp.Or(header.Get("Content-Type"), "no content type")
		found := fmt.Sprintf("%s with %s", statusText(status), firstLine([]byte(kind)))
		return &NotStreamError{Status: status, Expected: expected, Found: found, FirstLine: firstLine(body)}
	case status < 400:
		target := withoutCredential(cmp.Or(header.Get("Location"), "another place"))
		return &RedirectError{Status: status, Target: firstLine([]byte(target))}
	}
	// The error body of a bridge (docs/protocol.md#errors).
	var known struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Details struct {
			Parameter string `json:"parameter"`
		} `json:"details"`
	}
	err := &StatusError{Status: status}
	if json.Unmarshal(body, &known) == nil && known.Code != "" {
		err.Code, err.Message, err.Parameter = known.Code, known.Message, known.Details.Parameter
	} else {
		err.Message = firstLine(body)
	}
	err.Message = cmp.Or(err.Message, http.StatusText(status), "no text")
	if seconds, parseErr := strconv.ParseUint(header.Get("Retry-After"), 10, 31); parseErr == nil {
		err.RetryAfter = time.Duration(seconds) * time.Second
	}
	return err
}

func statusText(status int) string {
	return strings.TrimSpace(strconv.Itoa(status) + " " + http.StatusText(status))
}

// firstLine returns the first line of a text that is not empty, cut to MaxLineChars.
func firstLine(text []byte) string {
	for line := range strings.Lines(valid(text)) {
		if line = strings.TrimSpace(line); line != "" {
			return startOf(line)
		}
	}
	return ""
}

// startOf cuts a text to MaxLineChars.
func startOf(text string) string {
	count := 0
	for at := range text {
		if count == MaxLineChars {
			return text[:at]
		}
		count++
	}
	return text
}
