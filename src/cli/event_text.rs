//! The readable text of an event.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::{
    cli::logging::escape,
    client::{Event, Payload},
};

/// Width of the column of the event type: that of `pool.instance.ready`.
pub(super) const TYPE_WIDTH: usize = 19;
/// Characters of the JSON of an unknown event.
const MAX_JSON_CHARS: usize = 200;

/// What the color of an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Quiet,
    Bad,
    Good,
    Warning,
    Pool,
    Tenant,
    State,
}

impl Tone {
    /// Returns the color as the number of an SGR sequence.
    fn code(self) -> &'static str {
        match self {
            Tone::Quiet => "90",
            Tone::Bad => "31",
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Pool => "34",
            Tone::Tenant => "35",
            Tone::State => "36",
        }
    }
}

/// An event as a person reads it. The text is not escaped.
#[derive(Clone, Debug)]
pub(super) struct Described {
    /// When it happened (RFC 3339), if the event says so.
    pub(super) time: Option<String>,
    pub(super) tone: Tone,
    pub(super) text: String,
}

/// Returns the line of an event, without a line end.
pub(super) fn line(event: &Event, is_colored: bool) -> String {
    let described = describe(event);
    let paint = |tone: Tone, text: &str| {
        if is_colored { format!("\x1b[{}m{text}\x1b[0m", tone.code()) } else { text.to_owned() }
    };
    let time = clock(described.time.as_deref(), jiff::Timestamp::now());
    let kind = format!("{:TYPE_WIDTH$}", escape(&event.kind));
    let line = format!("{} {} {}", paint(Tone::Quiet, &time), paint(described.tone, &kind), escape(&described.text));
    line.trim_end().to_owned()
}

/// Returns the time of day of an RFC 3339 time, in UTC, or that of `now`.
pub(super) fn clock(time: Option<&str>, now: jiff::Timestamp) -> String {
    let parsed = time.and_then(|time| time.parse::<jiff::Timestamp>().ok());
    parsed.unwrap_or(now).strftime("%H:%M:%S%.3f").to_string()
}

/// Returns time, tone and text of an event.
pub(super) fn describe(event: &Event) -> Described {
    let (time, tone, text) = match &event.payload {
        Payload::StateInitial(state) => {
            let mut text = format!(
                "{}: {}, {}, {}",
                state.reason,
                count(state.instances.len(), "instance"),
                count(state.claims.len(), "claim"),
                count(state.pools.len(), "pool")
            );
            if state.more {
                text += ", more follows";
            }
            (Some(state.snapshot_at.clone()), Tone::State, text)
        }
        Payload::InstanceState(state) => {
            let mut text = phases(&state.name, state.previous_phase.as_deref(), &state.phase, state.cause.as_deref());
            member(&mut text, "workload", state.instance.workload_ref.as_deref());
            member(&mut text, "tenant", state.instance.tenant_id.as_deref());
            member(&mut text, "pool", state.instance.pool_status.as_deref());
            coalesced(&mut text, state.coalesced);
            (Some(state.time.clone()), phase_tone(&state.phase), text)
        }
        Payload::ClaimState(state) => {
            let mut text = phases(&state.name, state.previous_phase.as_deref(), &state.phase, state.cause.as_deref());
            member(&mut text, "tenant", Some(&state.claim.tenant_id));
            member(&mut text, "workload", Some(&state.claim.workload_ref));
            member(&mut text, "instance", state.claim.instance_id.as_deref());
            member(&mut text, "detail", state.claim.detail.as_deref());
            coalesced(&mut text, state.coalesced);
            (Some(state.time.clone()), phase_tone(&state.phase), text)
        }
        Payload::PoolReady(ready) => {
            let mut text = ready.name.clone();
            member(&mut text, "workload", ready.workload_ref.as_deref());
            coalesced(&mut text, ready.coalesced);
            (Some(ready.time.clone()), Tone::Pool, text)
        }
        Payload::PoolDepth(pool) => {
            let text = format!(
                "{} warming={} ready={} acquired={}",
                pool.workload_ref, pool.warming, pool.ready, pool.acquired
            );
            (time_of(event), Tone::Pool, text)
        }
        Payload::Telemetry(telemetry) => {
            let metrics = &telemetry.metrics;
            let mut text = format!(
                "{} open={} requests={} errors={} bytes={}",
                telemetry.tunnel_id, metrics.opn, metrics.requests, metrics.errors, metrics.bytes
            );
            member(&mut text, "region", telemetry.region.as_deref());
            (Some(telemetry.time.clone()), Tone::Quiet, text)
        }
        Payload::MqttMessage(message) => {
            let payload: String = message.payload.to_string().chars().take(MAX_JSON_CHARS).collect();
            (Some(message.time.clone()), Tone::Quiet, format!("{} {payload}", message.topic))
        }
        Payload::TenantClaimed(tenant) | Payload::TenantReleased(tenant) => {
            let mut text = tenant.name.clone();
            member(&mut text, "tenant", tenant.tenant_id.as_deref());
            member(&mut text, "workload", tenant.workload_ref.as_deref());
            member(&mut text, "source", tenant.source.as_deref());
            coalesced(&mut text, tenant.coalesced);
            (Some(tenant.time.clone()), Tone::Tenant, text)
        }
        Payload::Heartbeat(heartbeat) => {
            let text = format!("upstream={} age={} ms", heartbeat.upstream, heartbeat.upstream_age_ms);
            let tone = if heartbeat.upstream == "live" { Tone::Quiet } else { Tone::Warning };
            (Some(heartbeat.timestamp.clone()), tone, text)
        }
        Payload::UpstreamDown(upstream) => {
            let mut text = upstream.resource.clone();
            member(&mut text, "reason", upstream.reason.as_deref());
            member(&mut text, "since", upstream.since.as_deref());
            member(&mut text, "status", upstream.status.map(|status| status.to_string()).as_deref());
            member(&mut text, "next try", upstream.retry_at.as_deref());
            (Some(upstream.time.clone()), Tone::Bad, text)
        }
        Payload::UpstreamUp(upstream) => (Some(upstream.time.clone()), Tone::Good, upstream.resource.clone()),
        Payload::AuthExpiring(expiring) => (None, Tone::Warning, format!("expires at {}", expiring.expires_at)),
        Payload::StreamClosing(closing) => {
            let mut text = closing.reason.clone();
            member(&mut text, "detail", closing.detail.as_deref());
            (None, Tone::Warning, text)
        }
        Payload::RelayGap(gap) => (None, Tone::Warning, gap.reason.clone()),
        Payload::Unknown => (None, Tone::Quiet, event.json.get().chars().take(MAX_JSON_CHARS).collect()),
    };
    Described { time, tone, text }
}

/// Returns a number with its noun.
fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Returns `time` of an event whose payload has none: a pool is the same object in `state.initial`.
fn time_of(event: &Event) -> Option<String> {
    #[derive(Deserialize)]
    struct Time {
        time: Option<String>,
    }
    serde_json::from_str::<Time>(event.json.get()).ok()?.time
}

/// Returns `name  before → after (cause)`.
fn phases(name: &str, before: Option<&str>, after: &str, cause: Option<&str>) -> String {
    let mut text = format!("{name}  ");
    if let Some(before) = before {
        text += before;
        text += " → ";
    }
    text += after;
    // `Deleted` says that it was deleted.
    if let Some(cause) = cause.filter(|cause| *cause != "deleted") {
        let _ = write!(text, " ({cause})");
    }
    text
}

fn member(text: &mut String, name: &str, value: Option<&str>) {
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        let _ = write!(text, "  {name}={value}");
    }
}

fn coalesced(text: &mut String, is_coalesced: bool) {
    if is_coalesced {
        *text += "  (states in between may be missing)";
    }
}

/// Returns the tone of a phase.
pub(super) fn phase_tone(phase: &str) -> Tone {
    match phase {
        "Running" | "Active" => Tone::Good,
        "Failed" | "Error" | "ReleaseFailed" => Tone::Bad,
        "Deleted" | "Released" | "Succeeded" => Tone::Quiet,
        _ => Tone::Warning,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Event;

    fn text(json: &str) -> String {
        line(&Event::from_json(json).unwrap(), false)
    }

    #[test]
    fn lines_show_what_changed() {
        let instance = r#"{"type":"instance.state","time":"2026-01-02T03:04:05.678Z","name":"web-1","phase":"Running","previousPhase":"Pending","instance":{"uid":"u","workloadRef":"web","poolStatus":"ready"}}"#;
        assert_eq!(
            text(instance),
            "03:04:05.678 instance.state      web-1  Pending → Running  workload=web  pool=ready"
        );
        let claimed = r#"{"type":"tenant.claimed","time":"2026-01-02T03:04:05Z","name":"alice-web","tenantId":"alice","source":"pool","coalesced":true}"#;
        assert_eq!(
            text(claimed),
            "03:04:05.000 tenant.claimed      alice-web  tenant=alice  source=pool  (states in between may be missing)"
        );
        // A name cannot forge a line or change the terminal.
        let forged = r#"{"type":"claim.state","time":"2026-01-02T03:04:05Z","name":"a\nb\u001b[31m","phase":"Deleted","cause":"filtered","claim":{}}"#;
        let line = text(forged);
        assert!(!line.contains(['\n', '\x1b']) && line.ends_with("Deleted (filtered)"), "{line:?}");
        assert!(text(r#"{"type":"new.type","x":1}"#).ends_with(r#"{"type":"new.type","x":1}"#));
        let colored = super::line(&Event::from_json(claimed).unwrap(), true);
        assert!(colored.contains("\x1b[35mtenant.claimed"), "{colored:?}");
    }
}
