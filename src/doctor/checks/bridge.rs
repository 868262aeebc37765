//! Checks of the running bridge of `--url`.

use std::time::Instant;

use futures::{
    FutureExt as _,
    future::{BoxFuture, try_join},
};
use http::{HeaderMap, StatusCode};

use crate::{
    client::{Error, Payload, Transport},
    doctor::{
        check::{Outcome, Subject, Target},
        get::{Response, get},
    },
};

/// Path of the state of a bridge.
const READY: &str = "/readyz?verbose";

pub(super) fn ready<'a>(subject: &'a Subject) -> BoxFuture<'a, Outcome> {
    with_target(subject, move |target: &'a Target| async move {
        let hint = target.curl("-i", READY);
        match get(&target.url(READY), target.tls.clone(), None).await {
            Err(error) => Outcome::failed(format!("no answer from {}: {error}", target.base_url), hint),
            Ok(response) => {
                // Why a bridge gets no changes is found out in the cluster.
                let watches = subject.command.with(&[("only", Some("list,watch"))]);
                judge_ready(&response, &target.base_url, hint, watches)
            }
        }
    })
}

/// Judges an answer of `/readyz?verbose` by its status and its form: lines of resources (`[+] pods: live`, `[-]` for one that
/// cannot be read now), lines with `[i]`, and a last line, `ready` with 200 or `not ready: ...` with 503.
fn judge_ready(response: &Response, base_url: &str, hint: String, watches: String) -> Outcome {
    let lines: Vec<&str> = response.body.lines().collect();
    let (last, details) = lines.split_last().map_or(("", &[][..]), |(last, details)| (*last, details));
    let is_resource = |line: &&&str| line.starts_with("[+] ") || line.starts_with("[-] ");
    let resources = details.iter().take_while(is_resource).count();
    let has_form = details[resources..].iter().all(|line| line.starts_with("[i] "));
    let is_ready = match response.status {
        StatusCode::OK if resources > 0 && has_form && last == "ready" => true,
        StatusCode::SERVICE_UNAVAILABLE if has_form && last.starts_with("not ready: ") => false,
        StatusCode::OK => return Outcome::failed(format!("{base_url} answers, but is no bridge"), hint),
        _ => return Outcome::failed(format!("/readyz: {}", response.message()), hint),
    };
    let found = lines.join("; ");
    match is_ready {
        false => Outcome::failed(found, hint),
        true if details.iter().any(|line| line.starts_with("[-] upstream")) => Outcome::warning(found, hint),
        true if details.iter().any(|line| line.starts_with("[-] ")) => Outcome::warning(found, watches),
        true => Outcome::passed(found),
    }
}

/// A stream without an initial state starts with a heartbeat.
pub(super) fn streams<'a>(subject: &'a Subject) -> BoxFuture<'a, Outcome> {
    with_target(subject, move |target: &'a Target| async move {
        let start = Instant::now();
        let found = try_join(heartbeat(target, Transport::Sse), heartbeat(target, Transport::WebSocket)).await;
        match found {
            Ok(_) => {
                let millis = start.elapsed().as_millis();
                Outcome::passed(format!("SSE and WebSocket deliver a heartbeat within {millis} ms"))
            }
            Err((_, Error::Status { status: 404, message, .. })) if message.contains("this is a relay") => {
                Outcome::skipped(format!("it is a relay: read its stream with --url {}/events", target.base_url))
            }
            Err((transport, error)) => {
                let name = if transport == Transport::Sse { "SSE" } else { "WebSocket" };
                Outcome::failed(format!("{name}: {error}"), stream_hint(subject, target, &error))
            }
        }
    })
}

fn stream_hint(subject: &Subject, target: &Target, error: &Error) -> String {
    let doctor = |flag| subject.command.with(&[("only", Some("bridge-streams,bridge-rate")), flag]);
    match (error.status(), error) {
        (Some(401 | 403), _) | (_, Error::Token { .. }) => doctor(("token-file", Some("FILE"))),
        (_, Error::Setting(_)) => doctor(("allow-insecure", None)),
        _ => target.curl_with_token("-N", "/api/sse"),
    }
}

async fn heartbeat(target: &Target, transport: Transport) -> Result<(), (Transport, Error)> {
    let failed = |error| (transport, error);
    let client = target.client.clone().transport(transport).snapshot(false).build().map_err(failed)?;
    let mut events = client.events();
    loop {
        match events.next().await {
            Some(Ok(event)) if matches!(event.payload, Payload::Heartbeat(_)) => return Ok(()),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(failed(error)),
            None => return Err(failed(Error::Lost("the stream has ended".to_owned()))),
        }
    }
}

/// Path of a small response with rate limits.
const CONNECTIONS: &str = "/api/v1/connections";

pub(super) fn rate<'a>(subject: &'a Subject) -> BoxFuture<'a, Outcome> {
    with_target(subject, move |target: &'a Target| async move {
        let url = target.url(CONNECTIONS);
        // The builder refuses to send a credential over plain HTTP to another host.
        let token = target.client.clone().build().and_then(|client| client.token());
        let token = match token {
            Ok(token) => token,
            Err(error) => return Outcome::failed(error.to_string(), stream_hint(subject, target, &error)),
        };
        match get(&url, target.tls.clone(), token.as_deref()).await {
            Err(error) => Outcome::failed(format!("no answer: {error}"), target.curl_with_token("-i", CONNECTIONS)),
            Ok(response) => {
                let hint = target.curl_with_token("-si", CONNECTIONS) + " | grep -i ratelimit";
                judge_rate(response.status, &response.headers, &response.message(), hint)
            }
        }
    })
}

/// Judges an answer by `RateLimit` and `RateLimit-Policy` (docs/protocol.md#access).
fn judge_rate(status: StatusCode, headers: &HeaderMap, message: &str, hint: String) -> Outcome {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let number = |text: &str, key: &str| -> Option<u64> {
        text.split(';').find_map(|part| part.trim().strip_prefix(key)?.strip_prefix('=')?.parse().ok())
    };
    let (quota, left) = (number(text("ratelimit-policy"), "q"), number(text("ratelimit"), "r"));
    match (status, quota, left) {
        (StatusCode::TOO_MANY_REQUESTS, ..) => {
            let seconds = number(text("ratelimit"), "t").unwrap_or_default();
            Outcome::warning(format!("the limit is reached; requests are accepted in {seconds} s: {message}"), hint)
        }
        (StatusCode::NOT_FOUND, ..) => Outcome::skipped("this server has no /api/v1/connections: it is a relay"),
        (status, ..) if !status.is_success() => Outcome::failed(message, hint),
        (_, Some(quota), Some(left)) if left * 10 < quota => {
            Outcome::warning(format!("only {left} of {quota} requests a minute are left"), hint)
        }
        (_, Some(quota), Some(left)) => Outcome::passed(format!("{left} of {quota} requests a minute are left")),
        _ => Outcome::skipped("the answer states no rate limit"),
    }
}

fn with_target<'a, F>(subject: &'a Subject, run: impl FnOnce(&'a Target) -> F + Send + 'a) -> BoxFuture<'a, Outcome>
where
    F: Future<Output = Outcome> + Send + 'a,
{
    async move {
        match &subject.bridge {
            Some(target) => run(target).await,
            None => Outcome::skipped("no --url names a running bridge"),
        }
    }
    .boxed()
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    #[test]
    fn only_answers_in_the_form_of_a_bridge_count() {
        let judge = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            let response = Response { status, headers: HeaderMap::new(), body: body.to_owned() };
            format!("{:?}", judge_ready(&response, "http://b", "curl".to_owned(), "doctor".to_owned()))
        };
        for passed in ["[+] pods: live\n[+] boilerhouseclaims: live\nready\n", "[+] pods: live\n[i] mqtt: x\nready\n"] {
            assert!(judge(200, passed).contains("Passed"), "{passed}");
        }
        // A relay whose upstream is down.
        let down = judge(200, "[-] upstream: down\nready\n");
        assert!(down.contains("Failed") && down.contains("Warning") && down.contains("curl"), "{down}");
        let forbidden = judge(200, "[-] pods: down for 3 s: forbidden\n[+] boilerhouseclaims: live\nready\n");
        assert!(forbidden.contains("Warning") && forbidden.contains("doctor"), "{forbidden}");
        for other in ["", "ready", "a page with [-] in it", "[-] x\n<html>\nready", "[-] pods: down"] {
            let found = judge(200, other);
            assert!(found.contains("Error") && found.contains("is no bridge"), "{other:?}: {found}");
        }
        assert!(judge(503, "[-] pods: connecting\nnot ready: draining\n").contains("[-] pods: connecting; not ready"));
        assert!(judge(404, "[-] pods: down\nready\n").contains("/readyz: HTTP 404"));
    }

    #[test]
    fn rate_limits_are_read_from_the_headers() {
        let judge = |status: u16, left: &str| {
            let fields = [("ratelimit-policy", "\"default\";q=6000;w=60"), ("ratelimit", left)];
            let headers = fields.map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
            let outcome =
                judge_rate(StatusCode::from_u16(status).unwrap(), &HeaderMap::from_iter(headers), "m", String::new());
            format!("{outcome:?}")
        };
        assert!(judge(200, "\"default\";r=5999;t=0").contains("5999 of 6000"));
        assert!(judge(200, "\"default\";r=5999;t=0").contains("Passed"));
        let few = judge(200, "\"default\";r=12;t=0");
        assert!(few.contains("only 12 of 6000") && few.contains("Warning"), "{few}");
        let none = judge(429, "\"default\";r=0;t=12");
        assert!(none.contains("in 12 s") && none.contains("Warning"), "{none}");
        let denied = judge(401, "");
        assert!(denied.contains("Failed") && denied.contains("Error"), "{denied}");
        let unknown = judge_rate(StatusCode::OK, &HeaderMap::new(), "", String::new());
        assert!(format!("{unknown:?}").contains("Skipped"));
    }
}
