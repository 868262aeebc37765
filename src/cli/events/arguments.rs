//! Values of the arguments of `events`. An error says what is accepted, and names the nearest accepted value.

use std::time::Duration;

use crate::client::{ClaimFilter, InstanceFilter};

/// Event types of the full stream, and families (docs/protocol.md#event-types-and-families).
const TYPES: &[&str] = &[
    "instance",
    "instance.state",
    "claim",
    "claim.state",
    "tenant",
    "tenant.claimed",
    "tenant.released",
    "pool",
    "pool.instance.ready",
    "pool.depth",
    "telemetry",
    "mqtt",
    "mqtt.message",
];
/// Events about the stream itself.
const CONTROL: &[&str] = &[
    "state.initial",
    "heartbeat",
    "upstream.down",
    "upstream.up",
    "matrix-down",
    "matrix-up",
    "auth.expiring",
    "stream.closing",
    "relay.gap",
];
const INSTANCE_KEYS: &[&str] = &["name", "phase", "workloadRef", "tenantId", "poolStatus", "labels.KEY"];
const CLAIM_KEYS: &[&str] = &["name", "phase", "tenantId", "workloadRef", "source", "labels.KEY"];
/// Two values are near from this similarity on (Jaro-Winkler, 0 to 1).
const NEAR: f64 = 0.75;

/// Parses one element of `--types`.
pub(super) fn event_type(text: &str) -> Result<String, String> {
    one_of(text.trim(), TYPES.iter().copied())
}

/// Parses one element of `--events`.
pub(super) fn event_name(text: &str) -> Result<String, String> {
    let families = ["instance", "claim", "tenant", "pool", "mqtt"];
    one_of(text.trim(), TYPES.iter().chain(CONTROL).copied().filter(|name| !families.contains(name)))
}

fn one_of(text: &str, accepted: impl Iterator<Item = &'static str> + Clone) -> Result<String, String> {
    if accepted.clone().any(|name| name == text) {
        return Ok(text.to_owned());
    }
    let list = accepted.clone().collect::<Vec<_>>().join(", ");
    Err(format!("{}accepted: {list}", suggestion(text, accepted)))
}

/// Returns a text that names the nearest accepted value, if one is near.
fn suggestion(text: &str, accepted: impl Iterator<Item = &'static str>) -> String {
    let scored = accepted.map(|name| (strsim::jaro_winkler(text, name), name));
    let nearest = scored.max_by(|one, other| one.0.total_cmp(&other.0)).filter(|(score, _)| *score >= NEAR);
    nearest.map_or(String::new(), |(_, name)| format!("did you mean '{name}'? "))
}

/// Parses a time: seconds, or a number with `s`, `m` or `h`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, "s"),
    };
    let seconds = match unit {
        "m" => 60.0,
        "h" => 3600.0,
        _ => 1.0,
    };
    let number = number.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    let duration = number.and_then(|number| Duration::try_from_secs_f64(number * seconds).ok());
    duration
        .filter(|duration| duration.as_secs() < 1 << 32)
        .ok_or_else(|| "accepted: a time such as 3, 3s, 2m or 1h".to_owned())
}

/// Parses `--instance-filter`.
pub(super) fn instance_filter(text: &str) -> Result<InstanceFilter, String> {
    pairs(text, INSTANCE_KEYS)?.into_iter().try_fold(InstanceFilter::new(), |filter, (key, value)| {
        Ok(match (key.as_str(), value) {
            ("name", Some(value)) => filter.name(value),
            ("phase", Some(value)) => filter.phase(value),
            ("workloadRef", Some(value)) => filter.workload_ref(value),
            ("tenantId", Some(value)) => filter.tenant_id(value),
            ("poolStatus", Some(value)) => filter.pool_status(value),
            (label, Some(value)) => filter.label(label_key(label)?, value),
            (label, None) => filter.has_label(label_key(label)?),
        })
    })
}

/// Parses `--claim-filter`.
pub(super) fn claim_filter(text: &str) -> Result<ClaimFilter, String> {
    pairs(text, CLAIM_KEYS)?.into_iter().try_fold(ClaimFilter::new(), |filter, (key, value)| {
        Ok(match (key.as_str(), value) {
            ("name", Some(value)) => filter.name(value),
            ("phase", Some(value)) => filter.phase(value),
            ("tenantId", Some(value)) => filter.tenant_id(value),
            ("workloadRef", Some(value)) => filter.workload_ref(value),
            ("source", Some(value)) => filter.source(value),
            (label, Some(value)) => filter.label(label_key(label)?, value),
            (label, None) => filter.has_label(label_key(label)?),
        })
    })
}

fn label_key(key: &str) -> Result<&str, String> {
    key.strip_prefix("labels.").ok_or_else(|| format!("'{key}' needs a value: write {key}=VALUE"))
}

/// Splits `a=b,c=d`. A label without a value, or with `*`, has `None`.
fn pairs(text: &str, keys: &'static [&str]) -> Result<Vec<(String, Option<String>)>, String> {
    let mut all: Vec<(String, Option<String>)> = Vec::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("'{pair}' is not KEY=VALUE"))?;
        let is_label = key.strip_prefix("labels.").is_some_and(|label| !label.is_empty());
        if !is_label && !keys.contains(&key) {
            let near = suggestion(key, keys.iter().copied());
            return Err(format!("unknown key '{key}': {near}accepted: {}", keys.join(", ")));
        }
        if all.iter().any(|(known, _)| known == key) {
            return Err(format!("'{key}' is given twice"));
        }
        let exists = is_label && matches!(value, "" | "*");
        all.push((key.to_owned(), (!exists).then(|| value.to_owned())));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_parsed_as_documented() {
        let filter = instance_filter("phase=Running, labels.team=a,labels.x=,labels.y=*").unwrap();
        assert_eq!(filter, InstanceFilter::new().phase("Running").label("team", "a").has_label("x").has_label("y"));
        assert_eq!(claim_filter("tenantId=alice").unwrap(), ClaimFilter::new().tenant_id("alice"));
        for (text, words) in [
            ("phas=Running", "unknown key 'phas': did you mean 'phase'? accepted: name, phase,"),
            ("phase", "'phase' is not KEY=VALUE"),
            ("name=a,name=b", "'name' is given twice"),
            ("labels.=a", "unknown key 'labels.'"),
        ] {
            let error = instance_filter(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!(claim_filter("poolStatus=ready").is_err());
    }

    #[test]
    fn types_and_times_list_what_is_accepted() {
        assert_eq!(event_type("tenant").unwrap(), "tenant");
        assert!(
            event_type("tenant.claim").unwrap_err().starts_with("did you mean 'tenant.claimed'? accepted: instance,")
        );
        assert!(event_name("tenant").is_err() && event_name("heartbeat").is_ok());
        let seconds = |text: &str| duration(text).map(|duration| duration.as_secs_f64());
        assert_eq!(
            [seconds("3"), seconds("3s"), seconds("2m"), seconds("0.5")],
            [Ok(3.0), Ok(3.0), Ok(120.0), Ok(0.5)]
        );
        for text in ["", "0", "-1", "x", "3d", "inf", "1e300"] {
            duration(text).unwrap_err();
        }
    }
}
