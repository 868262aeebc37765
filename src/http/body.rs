//! The body of a request, read with a bound on its bytes and its time.
//!
//! Must not import: endpoints.

use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt, stream::BoxStream};
use http::{HeaderMap, header};
use tokio::time::timeout;

use super::error::{ApiError, ErrorCode};

/// Maximum time in which the body of a request must arrive: 10 s.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum bytes and time of the rest of a body that is read only so that the client sees the answer: 1 MiB, 1 s. Without that
/// a client that is still sending gets a reset instead.
const DISCARDED_BYTES: usize = 1 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// The chunks of a body.
pub(super) type Body = BoxStream<'static, Result<Bytes, warp::Error>>;

/// Returns the body of a request as the endpoints read it.
pub(super) fn boxed(stream: impl Stream<Item = Result<impl Buf, warp::Error>> + Send + 'static) -> Body {
    stream.map(|chunk| chunk.map(|mut chunk| chunk.copy_to_bytes(chunk.remaining()))).boxed()
}

/// Returns the bytes that a body has by its `Content-Length`, or `max` without one.
///
/// # Errors
/// 413 if they are more than `max`.
pub(super) fn announced_bytes(headers: &HeaderMap, max: usize) -> Result<usize, ApiError> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    match length.map(usize::try_from) {
        None => Ok(max),
        Some(Ok(length)) if length <= max => Ok(length),
        Some(_) => Err(too_large(max)),
    }
}

/// Checks that a body is JSON by its headers: `Content-Type: application/json`, without a `Content-Encoding`. The only
/// parameter that may be there is `charset=utf-8`.
///
/// # Errors
/// 415.
pub(super) fn check_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let unsupported = |message: &str| ApiError::new(ErrorCode::UnsupportedMediaType, message);
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let is_json = types.next().and_then(|value| value.to_str().ok()).is_some_and(|value| {
        let mut parts = value.split(';').map(str::trim);
        parts.next().is_some_and(|name| name.eq_ignore_ascii_case("application/json"))
            && parts.filter(|parameter| !parameter.is_empty()).all(|parameter| {
                parameter.split_once('=').is_some_and(|(name, value)| {
                    name.eq_ignore_ascii_case("charset") && value.trim_matches('"').eq_ignore_ascii_case("utf-8")
                })
            })
    });
    if !is_json || types.next().is_some() {
        return Err(unsupported("the body must be JSON: send it with 'Content-Type: application/json'"));
    }
    let encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    if encodings.into_iter().any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(unsupported("a body with a Content-Encoding is not accepted: send it uncompressed"));
    }
    Ok(())
}

/// Checks that a client accepts an answer in JSON.
///
/// # Errors
/// 406 if `Accept` excludes it.
pub(super) fn check_accepts_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut ranges = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|range| !range.is_empty())
        .peekable();
    if ranges.peek().is_none() {
        return Ok(());
    }
    // The most specific range decides (RFC 9110, section 12.5.1).
    let best = ranges.filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let specificity = match parts.next()?.to_ascii_lowercase().as_str() {
            "application/json" => 2,
            "application/*" => 1,
            "*/*" => 0,
            _ => return None,
        };
        let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(Ok(1.0), str::parse::<f32>);
        Some((specificity, quality.unwrap_or(1.0) > 0.0))
    });
    match best.max() {
        Some((_, true)) => Ok(()),
        Some((_, false)) | None => Err(ApiError::new(
            ErrorCode::NotAcceptable,
            "the answer is JSON: accept application/json, or send no Accept",
        )),
    }
}

/// Reads a body of at most `max` bytes.
///
/// # Errors
/// 413 for more bytes. 408 if it has not arrived after 10 s. 400 if the client ends the connection before.
pub(super) async fn read(body: &mut Body, max: usize, announced: usize) -> Result<Vec<u8>, ApiError> {
    let read = async {
        let mut bytes = Vec::with_capacity(announced.min(16 << 10));
        while let Some(chunk) = body.next().await {
            let chunk =
                chunk.map_err(|_| ApiError::new(ErrorCode::BadRequest, "the body ended early: send it completely"))?;
            if bytes.len() + chunk.len() > max {
                return Err(too_large(max));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    timeout(READ_TIMEOUT, read).await.unwrap_or_else(|_| {
        let message = format!("the body has not arrived after {} s: send it at once", READ_TIMEOUT.as_secs());
        Err(ApiError::new(ErrorCode::RequestTimeout, message))
    })
}

/// Reads the rest of a body that is not used.
pub(super) async fn discard(body: &mut Body) {
    let discarded = async {
        let mut bytes = 0;
        while let Some(Ok(chunk)) = body.next().await {
            bytes += chunk.len();
            if bytes > DISCARDED_BYTES {
                return;
            }
        }
    };
    // Whether the rest has arrived does not matter.
    let _ = timeout(DISCARD_TIMEOUT, discarded).await;
}

fn too_large(max: usize) -> ApiError {
    ApiError::new(ErrorCode::PayloadTooLarge, format!("the body is too large; the maximum is {max} bytes"))
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http::HeaderName;

    use super::*;

    fn headers(all: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    fn status(result: Result<impl std::fmt::Debug, ApiError>) -> u16 {
        result.map_or_else(|error| error.into_response().status().as_u16(), |_| 200)
    }

    #[test]
    fn only_json_without_an_encoding_is_accepted() {
        use header::{CONTENT_ENCODING, CONTENT_TYPE};
        let json = (CONTENT_TYPE, "application/json");
        for (all, expected) in [
            (vec![json.clone()], 200),
            (vec![(CONTENT_TYPE, "Application/JSON; Charset=\"UTF-8\"")], 200),
            (vec![json.clone(), (CONTENT_ENCODING, "identity")], 200),
            (vec![], 415),
            (vec![(CONTENT_TYPE, "text/plain")], 415),
            (vec![(CONTENT_TYPE, "application/x-www-form-urlencoded")], 415),
            (vec![(CONTENT_TYPE, "application/json; charset=utf-16")], 415),
            (vec![(CONTENT_TYPE, "application/jsonp")], 415),
            (vec![(CONTENT_TYPE, "application/merge-patch+json")], 415),
            (vec![json.clone(), json.clone()], 415),
            (vec![json, (CONTENT_ENCODING, "gzip")], 415),
        ] {
            assert_eq!(status(check_json(&headers(&all))), expected, "{all:?}");
        }
    }

    #[test]
    fn accept_must_include_json() {
        for (accept, expected) in [
            ("*/*", 200),
            ("", 200),
            ("application/json", 200),
            ("text/html, application/*;q=0.1", 200),
            ("text/html", 406),
            ("application/json;q=0, */*", 406),
            ("application/json;q=0.0", 406),
            ("*/*;q=0, application/json", 200),
        ] {
            assert_eq!(status(check_accepts_json(&headers(&[(header::ACCEPT, accept)]))), expected, "{accept}");
        }
        assert_eq!(status(check_accepts_json(&HeaderMap::new())), 200);
    }

    #[tokio::test(start_paused = true)]
    async fn body_is_bounded_in_bytes_and_time() {
        let chunks = |count: usize| stream::iter((0..count).map(|_| Ok(Bytes::from_static(&[b'x'; 100])))).boxed();
        assert_eq!(read(&mut chunks(3), 300, 300).await.unwrap().len(), 300);
        assert_eq!(status(read(&mut chunks(4), 300, 0).await), 413);
        assert_eq!(status(read(&mut stream::pending().boxed(), 300, 0).await), 408);
        let length = |text| headers(&[(header::CONTENT_LENGTH, text)]);
        assert_eq!(announced_bytes(&length("7"), 300).unwrap(), 7);
        assert_eq!(announced_bytes(&HeaderMap::new(), 300).unwrap(), 300);
        for text in ["301", "18446744073709551615"] {
            assert_eq!(status(announced_bytes(&length(text), 300)), 413);
        }
    }
}
