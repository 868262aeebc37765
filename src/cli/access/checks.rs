//! The flags for credentials, origins and TLS, as checks of `doctor` (docs/protocol.md#doctor). They load the files that the
//! flags name, as `serve` does.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp};

use super::{
    AccessArgs, ListenPlace,
    bridge::{BridgeAccessArgs, WsAuth},
    environment_key::{MIN_KEY_CHARS, env_api_key},
};
use crate::{
    cli::exit::CliError,
    doctor::{CommandLine, Outcome, shell_path},
    http::{
        auth::{self, Authenticator, CredentialSources, MAX_KEYS_FILE_BYTES, keys::ApiKeys},
        conn::{CertificateUse, ReloadingTls},
    },
    source::error::error_chain,
};

/// Time before an expiry from which a check warns: that of the alert `BridgeCertificateExpiring`.
const EXPIRES_SOON: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Sets a random key.
const SET_KEY: &str = "export BOILERHOUSE_API_KEY=\"$(openssl rand -hex 32)\"";

impl BridgeAccessArgs {
    /// Returns whether Kubernetes tokens are accepted.
    pub(in crate::cli) fn reviews_tokens(&self) -> bool {
        self.token_audience.is_some()
    }

    /// Returns whether connections use TLS.
    pub(in crate::cli) fn has_tls(&self) -> bool {
        self.common.tls_cert.is_some()
    }

    /// Returns the names of `--allowed-hosts`.
    pub(in crate::cli) fn host_names(&self) -> Vec<String> {
        self.common.allowed_hosts.iter().flat_map(|list| &list.0).map(ToString::to_string).collect()
    }

    /// Returns the keys file and the file of the session key.
    pub(in crate::cli) fn secret_files(&self) -> [Option<PathBuf>; 2] {
        [self.common.keys_file.clone(), self.common.session_key_file.clone()]
    }

    /// Checks the credentials and their expiry.
    pub(in crate::cli) fn check_credentials(
        &self,
        listen_host: &str,
        is_loopback: bool,
        command: &CommandLine,
    ) -> Outcome {
        let place = ListenPlace::of_bridge(listen_host, is_loopback);
        self.credentials(&place, Timestamp::now(), command).unwrap_or_else(|outcome| *outcome)
    }

    fn credentials(
        &self,
        place: &ListenPlace<'_>,
        now: Timestamp,
        command: &CommandLine,
    ) -> Result<Outcome, Box<Outcome>> {
        let failed = |hint: &str| {
            let hint = hint.to_owned();
            move |error: CliError| Box::new(Outcome::failed(error.text(), hint))
        };
        let environment = env_api_key().map_err(failed(SET_KEY))?;
        let audience = self.audience().map_err(failed("export BRIDGE_TOKEN_AUDIENCE=boilerhouse-bridge"))?;
        let has_other = environment.is_some() || audience.is_some();
        let is_required = self.ws_auth == WsAuth::Required;
        let is_closed = self.common.check_exposure(place, has_other, is_required).map_err(failed(SET_KEY))?;
        self.common.check_session_key(command)?;
        let keys = self.common.check_keys_file(command)?;
        let mut found = Vec::new();
        if let Some(secret) = &environment {
            if secret.expose().chars().count() < MIN_KEY_CHARS {
                let detail = "BOILERHOUSE_API_KEY is short enough to be guessed; use 32 random characters";
                return Ok(Outcome::warning(detail, SET_KEY));
            }
            found.push("BOILERHOUSE_API_KEY".to_owned());
        }
        if let Some((path, keys)) = &keys {
            if let Some(outcome) = expiring(path, keys, now) {
                return Ok(outcome);
            }
            found.push(format!("{} keys in {}", keys.len(), path.display()));
        }
        found.extend(audience.map(|audience| format!("Kubernetes tokens with the audience {audience}")));
        Ok(match is_closed {
            true => Outcome::passed(format!("accepted: {}", found.join(", "))),
            false if place.is_loopback => Outcome::passed("none, and only this machine can connect"),
            false => Outcome::warning("everyone who reaches the port can read everything (--allow-anonymous)", SET_KEY),
        })
    }

    /// Checks the web origins.
    pub(in crate::cli) fn check_origins(&self, command: &CommandLine) -> Outcome {
        let has_key = match env_api_key() {
            Ok(key) => key.is_some(),
            // The check of the credentials reports it.
            Err(_) => true,
        };
        let allowed = match self.common.allowed(self.common.has_credentials(has_key || self.token_audience.is_some())) {
            Ok(allowed) => allowed,
            Err(error) => {
                let hint = command.with(&[("only", Some("origins")), ("cors-origin", Some("https://app.example"))]);
                return Outcome::failed(error.text(), hint);
            }
        };
        let names: Vec<String> = allowed.origins.iter().map(ToString::to_string).collect();
        match allowed.origins.iter().find(|origin| origin.is_insecure()) {
            Some(insecure) => {
                let detail = format!("everyone on the network can change the pages of {insecure}, which may read");
                let secure = allowed.origins.iter().map(|origin| match origin.is_insecure() {
                    true => origin.with_https(),
                    false => origin.to_string(),
                });
                let secure = secure.collect::<Vec<_>>().join(",");
                Outcome::warning(detail, command.with(&[("only", Some("origins")), ("cors-origin", Some(&secure))]))
            }
            None if allowed.any_origin => Outcome::passed("pages of all origins may read, with a credential"),
            None if names.is_empty() => Outcome::passed("only pages of the bridge itself may read"),
            None => Outcome::passed(format!("these pages may read: {}", names.join(", "))),
        }
    }

    /// Checks certificate and key.
    pub(in crate::cli) fn check_tls(&self, command: &CommandLine) -> Outcome {
        let files = match self.common.tls_files() {
            Ok(Some(files)) => files,
            Ok(None) => return Outcome::skipped("--tls-cert is not set: the bridge serves plain HTTP"),
            Err(error) => {
                let flag =
                    if self.common.tls_cert.is_some() { ("tls-key", "tls.key") } else { ("tls-cert", "tls.crt") };
                let hint = command.with(&[("only", Some("tls")), (flag.0, Some(flag.1))]);
                return Outcome::failed(error.text(), hint);
            }
        };
        let [certificate, key] = &files;
        let hint = format!("openssl x509 -noout -text -in {}", shell_path(certificate));
        match ReloadingTls::read(certificate, key) {
            Ok(tls) => judge_certificate(tls.certificate(), Timestamp::now(), &hint),
            Err(error) => Outcome::failed(error_chain(&error), hint),
        }
    }
}

impl AccessArgs {
    fn check_session_key(&self, command: &CommandLine) -> Result<(), Box<Outcome>> {
        let Some(path) = &self.session_key_file else { return Ok(()) };
        if !path.exists() {
            return Err(Box::new(missing(path, "session-key-file", command, "creates it with a random key")));
        }
        let hint = format!("openssl rand -base64 32 > {}", shell_path(path));
        self.signer().map(drop).map_err(|error| Box::new(Outcome::failed(error_chain(error.as_ref()), hint)))
    }

    /// Loads the keys file as `serve` does. A pipe can be read once only, so that its keys are not returned.
    fn check_keys_file(&self, command: &CommandLine) -> Result<Option<(PathBuf, ApiKeys)>, Box<Outcome>> {
        let Some(path) = &self.keys_file else { return Ok(None) };
        if !path.exists() {
            return Err(Box::new(missing(path, "keys-file", command, "creates it with one new key")));
        }
        let sources = CredentialSources { file: Some(path.clone()), ..CredentialSources::default() };
        let loaded = Authenticator::new(auth::Config::default(), sources, auth::Metrics::default());
        loaded.map_err(|error| {
            let hint = format!("${{EDITOR:-vi}} {}", shell_path(path));
            Box::new(Outcome::failed(error_chain(&error), hint))
        })?;
        let mut text = String::new();
        let is_read = path.is_file()
            && File::open(path).and_then(|file| file.take(MAX_KEYS_FILE_BYTES).read_to_string(&mut text)).is_ok();
        let keys = if is_read { ApiKeys::parse(&text).ok() } else { None };
        Ok(keys.map(|keys| (path.clone(), keys)))
    }
}

fn missing(path: &Path, flag: &str, command: &CommandLine, fix: &str) -> Outcome {
    let hint = command.with(&[(flag, Some(&path.to_string_lossy())), ("fix", None)]);
    Outcome::failed(format!("{} of --{flag} does not exist", path.display()), hint).with_fix(fix)
}

/// Returns the outcome for keys that have expired or expire soon.
fn expiring(path: &Path, keys: &ApiKeys, now: Timestamp) -> Option<Outcome> {
    let by = |time: Timestamp| {
        let is_expiring = |expiry: Timestamp| expiry <= time;
        let names = keys.iter().filter(|key| key.expires_at.is_some_and(is_expiring)).map(|key| &*key.name);
        names.take(10).collect::<Vec<_>>().join(", ")
    };
    let hint = format!("${{EDITOR:-vi}} {}", shell_path(path));
    let expired = by(now);
    if !expired.is_empty() {
        return Some(Outcome::warning(format!("keys that have expired: {expired}"), hint));
    }
    let soon = by(now.saturating_add(EXPIRES_SOON).unwrap_or(Timestamp::MAX));
    (!soon.is_empty()).then(|| Outcome::warning(format!("keys that expire within 7 days: {soon}"), hint))
}

fn judge_certificate(certificate: Option<CertificateUse>, now: Timestamp, hint: &str) -> Outcome {
    let Some(CertificateUse { not_before, not_after, is_for_servers }) = certificate else {
        return Outcome::warning("the key fits, but the validity of the certificate cannot be read", hint);
    };
    let shown = |seconds: i64| Timestamp::from_second(seconds).map_or_else(|_| "?".to_owned(), |time| time.to_string());
    let seconds = now.as_second();
    match () {
        () if seconds >= not_after => Outcome::failed(format!("the certificate expired at {}", shown(not_after)), hint),
        () if seconds < not_before => {
            Outcome::failed(format!("the certificate is valid from {} only", shown(not_before)), hint)
        }
        () if !is_for_servers => {
            Outcome::failed("the certificate is not for servers (its extended key usage lacks serverAuth)", hint)
        }
        () if seconds + EXPIRES_SOON.as_secs() >= not_after => {
            Outcome::warning(format!("the certificate expires at {}", shown(not_after)), hint)
        }
        () => Outcome::passed(format!("certificate and key fit; valid until {}", shown(not_after))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_judged_by_their_validity() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let day = 24 * 3600;
        let judge = |from_days: i64, to_days: i64, is_for_servers| {
            let (not_before, not_after) = (now.as_second() + from_days * day, now.as_second() + to_days * day);
            let certificate = CertificateUse { not_before, not_after, is_for_servers };
            format!("{:?}", judge_certificate(Some(certificate), now, "hint"))
        };
        assert!(judge(-1, 30, true).contains("Passed"));
        assert!(judge(-1, 6, true).contains("Warning"));
        for (found, words) in [
            (judge(-9, -1, true), "expired at 2026-01-01"),
            (judge(1, 9, true), "valid from 2026-01-03"),
            (judge(-1, 30, false), "not for servers"),
        ] {
            assert!(found.contains("Failed") && found.contains("Error") && found.contains(words), "{found}");
        }
        assert!(format!("{:?}", judge_certificate(None, now, "hint")).contains("Warning"));
    }

    #[test]
    fn keys_are_judged_by_their_expiry() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let judge = |expiry: &str| {
            let keys = format!("keys: [{{name: a, sha256: {:064}, expiresAt: {expiry}}}]", 1);
            expiring(Path::new("keys"), &ApiKeys::parse(&keys).unwrap(), now).map(|outcome| format!("{outcome:?}"))
        };
        assert!(judge("2026-01-01T00:00:00Z").unwrap().contains("have expired: a"));
        assert!(judge("2026-01-08T00:00:00Z").unwrap().contains("within 7 days: a"));
        assert_eq!(judge("2026-02-01T00:00:00Z"), None);
    }
}
