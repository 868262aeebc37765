//! The address of a receiver.

use http::Uri;

use crate::client::has_wrong_port;

/// A receiver of webhooks.
#[derive(Clone, PartialEq, Eq)]
pub struct Receiver {
    pub(super) uri: Uri,
}

impl std::fmt::Debug for Receiver {
    /// Shows no query, which may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Receiver({})", self.name())
    }
}

impl Receiver {
    /// Parses the URL of a receiver. No scheme means `http`, so that `localhost:9000/hook` is accepted.
    ///
    /// # Errors
    /// Text that says what is accepted. It does not repeat the URL, which may contain a secret.
    pub fn parse(text: &str) -> Result<Receiver, String> {
        const ACCEPTED: &str = "accepted: http://HOST:PORT/PATH or https://HOST/PATH";
        let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = with_scheme.parse().map_err(|_| format!("not a URL; {ACCEPTED}"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(ACCEPTED.to_owned());
        }
        let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        if authority.contains('@') {
            return Err("a URL must not contain a credential; sign deliveries with --webhook-secret-file".to_owned());
        }
        if uri.authority().is_some_and(has_wrong_port) {
            return Err(format!("the port is no number from 1 to 65535; {ACCEPTED}"));
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(format!("the host is missing; {ACCEPTED}"));
        }
        Ok(Receiver { uri })
    }

    /// Returns whether the deliveries are encrypted.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    /// Returns the URL without its query, which may be a secret. It identifies the receiver.
    #[must_use]
    pub fn name(&self) -> String {
        let text = self.uri.to_string();
        text.split('?').next().unwrap_or_default().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_and_never_repeated_with_their_secrets() {
        let receiver = Receiver::parse("localhost:9000/hook?token=secret").unwrap();
        assert_eq!(receiver.name(), "http://localhost:9000/hook");
        assert!(!format!("{receiver:?}").contains("secret"));
        for (wrong, words) in [
            ("ftp://h/", "accepted: http://"),
            ("https://user:password@h/", "must not contain a credential"),
            ("http:///hook", "not a URL"),
            ("a b", "not a URL"),
            ("http://h:99999/", "the port is no number"),
        ] {
            let error = Receiver::parse(wrong).unwrap_err();
            assert!(error.contains(words) && !error.contains("password"), "{wrong}: {error}");
        }
    }
}
