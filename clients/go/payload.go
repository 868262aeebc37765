package bridge

// Payload is the data of an event: a pointer to one of the types that are listed with [Event.Payload]. A later release may
// add types, so a switch needs a default case.
//
// Texts of Kubernetes (phase, source, pool status) and reasons are open: a client must not reject a value that it does not
// know. A key that the event does not have is the zero value.
type Payload interface{ isPayload() }

// StateInitial is the complete state, or a part of it.
type StateInitial struct {
	// SnapshotAt is the time of the state (RFC 3339).
	SnapshotAt string `json:"snapshotAt"`
	// Reason is why the client gets it: connect, expired, foreign, filter, lagged, or a later reason.
	Reason string `json:"reason"`
	// ConnectionID is the id of the connection in /api/v1/connections.
	ConnectionID string     `json:"connectionId"`
	Instances    []Instance `json:"instances"`
	Claims       []Claim    `json:"claims"`
	Pools        []Pool     `json:"pools"`
	// More is true if further parts follow.
	More bool `json:"more"`
}

// Instance is a Pod of the platform.
type Instance struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
	// Phase is the phase of the Pod, or Deleted.
	Phase       string `json:"phase"`
	WorkloadRef string `json:"workloadRef"`
	TenantID    string `json:"tenantId"`
	// PoolStatus is warming, ready or acquired. Every value except ready means "not ready".
	PoolStatus string `json:"poolStatus"`
	IP         string `json:"ip"`
	// CreatedAt is the time of the creation (RFC 3339), or empty.
	CreatedAt string            `json:"createdAt"`
	Labels    map[string]string `json:"labels"`
}

// Claim is a BoilerhouseClaim: a tenant holds an instance.
type Claim struct {
	Name        string `json:"name"`
	UID         string `json:"uid"`
	TenantID    string `json:"tenantId"`
	WorkloadRef string `json:"workloadRef"`
	// Phase is the phase of the claim, or Deleted.
	Phase string `json:"phase"`
	// InstanceID is the name of the instance that the claim holds.
	InstanceID string `json:"instanceId"`
	// Endpoint is where the tenant reaches the instance. It is nil if the claim has none.
	Endpoint *Endpoint `json:"endpoint"`
	// Source is where the instance came from: existing, cold, pool, for example.
	Source    string            `json:"source"`
	ClaimedAt string            `json:"claimedAt"`
	Detail    string            `json:"detail"`
	Labels    map[string]string `json:"labels"`
}

// Endpoint is an address.
type Endpoint struct {
	Host string `json:"host"`
	Port uint16 `json:"port"`
}

// Pool is the counts of the instances of one workload.
type Pool struct {
	WorkloadRef string `json:"workloadRef"`
	Warming     uint64 `json:"warming"`
	Ready       uint64 `json:"ready"`
	Acquired    uint64 `json:"acquired"`
}

// Change has the keys of every event about an object.
type Change struct {
	// Time is when the bridge received the change (RFC 3339).
	Time string `json:"time"`
	// Name is the name of the object.
	Name string `json:"name"`
	// Coalesced is true if states in between may have been skipped.
	Coalesced bool `json:"coalesced"`
}

// InstanceState is a change of an instance.
type InstanceState struct {
	Change
	// Phase is the new phase, or Deleted.
	Phase string `json:"phase"`
	// PreviousPhase is the phase before, if it was different.
	PreviousPhase string `json:"previousPhase"`
	WorkloadRef   string `json:"workloadRef"`
	TenantID      string `json:"tenantId"`
	// Instance is the new view, or the last one.
	Instance Instance `json:"instance"`
	// Cause is deleted or filtered, with the phase Deleted.
	Cause string `json:"cause"`
}

// ClaimState is a change of a claim.
type ClaimState struct {
	Change
	// Phase is the new phase, or Deleted.
	Phase string `json:"phase"`
	// PreviousPhase is the phase before, if it was different.
	PreviousPhase string `json:"previousPhase"`
	TenantID      string `json:"tenantId"`
	WorkloadRef   string `json:"workloadRef"`
	// Claim is the new view, or the last one.
	Claim Claim `json:"claim"`
	// Cause is deleted or filtered, with the phase Deleted.
	Cause string `json:"cause"`
}

// PoolReady reports an instance that became ready.
type PoolReady struct {
	Change
	WorkloadRef string `json:"workloadRef"`
	// UID is the uid of the instance.
	UID string `json:"uid"`
}

// PoolDepth reports the counts of one pool.
type PoolDepth struct {
	Time string `json:"time"`
	Pool
}

// Telemetry reports how the tunnel of an instance is used.
type Telemetry struct {
	Time string `json:"time"`
	// TunnelID is the uid of the instance.
	TunnelID   string           `json:"tunnelId"`
	ReceivedAt string           `json:"receivedAt"`
	Region     *string          `json:"region"`
	Metrics    TelemetryMetrics `json:"metrics"`
}

// TelemetryMetrics is what a tunnel reports. Durations are in milliseconds.
type TelemetryMetrics struct {
	TTL      uint64   `json:"ttl"`
	Open     uint64   `json:"opn"`
	RT1Ms    *float64 `json:"rt1Ms"`
	RT5Ms    *float64 `json:"rt5Ms"`
	P50Ms    *float64 `json:"p50Ms"`
	P90Ms    *float64 `json:"p90Ms"`
	Requests uint64   `json:"requests"`
	Errors   uint64   `json:"errors"`
	Bytes    uint64   `json:"bytes"`
}

// MQTTMessage is a message of an MQTT broker.
type MQTTMessage struct {
	Time    string `json:"time"`
	Topic   string `json:"topic"`
	Payload any    `json:"payload"`
}

// TenantClaimed reports a claim that became active: a tenant got an instance.
type TenantClaimed struct {
	Change
	TenantID    string `json:"tenantId"`
	WorkloadRef string `json:"workloadRef"`
	Source      string `json:"source"`
	// UID is the uid of the claim.
	UID string `json:"uid"`
}

// TenantReleased reports a claim that was released or deleted.
type TenantReleased struct {
	Change
	TenantID string `json:"tenantId"`
	// UID is the uid of the claim.
	UID string `json:"uid"`
}

// Heartbeat shows that the stream is alive.
type Heartbeat struct {
	// Timestamp is when it was sent (RFC 3339).
	Timestamp string `json:"timestamp"`
	// Upstream is live, syncing, down, or a later value, which is not live.
	Upstream string `json:"upstream"`
	// UpstreamAgeMS is the time since the API server sent the last byte, in milliseconds.
	UpstreamAgeMS uint64 `json:"upstreamAgeMs"`
	// Coalesced is true if the heartbeat stands for a difference without an event for this client.
	Coalesced bool `json:"coalesced"`
}

// Upstream says what the bridge, or a relay, knows about its upstream.
type Upstream struct {
	Time string `json:"time"`
	// Resource is pods, boilerhouseclaims or nats. A relay sends none.
	Resource string `json:"resource"`
	// Reason is why it is down. UpstreamUp has none.
	Reason string `json:"reason"`
	// Since is when the last useful byte arrived (RFC 3339).
	Since string `json:"since"`
	// Status, of a relay, is the HTTP status of an answer that is no stream, or 0.
	Status uint16 `json:"status"`
	// RetryAt, of a relay, is when it tries again (RFC 3339).
	RetryAt string `json:"retryAt"`
}

// UpstreamDown reports that a resource cannot be watched (also matrix-down).
type UpstreamDown struct{ Upstream }

// UpstreamUp reports that a resource is watched again (also matrix-up).
type UpstreamUp struct{ Upstream }

// AuthExpiring comes 60 s before the credential expires. The stream ends with the credential.
type AuthExpiring struct {
	Time string `json:"time"`
	// ExpiresAt is when it expires (RFC 3339).
	ExpiresAt string `json:"expiresAt"`
}

// StreamClosing comes immediately before the bridge ends the stream.
type StreamClosing struct {
	Reason string `json:"reason"`
	// Detail is what a person should know beyond the reason, or empty.
	Detail string `json:"detail"`
	// RetryAfterMS is the delay before the client reconnects, in milliseconds.
	RetryAfterMS uint64 `json:"retryAfterMs"`
}

// RelayGap reports that events may be missing: a relay does not have them.
type RelayGap struct {
	// Reason is expired, foreign, upstream, or a later reason.
	Reason string `json:"reason"`
}

// RateLimit is what a bridge with --stream-rate says with each event.
type RateLimit struct {
	// Limit is the number of events a minute.
	Limit uint32 `json:"limit"`
	// Remaining is the number of events that the client can still receive in this window.
	Remaining uint32 `json:"remaining"`
	// ResetAt is when the window ends (RFC 3339).
	ResetAt string `json:"reset_at"`
}

// Unknown is the payload of a type that this package does not know. [Event.JSON] has the data.
type Unknown struct{}

func (*StateInitial) isPayload()   {}
func (*InstanceState) isPayload()  {}
func (*ClaimState) isPayload()     {}
func (*PoolReady) isPayload()      {}
func (*PoolDepth) isPayload()      {}
func (*Telemetry) isPayload()      {}
func (*MQTTMessage) isPayload()    {}
func (*TenantClaimed) isPayload()  {}
func (*TenantReleased) isPayload() {}
func (*Heartbeat) isPayload()      {}
func (*UpstreamDown) isPayload()   {}
func (*UpstreamUp) isPayload()     {}
func (*AuthExpiring) isPayload()   {}
func (*StreamClosing) isPayload()  {}
func (*RelayGap) isPayload()       {}
func (*Unknown) isPayload()        {}
