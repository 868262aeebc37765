//! The readable line of an event.

use std::fmt::Write as _;

use crate::{
    cli::logging::escape,
    client::{Event, Payload},
};

/// Width of the column of the event type: that of `pool.instance.ready`.
const TYPE_WIDTH: usize = 19;
/// Characters of the JSON of an unknown event.
const MAX_JSON_CHARS: usize = 200;

/// Colors of the terminal.
mod color {
    pub(super) const GRAY: &str = "90";
    pub(super) const RED: &str = "31";
    pub(super) const GREEN: &str = "32";
    pub(super) const YELLOW: &str = "33";
    pub(super) const BLUE: &str = "34";
    pub(super) const MAGENTA: &str = "35";
    pub(super) const CYAN: &str = "36";
}

/// Returns the line of an event, without a line end.
pub(super) fn line(event: &Event, is_colored: bool) -> String {
    let (time, color, text) = describe(event);
    let paint = |code: &str, text: &str| {
        if is_colored { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    };
    let time = clock(time.as_deref());
    let kind = format!("{:TYPE_WIDTH$}", escape(&event.kind));
    format!("{} {} {}", paint(color::GRAY, &time), paint(color, &kind), escape(&text)).trim_end().to_owned()
}

/// Returns the time of day of an RFC 3339 time, in UTC, or that of now.
fn clock(time: Option<&str>) -> String {
    let parsed = time.and_then(|time| time.parse::<jiff::Timestamp>().ok());
    parsed.unwrap_or_else(jiff::Timestamp::now).strftime("%H:%M:%S%.3f").to_string()
}

/// Returns time, color and text of an event.
fn describe(event: &Event) -> (Option<String>, &'static str, String) {
    match &event.payload {
        Payload::StateInitial(state) => {
            let mut text = format!(
                "{}: {} instances, {} claims, {} pools",
                state.reason,
                state.instances.len(),
                state.claims.len(),
                state.pools.len()
            );
            if state.more {
                text += ", more follows";
            }
            (Some(state.snapshot_at.clone()), color::CYAN, text)
        }
        Payload::InstanceState(state) => {
            let mut text = phases(&state.name, state.previous_phase.as_deref(), &state.phase, state.cause.as_deref());
            member(&mut text, "workload", state.instance.workload_ref.as_deref());
            member(&mut text, "tenant", state.instance.tenant_id.as_deref());
            member(&mut text, "pool", state.instance.pool_status.as_deref());
            coalesced(&mut text, state.coalesced);
            (Some(state.time.clone()), phase_color(&state.phase), text)
        }
        Payload::ClaimState(state) => {
            let mut text = phases(&state.name, state.previous_phase.as_deref(), &state.phase, state.cause.as_deref());
            member(&mut text, "tenant", Some(&state.claim.tenant_id));
            member(&mut text, "workload", Some(&state.claim.workload_ref));
            member(&mut text, "instance", state.claim.instance_id.as_deref());
            member(&mut text, "detail", state.claim.detail.as_deref());
            coalesced(&mut text, state.coalesced);
            (Some(state.time.clone()), phase_color(&state.phase), text)
        }
        Payload::PoolReady(ready) => {
            let mut text = ready.name.clone();
            member(&mut text, "workload", ready.workload_ref.as_deref());
            coalesced(&mut text, ready.coalesced);
            (Some(ready.time.clone()), color::BLUE, text)
        }
        Payload::PoolDepth(pool) => {
            let text = format!(
                "{} warming={} ready={} acquired={}",
                pool.workload_ref, pool.warming, pool.ready, pool.acquired
            );
            (None, color::BLUE, text)
        }
        Payload::TenantClaimed(tenant) | Payload::TenantReleased(tenant) => {
            let mut text = tenant.name.clone();
            member(&mut text, "tenant", tenant.tenant_id.as_deref());
            member(&mut text, "workload", tenant.workload_ref.as_deref());
            member(&mut text, "source", tenant.source.as_deref());
            coalesced(&mut text, tenant.coalesced);
            (Some(tenant.time.clone()), color::MAGENTA, text)
        }
        Payload::Heartbeat(heartbeat) => {
            let text = format!("upstream={} age={} ms", heartbeat.upstream, heartbeat.upstream_age_ms);
            let color = if heartbeat.upstream == "live" { color::GRAY } else { color::YELLOW };
            (Some(heartbeat.timestamp.clone()), color, text)
        }
        Payload::UpstreamDown(upstream) => {
            let mut text = upstream.resource.clone();
            member(&mut text, "reason", upstream.reason.as_deref());
            member(&mut text, "since", upstream.since.as_deref());
            (Some(upstream.time.clone()), color::RED, text)
        }
        Payload::UpstreamUp(upstream) => (Some(upstream.time.clone()), color::GREEN, upstream.resource.clone()),
        Payload::AuthExpiring(expiring) => (None, color::YELLOW, format!("expires at {}", expiring.expires_at)),
        Payload::StreamClosing(closing) => (None, color::YELLOW, closing.reason.clone()),
        Payload::Unknown => (None, color::GRAY, event.json.get().chars().take(MAX_JSON_CHARS).collect()),
    }
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

fn phase_color(phase: &str) -> &'static str {
    match phase {
        "Running" | "Active" => color::GREEN,
        "Failed" | "Error" | "ReleaseFailed" => color::RED,
        "Deleted" | "Released" | "Succeeded" => color::GRAY,
        _ => color::YELLOW,
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
