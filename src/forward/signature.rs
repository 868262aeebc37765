//! Signatures of deliveries (Standard Webhooks 1.0, "Signature scheme": symmetric, `v1`).

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::hmac;

/// The start of a secret.
const PREFIX: &str = "whsec_";
/// Bytes of a decoded secret. Standard Webhooks requires 24 to 64.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Secrets of one file. While a secret is replaced there are two.
const MAX_SECRETS: usize = 5;

/// The secrets of one file.
#[derive(Clone)]
pub struct Secrets(Vec<hmac::Key>);

impl std::fmt::Debug for Secrets {
    /// Shows no secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

impl Secrets {
    /// Parses secrets, separated by white space. Each signs every delivery, so that a receiver can change from one to the
    /// next.
    ///
    /// # Errors
    /// Text that says what is accepted. It contains no part of a secret.
    pub fn parse(text: &str) -> Result<Secrets, String> {
        let accepted = || {
            format!(
                "accepted: 1 to {MAX_SECRETS} lines, each {PREFIX} and the base64 of {} to {} bytes",
                SECRET_BYTES.start(),
                SECRET_BYTES.end()
            )
        };
        let secrets: Option<Vec<Vec<u8>>> = text
            .split_whitespace()
            .map(|word| BASE64_STANDARD.decode(word.strip_prefix(PREFIX)?).ok())
            .map(|secret| secret.filter(|secret| SECRET_BYTES.contains(&secret.len())))
            .collect();
        let secrets = secrets.filter(|secrets| (1..=MAX_SECRETS).contains(&secrets.len())).ok_or_else(accepted)?;
        Ok(Secrets(secrets.iter().map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret)).collect()))
    }

    /// Returns the value of `webhook-signature`. `timestamp` is that of the attempt, in seconds since 1970.
    pub(super) fn sign(&self, id: &str, timestamp: u64, body: &str) -> String {
        let signed = format!("{id}.{timestamp}.{body}");
        let signatures = self.0.iter().map(|key| {
            let tag = hmac::sign(key, signed.as_bytes());
            format!("v1,{}", BASE64_STANDARD.encode(tag.as_ref()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::SystemTime};

    use super::*;

    /// The program of docs/how-to/webhooks.md.
    #[test]
    fn documented_python_accepts_what_is_signed_and_nothing_else() {
        const SECRET: &str = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz";
        let page = include_str!("../../docs/how-to/webhooks.md");
        let (_, rest) = page.split_once("```python\n").unwrap();
        let (program, _) = rest.split_once("```").unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let secrets = Secrets::parse(&format!("whsec_YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4 {SECRET}")).unwrap();
        let is_valid = |timestamp: u64, body: &str, secret: &str| {
            let signature = secrets.sign("msg_1", timestamp, r#"{"name":"é"}"#);
            let headers = format!(
                "{{'webhook-id': 'msg_1', 'webhook-timestamp': '{timestamp}', 'webhook-signature': '{signature}'}}"
            );
            let call = format!("{program}\nprint(is_valid({headers}, {body:?}.encode(), {secret:?}))");
            let output = Command::new("python3").args(["-c", &call]).output().unwrap();
            String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
        };
        assert_eq!(is_valid(now, r#"{"name":"é"}"#, SECRET), "True\n");
        let refused = format!(
            "{program}\nh = {{'webhook-id': 'a', 'webhook-timestamp': '{now}', 'webhook-signature': 'é'}}"
        ) + "\nfor name in [None, *h]:\n    print(is_valid({**h, name: None}, b'', 'whsec_MDEyMzQ1Njc4OTAx'), end=' ')";
        let output = Command::new("python3").args(["-c", &refused]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "False False False False ", "{output:?}");
        assert_eq!(is_valid(now, r#"{"name":"e"}"#, SECRET), "False\n", "another body");
        assert_eq!(is_valid(now - 400, r#"{"name":"é"}"#, SECRET), "False\n", "too old");
        assert_eq!(is_valid(now, r#"{"name":"é"}"#, "whsec_YWJjZGVmZ2hpamtsbW5vcHFy"), "False\n", "another secret");
    }

    #[test]
    fn signatures_are_those_of_an_independent_implementation() {
        // Computed with `openssl dgst -sha256 -mac HMAC` over "msg_1.1700000000.{}".
        let secrets = Secrets::parse("whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz\n").unwrap();
        let signature = secrets.sign("msg_1", 1_700_000_000, "{}");
        assert_eq!(signature, "v1,hmXGLnNyF9xj0t3bu2NbHtTjiBY8aTGhgmj3SmIHdd8=");
        let two =
            Secrets::parse("whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz whsec_YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4").unwrap();
        let both = two.sign("msg_1", 1_700_000_000, "{}");
        assert!(both.starts_with(&format!("{signature} v1,")), "{both}");
    }

    #[test]
    fn secrets_that_cannot_be_used_are_refused() {
        let many = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz ".repeat(MAX_SECRETS + 1);
        for wrong in ["", "secret", "whsec_", "whsec_###", "whsec_c2hvcnQ=", many.as_str()] {
            let error = Secrets::parse(wrong).unwrap_err();
            assert!(error.starts_with("accepted: 1 to 5 lines, each whsec_"), "{error}");
        }
    }
}
