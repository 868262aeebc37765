//! What is wrong with a payload.

use serde::Serialize;

/// Maximum number of violations that are listed: more than a payload with 200 wrong requests has, few enough for a response
/// of less than 200 KiB.
const MAX_LISTED: usize = 500;
/// Maximum number of characters of a path or a message.
const MAX_CHARS: usize = 200;

/// One thing that is wrong with a payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Where it is, such as `metrics.ttl` or `requests[3]`; empty for the whole payload.
    pub path: String,
    /// What is expected there, and what was found.
    pub message: String,
}

/// Everything that is wrong with a payload. It is the `details` of a 422.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Violations {
    /// The first 500.
    violations: Vec<Violation>,
    /// The number of further ones.
    #[serde(skip_serializing_if = "is_zero")]
    more: usize,
}

impl Violations {
    /// Adds a violation. A long path or message is cut.
    pub fn add(&mut self, path: &str, message: &str) {
        if self.violations.len() == MAX_LISTED {
            self.more += 1;
        } else {
            self.violations.push(Violation { path: cut(path), message: cut(message) });
        }
    }

    /// Counts violations that are not listed.
    pub fn add_unlisted(&mut self, count: usize) {
        self.more += count;
    }

    /// Returns those that are listed.
    #[must_use]
    pub fn listed(&self) -> &[Violation] {
        &self.violations
    }

    /// Returns the number of all violations.
    #[must_use]
    pub fn count(&self) -> usize {
        self.violations.len() + self.more
    }

    /// Returns whether the payload is valid.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_is_bounded_and_counts_the_rest() {
        let mut violations = Violations::default();
        for _ in 0..MAX_LISTED + 3 {
            violations.add(&"ä".repeat(10_000), "wrong");
        }
        assert_eq!((violations.listed().len(), violations.count()), (MAX_LISTED, MAX_LISTED + 3));
        assert_eq!(violations.listed()[0].path.chars().count(), MAX_CHARS + 1);
        let json = serde_json::to_string(&violations).unwrap();
        assert!(json.ends_with(r#""more":3}"#), "{}", &json[json.len() - 50..]);
        violations.add_unlisted(2);
        assert_eq!((violations.listed().len(), violations.count()), (MAX_LISTED, MAX_LISTED + 5));
    }
}
