//! The query parameters of lists and watches, parsed as kube-apiserver parses them. Pure.
//!
//! Guarantees: a selector or an option that the simulator does not support is rejected instead of ignored, so that no
//! test passes because it had no effect. Label selectors support equality and existence. Field selectors support the
//! name and the namespace. Unknown parameters are ignored.

use serde_json::Value;

use super::status::StatusError;
use super::store::Revision;

/// The parameters of a list or watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListOptions {
    pub(super) watch: bool,
    pub(super) selector: Selector,
    /// `resourceVersion`.
    pub(super) version: Option<Revision>,
    /// Whether the list must be at exactly `version`.
    pub(super) exact: bool,
    /// Maximum number of items; 0 for no limit.
    pub(super) limit: usize,
    /// `continue`.
    pub(super) page: Option<String>,
    /// `allowWatchBookmarks`.
    pub(super) bookmarks: bool,
    pub(super) timeout_seconds: Option<u64>,
}

impl ListOptions {
    /// Parses a query string.
    ///
    /// # Errors
    /// Returns the status with which kube-apiserver rejects the parameters.
    pub(super) fn parse(query: &str) -> Result<Self, StatusError> {
        let mut options = Self::default();
        let (mut version_match, mut version, mut initial) = (None, None, false);
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            if value.is_empty() {
                continue;
            }
            match key.as_ref() {
                "watch" => options.watch = flag(&value),
                "allowWatchBookmarks" => options.bookmarks = flag(&value),
                "sendInitialEvents" => initial = true,
                "labelSelector" => options.selector.labels(&value)?,
                "fieldSelector" => options.selector.fields(&value)?,
                "limit" => options.limit = number("limit", &value)?,
                "timeoutSeconds" => options.timeout_seconds = Some(number("timeoutSeconds", &value)?),
                "continue" => options.page = Some(value.into_owned()),
                "resourceVersionMatch" => version_match = Some(value.into_owned()),
                "resourceVersion" => version = Some(value.into_owned()),
                _ => {}
            }
        }
        if let Some(version) = version {
            let bad = if options.watch { StatusError::bad_watch_version } else { StatusError::bad_version };
            options.version = Some(version.parse().map_err(|_| bad(&version))?);
        }
        options.check(version_match.as_deref(), initial)?;
        let legacy_exact = version_match.is_none() && options.limit > 0 && options.version.is_some_and(|v| v > 0);
        options.exact = version_match.as_deref() == Some("Exact") || legacy_exact;
        Ok(options)
    }

    /// Checks the combination of parameters. The texts are those of kube-apiserver.
    fn check(&self, version_match: Option<&str>, initial: bool) -> Result<(), StatusError> {
        if initial {
            let reason = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            return Err(StatusError::bad_options("sendInitialEvents", reason));
        }
        if self.page.is_some() && self.version.is_some_and(|version| version > 0) {
            return Err(StatusError::bad_request("specifying resource version is not allowed when using continue"));
        }
        let Some(version_match) = version_match else { return Ok(()) };
        let reason = if self.watch {
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        } else if self.version.is_none() {
            "resourceVersionMatch is forbidden unless resourceVersion is provided"
        } else if self.page.is_some() {
            "resourceVersionMatch is forbidden when continue is provided"
        } else if version_match == "Exact" && self.version == Some(0) {
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""
        } else if !matches!(version_match, "Exact" | "NotOlderThan") {
            "supported values: \"\", \"Exact\", \"NotOlderThan\""
        } else {
            return Ok(());
        };
        Err(StatusError::bad_options("resourceVersionMatch", reason))
    }
}

/// A label and field selector. An object must meet all requirements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Label(String, String),
    NotLabel(String, String),
    Present(String),
    Absent(String),
    Field(&'static str, String),
}

impl Selector {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"].get(key).and_then(Value::as_str);
        self.0.iter().all(|requirement| match requirement {
            Requirement::Label(key, value) => label(key) == Some(value),
            Requirement::NotLabel(key, value) => label(key) != Some(value),
            Requirement::Present(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
            Requirement::Field(field, value) => object["metadata"][*field].as_str() == Some(value),
        })
    }

    fn labels(&mut self, text: &str) -> Result<(), StatusError> {
        for part in text.split(',').map(str::trim) {
            let requirement = if let Some((key, value)) = part.split_once("!=") {
                Requirement::NotLabel(key.trim().into(), value.trim().into())
            } else if let Some((key, value)) = part.split_once('=') {
                Requirement::Label(key.trim().into(), value.trim_start_matches('=').trim().into())
            } else if let Some(key) = part.strip_prefix('!') {
                Requirement::Absent(key.trim().into())
            } else if part.is_empty() || part.contains([' ', '(', '<', '>']) {
                let message = format!(
                    "unable to parse requirement: {part:?} (the simulated API supports equality and existence only)"
                );
                return Err(StatusError::bad_request(&message));
            } else {
                Requirement::Present(part.into())
            };
            self.0.push(requirement);
        }
        Ok(())
    }

    fn fields(&mut self, text: &str) -> Result<(), StatusError> {
        for part in text.split(',') {
            let (field, value) = part.split_once('=').unwrap_or((part, ""));
            let field = match field {
                "metadata.name" => "name",
                "metadata.namespace" => "namespace",
                _ => return Err(StatusError::bad_request(&format!("field label not supported: {field}"))),
            };
            self.0.push(Requirement::Field(field, value.trim_start_matches('=').to_owned()));
        }
        Ok(())
    }
}

fn flag(value: &str) -> bool {
    !matches!(value, "0" | "false")
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, StatusError> {
    value.parse().map_err(|_| StatusError::bad_request(&format!("invalid {name}: {value:?}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_match_labels_and_fields() {
        let object = json!({"metadata": {"name": "a", "labels": {"app": "web", "number": 7}}});
        let rows = [
            ("labelSelector=app%3Dweb", true),
            ("labelSelector=app%3D%3Dweb", true),
            ("labelSelector=app%3Ddb", false),
            ("labelSelector=app!%3Ddb,app", true),
            ("labelSelector=tier!%3Ddb", true),
            ("labelSelector=tier", false),
            ("labelSelector=!tier", true),
            ("labelSelector=!app", false),
            ("fieldSelector=metadata.name%3Da", true),
            ("fieldSelector=metadata.name%3Db&labelSelector=app", false),
        ];
        for (query, expected) in rows {
            assert_eq!(ListOptions::parse(query).unwrap().selector.matches(&object), expected, "{query}");
        }
        assert!(ListOptions::parse("labelSelector=app%20in%20(a)").is_err());
        assert!(ListOptions::parse("fieldSelector=spec.x%3Da").is_err());
    }

    #[test]
    fn resource_version_with_limit_requests_an_exact_list() {
        assert!(ListOptions::parse("resourceVersion=5&limit=1").unwrap().exact);
        assert!(!ListOptions::parse("resourceVersion=5").unwrap().exact);
        assert!(!ListOptions::parse("resourceVersion=5&limit=1&resourceVersionMatch=NotOlderThan").unwrap().exact);
        for query in [
            "resourceVersionMatch=Exact",
            "resourceVersionMatch=Exact&resourceVersion=0",
            "resourceVersionMatch=Sometimes&resourceVersion=5",
            "resourceVersionMatch=Exact&resourceVersion=5&watch=true",
        ] {
            assert_eq!(ListOptions::parse(query).unwrap_err().code.as_u16(), 422, "{query}");
        }
        for query in ["resourceVersion=x", "continue=x&resourceVersion=5", "limit=x"] {
            assert_eq!(ListOptions::parse(query).unwrap_err().code.as_u16(), 400, "{query}");
        }
    }
}
