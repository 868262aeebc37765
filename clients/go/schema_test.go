package bridge

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// schema is what these tests read of a JSON Schema.
type schema struct {
	Ref                  string            `json:"$ref"`
	Defs                 map[string]schema `json:"$defs"`
	AnyOf                []schema          `json:"anyOf"`
	OneOf                []schema          `json:"oneOf"`
	Type                 string            `json:"type"`
	Properties           map[string]schema `json:"properties"`
	AdditionalProperties json.RawMessage   `json:"additionalProperties"`
	Items                *schema           `json:"items"`
}

// forms returns the schemas of a message that a client of this package can receive. It does not read /ws.
func (s schema) forms() []schema {
	if len(s.AnyOf) == 0 {
		return []schema{s}
	}
	var forms []schema
	for _, form := range s.AnyOf {
		if form.Ref != "#/$defs/ws" {
			forms = append(forms, form.resolve(s.Defs))
		}
	}
	return forms
}

func (s schema) resolve(defs map[string]schema) schema {
	if name, ok := strings.CutPrefix(s.Ref, "#/$defs/"); ok {
		return defs[name]
	}
	return s
}

// jsonKeys returns the keys of a struct, with those of its embedded structs.
func jsonKeys(of reflect.Type) map[string]reflect.Type {
	keys := map[string]reflect.Type{}
	for i := range of.NumField() {
		field := of.Field(i)
		if field.Anonymous {
			maps.Copy(keys, jsonKeys(field.Type))
			continue
		}
		keys[field.Tag.Get("json")] = field.Type
	}
	return keys
}

// checkType reports where a Go type cannot hold the values of a schema, or has keys that the schema does not have.
func checkType(t *testing.T, where string, s schema, defs map[string]schema, of reflect.Type) {
	t.Helper()
	s = s.resolve(defs)
	if len(s.OneOf) > 0 {
		// Null is the zero value.
		s = s.OneOf[0]
	}
	if of.Kind() == reflect.Pointer {
		of = of.Elem()
	}
	kind := of.Kind()
	switch {
	case s.Type == "string" && kind == reflect.String, s.Type == "boolean" && kind == reflect.Bool:
	case s.Type == "number" && kind == reflect.Float64, s.Type == "" && kind == reflect.Interface:
	case s.Type == "integer" && kind >= reflect.Int && kind <= reflect.Uint64:
	case s.Type == "array" && kind == reflect.Slice:
		checkType(t, where+"[]", *s.Items, defs, of.Elem())
	case s.Type == "object" && kind == reflect.Map:
		var values schema
		if err := json.Unmarshal(s.AdditionalProperties, &values); err != nil {
			t.Errorf("%s: %v", where, err)
		}
		checkType(t, where+"{}", values, defs, of.Elem())
	case s.Type == "object" && kind == reflect.Struct:
		keys := jsonKeys(of)
		checkKeys(t, where, s.Properties, defs, keys)
		for key := range keys {
			if _, ok := s.Properties[key]; !ok {
				t.Errorf("%s: %s has the key %s, the schema does not", where, of, key)
			}
		}
	default:
		t.Errorf("%s: the schema has %q, the client has %s", where, s.Type, of)
	}
}

func checkKeys(t *testing.T, where string, properties, defs map[string]schema, keys map[string]reflect.Type) {
	t.Helper()
	for key, property := range properties {
		if of, ok := keys[key]; ok {
			checkType(t, where+"."+key, property, defs, of)
		} else {
			t.Errorf("%s: the client has no key %s", where, key)
		}
	}
}

// TestPayloadsHaveTheKeysOfThePublishedSchemas compares the types of this package with tests/golden/schemas.
func TestPayloadsHaveTheKeysOfThePublishedSchemas(t *testing.T) {
	files, err := filepath.Glob("../../tests/golden/schemas/*.json")
	if err != nil || len(files) < 15 {
		t.Fatalf("%d schemas: %v", len(files), err)
	}
	// Keys of [Event].
	envelope := map[string]reflect.Type{
		"type": reflect.TypeFor[string](), "id": reflect.TypeFor[string](), "key": reflect.TypeFor[string](),
		"rate_limit": reflect.TypeFor[RateLimit](),
	}
	// Several types of events can have one Go type.
	published := map[reflect.Type][]string{}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		if name == "openapi" || name == "asyncapi" {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var root schema
		if err := json.Unmarshal(text, &root); err != nil {
			t.Fatal(name, err)
		}
		payload := reflect.TypeOf(newPayload(name)).Elem()
		if payload == reflect.TypeFor[Unknown]() {
			t.Errorf("%s: the client has no such type", name)
			continue
		}
		if payload.NumField() == 1 && payload.Field(0).Anonymous {
			payload = payload.Field(0).Type
		}
		keys := jsonKeys(payload)
		maps.Copy(keys, envelope)
		for _, form := range root.forms() {
			checkKeys(t, name, form.Properties, root.Defs, keys)
			published[payload] = slices.AppendSeq(published[payload], maps.Keys(form.Properties))
		}
	}
	for payload, keys := range published {
		for key := range jsonKeys(payload) {
			if !slices.Contains(keys, key) {
				t.Errorf("%s has the key %s, no schema has it", payload, key)
			}
		}
	}
}

func TestRateLimitIsRead(t *testing.T) {
	event, err := ParseEvent([]byte(`{"type":"x","rate_limit":{"limit":60,"remaining":12,"reset_at":"t"}}`))
	if err != nil || *event.RateLimit != (RateLimit{60, 12, "t"}) {
		t.Errorf("%v, %v", event.RateLimit, err)
	}
	for _, other := range []string{`7`, `"x"`, `null`, `{"limit":"x"}`} {
		event, err := ParseEvent([]byte(`{"type":"x","rate_limit":` + other + `}`))
		if err != nil || event.RateLimit != nil {
			t.Errorf("%s: %v, %v", other, event.RateLimit, err)
		}
	}
}
