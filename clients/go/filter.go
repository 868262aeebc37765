package bridge

import (
	"encoding/json"
	"maps"
)

// InstanceFilter selects instances. All keys must match. The zero value selects everything; each method returns a filter
// with one more key and leaves its receiver unchanged.
type InstanceFilter struct{ keys filterKeys }

// ClaimFilter selects claims. All keys must match. The zero value selects everything; each method returns a filter with
// one more key and leaves its receiver unchanged.
type ClaimFilter struct{ keys filterKeys }

// Instances returns a filter that selects every instance.
func Instances() InstanceFilter { return InstanceFilter{} }

// Claims returns a filter that selects every claim.
func Claims() ClaimFilter { return ClaimFilter{} }

// Name selects the instance with this name.
func (f InstanceFilter) Name(value string) InstanceFilter {
	return InstanceFilter{f.keys.with("name", value)}
}

// Phase selects a phase, for example Running.
func (f InstanceFilter) Phase(value string) InstanceFilter {
	return InstanceFilter{f.keys.with("phase", value)}
}

// Workload selects the instances of a workload.
func (f InstanceFilter) Workload(value string) InstanceFilter {
	return InstanceFilter{f.keys.with("workloadRef", value)}
}

// Tenant selects the instances of a tenant.
func (f InstanceFilter) Tenant(value string) InstanceFilter {
	return InstanceFilter{f.keys.with("tenantId", value)}
}

// PoolStatus selects a state in the pool: warming, ready or acquired.
func (f InstanceFilter) PoolStatus(value string) InstanceFilter {
	return InstanceFilter{f.keys.with("poolStatus", value)}
}

// Label selects instances whose label has this value.
func (f InstanceFilter) Label(key, value string) InstanceFilter {
	return InstanceFilter{f.keys.withLabel(key, &value)}
}

// HasLabel selects instances that have the label, with any value.
func (f InstanceFilter) HasLabel(key string) InstanceFilter {
	return InstanceFilter{f.keys.withLabel(key, nil)}
}

// Name selects the claim with this name.
func (f ClaimFilter) Name(value string) ClaimFilter { return ClaimFilter{f.keys.with("name", value)} }

// Phase selects a phase, for example Active.
func (f ClaimFilter) Phase(value string) ClaimFilter {
	return ClaimFilter{f.keys.with("phase", value)}
}

// Tenant selects the claims of a tenant.
func (f ClaimFilter) Tenant(value string) ClaimFilter {
	return ClaimFilter{f.keys.with("tenantId", value)}
}

// Workload selects the claims for a workload.
func (f ClaimFilter) Workload(value string) ClaimFilter {
	return ClaimFilter{f.keys.with("workloadRef", value)}
}

// Source selects where the instance came from, for example pool.
func (f ClaimFilter) Source(value string) ClaimFilter {
	return ClaimFilter{f.keys.with("source", value)}
}

// Label selects claims whose label has this value.
func (f ClaimFilter) Label(key, value string) ClaimFilter {
	return ClaimFilter{f.keys.withLabel(key, &value)}
}

// HasLabel selects claims that have the label, with any value.
func (f ClaimFilter) HasLabel(key string) ClaimFilter {
	return ClaimFilter{f.keys.withLabel(key, nil)}
}

// filterKeys are the keys of one member of params, as they are in JSON.
type filterKeys struct {
	values map[string]string
	labels map[string]*string
}

func (k filterKeys) with(key, value string) filterKeys {
	values := maps.Clone(k.values)
	if values == nil {
		values = map[string]string{}
	}
	values[key] = value
	return filterKeys{values, k.labels}
}

func (k filterKeys) withLabel(key string, value *string) filterKeys {
	labels := maps.Clone(k.labels)
	if labels == nil {
		labels = map[string]*string{}
	}
	labels[key] = value
	return filterKeys{k.values, labels}
}

func (k filterKeys) json() map[string]any {
	object := map[string]any{}
	for key, value := range k.values {
		object[key] = value
	}
	if len(k.labels) > 0 {
		object["labels"] = k.labels
	}
	return object
}

// params returns the value of the parameter params, or an empty text if everything is selected.
func params(instances InstanceFilter, claims ClaimFilter) string {
	object := map[string]any{}
	for member, keys := range map[string]filterKeys{"instances": instances.keys, "claims": claims.keys} {
		if selected := keys.json(); len(selected) > 0 {
			object[member] = selected
		}
	}
	if len(object) == 0 {
		return ""
	}
	// Strings and maps of strings are always valid JSON.
	text, _ := json.Marshal(object)
	return string(text)
}
