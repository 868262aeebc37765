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
        get::get,
    },
};

pub(super) fn ready<'a>(subject: &'a Subject) -> BoxFuture<'a, Outcome> {
    with_target(subject, |target: &'a Target| async move {
        let url = format!("{}/readyz?verbose", target.base_url);
        let hint = format!("curl -i '{url}'");
        match get(&url, target.tls.clone(), None).await {
            Err(error) => Outcome::failed(format!("no answer from {}: {error}", target.base_url), hint),
            Ok(response) => {
                let lines: Vec<&str> = response.body.lines().collect();
                match response.status {
                    // `[-]` marks a resource that the bridge cannot read now.
                    StatusCode::OK if response.body.contains("[-]") => Outcome::warning(lines.join("; "), hint),
                    StatusCode::OK if lines.last() == Some(&"ready") => Outcome::passed(lines.join("; ")),
                    StatusCode::OK => Outcome::failed(format!("{} answers, but is no bridge", target.base_url), hint),
                    StatusCode::SERVICE_UNAVAILABLE
                        if lines.last().is_some_and(|last| last.starts_with("not ready")) =>
                    {
                        Outcome::failed(lines.join("; "), hint)
                    }
                    _ => Outcome::failed(format!("/readyz: {}", response.message()), hint),
                }
            }
        }
    })
}

/// A stream without an initial state starts with a heartbeat.
pub(super) fn streams<'a>(subject: &'a Subject) -> BoxFuture<'a, Outcome> {
    with_target(subject, |target: &'a Target| async move {
        let start = Instant::now();
        let found = try_join(heartbeat(target, Transport::Sse), heartbeat(target, Transport::WebSocket)).await;
        match found {
            Ok(_) => {
                let millis = start.elapsed().as_millis();
                Outcome::passed(format!("SSE and WebSocket deliver a heartbeat within {millis} ms"))
            }
            Err((transport, error)) => {
                let name = if transport == Transport::Sse { "SSE" } else { "WebSocket" };
                Outcome::failed(format!("{name}: {error}"), stream_hint(target, &error))
            }
        }
    })
}

fn stream_hint(target: &Target, error: &Error) -> String {
    let doctor = format!("boilerhouse-bridge doctor --url {}", target.base_url);
    match error.status() {
        Some(401 | 403) => format!("{doctor} --token-file FILE"),
        _ => match error {
            Error::Setting(_) => format!("{doctor} --allow-insecure"),
            _ => format!("curl -N {}/api/sse", target.base_url),
        },
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

pub(super) fn rate<'a>(subject: &'a Subject) -> BoxFuture<'a, Outcome> {
    with_target(subject, |target: &'a Target| async move {
        let url = format!("{}/api/v1/connections", target.base_url);
        // The builder refuses to send a credential over plain HTTP to another host.
        let token = target.client.clone().build().and_then(|client| client.token());
        let token = match token {
            Ok(token) => token,
            Err(error) => return Outcome::failed(error.to_string(), stream_hint(target, &error)),
        };
        match get(&url, target.tls.clone(), token.as_deref()).await {
            Err(error) => Outcome::failed(format!("no answer: {error}"), format!("curl -i {url}")),
            Ok(response) => judge_rate(response.status, &response.headers, &response.message(), &url),
        }
    })
}

/// Judges an answer by `RateLimit` and `RateLimit-Policy` (docs/protocol.md#access).
fn judge_rate(status: StatusCode, headers: &HeaderMap, message: &str, url: &str) -> Outcome {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let number = |text: &str, key: &str| -> Option<u64> {
        text.split(';').find_map(|part| part.trim().strip_prefix(key)?.strip_prefix('=')?.parse().ok())
    };
    let (quota, left) = (number(text("ratelimit-policy"), "q"), number(text("ratelimit"), "r"));
    let hint = format!("curl -si {url} | grep -i ratelimit");
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
    fn rate_limits_are_read_from_the_headers() {
        let judge = |status: u16, left: &str| {
            let fields = [("ratelimit-policy", "\"default\";q=6000;w=60"), ("ratelimit", left)];
            let headers = fields.map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
            let outcome = judge_rate(StatusCode::from_u16(status).unwrap(), &HeaderMap::from_iter(headers), "m", "u");
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
        let unknown = judge_rate(StatusCode::OK, &HeaderMap::new(), "", "u");
        assert!(format!("{unknown:?}").contains("Skipped"));
    }
}
