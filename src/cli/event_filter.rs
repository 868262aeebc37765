//! The arguments that select events, and the parsers of their values. An error says what is accepted, and names the
//! nearest accepted value.

use clap::Args;

use crate::{
    client::{Builder, ClaimFilter, InstanceFilter},
    event::projection::{EventFormat, EventType},
};

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
/// Two values are near from this similarity on (Jaro-Winkler, 0 to 1).
const NEAR: f64 = 0.75;

/// What the bridge is asked to send, for every subcommand that reads events.
#[derive(Clone, Debug, Args)]
pub(super) struct FilterArgs {
    /// Instances that the bridge sends, such as 'phase=Running,labels.team=a'. 'labels.KEY=*' selects instances that have
    /// the label
    #[arg(long, env = "BRIDGE_INSTANCE_FILTER", value_name = "KEY=VALUE,...", value_parser = instance_filter)]
    instance_filter: Option<InstanceFilter>,

    /// Claims that the bridge sends, such as 'tenantId=alice'
    #[arg(long, env = "BRIDGE_CLAIM_FILTER", value_name = "KEY=VALUE,...", value_parser = claim_filter)]
    claim_filter: Option<ClaimFilter>,

    /// Event types or families that the bridge sends, such as 'instance,tenant.claimed'
    #[arg(long, env = "BRIDGE_TYPES", value_name = "TYPE,...", value_delimiter = ',', value_parser = event_type)]
    types: Vec<String>,
}

impl FilterArgs {
    /// Adds the selection to the settings of a client.
    pub(super) fn apply(&self, builder: Builder) -> Builder {
        builder
            .instances(self.instance_filter.clone().unwrap_or_default())
            .claims(self.claim_filter.clone().unwrap_or_default())
            .types(self.types.iter().cloned())
    }
}

/// Parses one element of `--types`.
fn event_type(text: &str) -> Result<String, String> {
    one_of(text.trim(), &EventFormat::Full.accepted_types())
}

/// Parses one element of `--events`.
pub(super) fn event_name(text: &str) -> Result<String, String> {
    let names: Vec<&str> = EventFormat::Full.types().map(EventType::name).chain(CONTROL.iter().copied()).collect();
    one_of(text.trim(), &names)
}

fn one_of(text: &str, accepted: &[&str]) -> Result<String, String> {
    if accepted.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!("{}accepted: {}", suggestion(text, accepted), accepted.join(", ")))
}

/// Returns a text that names the nearest accepted value, if one is near.
fn suggestion(text: &str, accepted: &[&str]) -> String {
    let scored = accepted.iter().map(|name| (strsim::jaro_winkler(text, name), name));
    let nearest = scored.max_by(|one, other| one.0.total_cmp(&other.0)).filter(|(score, _)| *score >= NEAR);
    nearest.map_or(String::new(), |(_, name)| format!("did you mean '{name}'? "))
}

/// Parses `--instance-filter`.
fn instance_filter(text: &str) -> Result<InstanceFilter, String> {
    filter(text, InstanceFilter::KEYS, InstanceFilter::with)
}

/// Parses `--claim-filter`.
fn claim_filter(text: &str) -> Result<ClaimFilter, String> {
    filter(text, ClaimFilter::KEYS, ClaimFilter::with)
}

/// Parses `a=b,labels.c=d`. A label with the value `*`, or without one, must exist.
fn filter<F: Default>(text: &str, keys: &[&str], with: fn(F, &str, Option<&str>) -> Option<F>) -> Result<F, String> {
    let (mut filter, mut known) = (F::default(), Vec::new());
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("'{pair}' is not KEY=VALUE"))?;
        let is_label = key.strip_prefix("labels.").is_some_and(|label| !label.is_empty());
        let exists = is_label && matches!(value, "" | "*");
        if known.contains(&key) {
            return Err(format!("'{key}' is given twice"));
        }
        known.push(key);
        let changed =
            if is_label || keys.contains(&key) { with(filter, key, (!exists).then_some(value)) } else { None };
        filter = changed.ok_or_else(|| {
            let accepted = [keys, &["labels.KEY"]].concat();
            format!("unknown key '{key}': {}accepted: {}", suggestion(key, &accepted), accepted.join(", "))
        })?;
    }
    Ok(filter)
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
    fn types_list_what_is_accepted() {
        assert_eq!(event_type("tenant").unwrap(), "tenant");
        assert!(event_type("tenant.claim").unwrap_err().starts_with("did you mean 'tenant.claimed'? accepted: claim,"));
        assert!(event_name("tenant").is_err() && event_name("heartbeat").is_ok());
    }
}
