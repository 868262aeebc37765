//! The files of the dashboard and the JavaScript client, embedded in the binary, and the published schemas. They contain no
//! data of a platform.
//!
//! Guarantees: the policy of every file allows scripts, styles and connections of the bridge itself only, and nothing inline.

use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use warp::reply::Response;

use super::etag;
use crate::{
    event::hash::sha256_prefix,
    schema::{asyncapi, messages, openapi},
};

const HTML: &str = "text/html; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// `connect-src 'self'` allows WebSockets of the same host too (Content Security Policy Level 3, section 6.7.2.8).
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; \
     form-action 'self'; frame-ancestors 'none'",
);

/// One file.
#[derive(Debug)]
pub(crate) struct Asset {
    /// Below `/assets/`; the page and the client have paths of their own.
    name: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
    /// It follows from the bytes, so that all replicas of a release have the same one.
    tag: String,
}

/// Reads a file of the dashboard at compile time.
macro_rules! file {
    ($content_type:ident, $name:literal) => {
        asset($name, $content_type, include_bytes!(concat!("assets/dashboard/", $name)))
    };
}

static PAGE: LazyLock<Asset> = LazyLock::new(|| file!(HTML, "index.html"));
static CLIENT: LazyLock<Asset> =
    LazyLock::new(|| asset("client.js", JAVASCRIPT, include_bytes!("../../clients/js/client.js")));
static FILES: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    vec![
        file!(JAVASCRIPT, "app.js"),
        file!(JAVASCRIPT, "detail.js"),
        file!(JAVASCRIPT, "events.js"),
        file!(JAVASCRIPT, "format.js"),
        file!(JAVASCRIPT, "grid.js"),
        file!(JAVASCRIPT, "guard.js"),
        file!(JAVASCRIPT, "header.js"),
        file!(JAVASCRIPT, "help.js"),
        file!(JAVASCRIPT, "html.js"),
        file!(JAVASCRIPT, "instances.js"),
        file!(JAVASCRIPT, "location.js"),
        file!(JAVASCRIPT, "parts.js"),
        file!(JAVASCRIPT, "pools.js"),
        file!(JAVASCRIPT, "signin.js"),
        file!(JAVASCRIPT, "status.js"),
        file!(JAVASCRIPT, "store.js"),
        file!(JAVASCRIPT, "tenants.js"),
        file!(JAVASCRIPT, "vendor/htm.js"),
        file!(JAVASCRIPT, "vendor/preact.js"),
        file!(TEXT, "vendor/htm.LICENSE"),
        file!(TEXT, "vendor/preact.LICENSE"),
        file!(CSS, "style.css"),
        file!(SVG, "icon.svg"),
    ]
});

static OPENAPI: LazyLock<Asset> = LazyLock::new(|| asset("openapi.json", JSON, openapi::text().as_bytes()));
static ASYNCAPI: LazyLock<Asset> = LazyLock::new(|| asset("asyncapi.json", JSON, asyncapi::text().as_bytes()));
/// By the type of the message.
static SCHEMAS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    let named = messages::names().filter_map(|name| messages::file(name).map(|text| (name, text)));
    named.map(|(name, text)| asset(name, JSON, text.as_bytes())).collect()
});

fn asset(name: &'static str, content_type: &'static str, bytes: &'static [u8]) -> Asset {
    Asset { name, content_type, bytes, tag: format!("\"{:016x}\"", sha256_prefix(bytes)) }
}

/// Returns the dashboard.
pub(crate) fn page() -> &'static Asset {
    &PAGE
}

/// Returns the JavaScript client.
pub(crate) fn client() -> &'static Asset {
    &CLIENT
}

/// Returns the OpenAPI document.
pub(crate) fn openapi() -> &'static Asset {
    &OPENAPI
}

/// Returns the AsyncAPI document.
pub(crate) fn asyncapi() -> &'static Asset {
    &ASYNCAPI
}

/// Returns the schema of the messages of this type.
pub(crate) fn schema(message_type: &str) -> Option<&'static Asset> {
    SCHEMAS.iter().find(|asset| asset.name == message_type)
}

/// Returns a file below `/assets/`.
pub(crate) fn find(name: &str) -> Option<&'static Asset> {
    FILES.iter().find(|asset| asset.name == name)
}

impl Asset {
    /// Returns the file, or 304 if the client has it. A client asks each time, because the next release has other files.
    pub(crate) fn respond(&self, request_headers: &HeaderMap) -> Response {
        let mut response = Response::default();
        if etag::matches(request_headers, &self.tag) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        } else {
            response = Response::new(Bytes::from_static(self.bytes).into());
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        }
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
        etag::insert(headers, &self.tag);
        response
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn folder() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/assets/dashboard")
    }

    #[test]
    fn every_file_of_the_dashboard_is_embedded() {
        let mut names = Vec::new();
        for below in ["", "vendor/"] {
            for entry in std::fs::read_dir(folder().join(below)).unwrap() {
                let entry = entry.unwrap();
                let name = format!("{below}{}", entry.file_name().to_str().unwrap());
                let is_served = name != "index.html" && !name.ends_with("README.md");
                if entry.file_type().unwrap().is_file() && is_served {
                    names.push(name);
                }
            }
        }
        names.sort();
        let mut embedded: Vec<&str> = FILES.iter().map(|asset| asset.name).collect();
        embedded.sort_unstable();
        assert_eq!(names, embedded);
    }

    /// The page works below every path, and its policy stops everything inline.
    #[test]
    fn files_have_relative_urls_and_nothing_inline() {
        let page = std::str::from_utf8(PAGE.bytes).unwrap();
        for part in page.split(['"', '\'']).filter(|part| part.contains('/') && !part.contains(['<', ' '])) {
            assert!(!part.starts_with('/') && !part.contains("//"), "{part}");
        }
        for inline in ["<style", "style=", "<script>", "javascript:"] {
            assert!(!page.contains(inline), "{inline}");
        }
        let handler = page.split_whitespace().find(|word| word.starts_with("on") && word.contains('='));
        assert_eq!(handler, None);
        for asset in FILES.iter().filter(|asset| asset.name.ends_with(".js") && !asset.name.starts_with("vendor/")) {
            let text = std::str::from_utf8(asset.bytes).unwrap();
            for wrong in [
                "innerHTML",
                "dangerouslySetInnerHTML",
                "insertAdjacentHTML",
                "eval(",
                "new Function",
                "fetch(\"/",
                "from \"/",
            ] {
                assert!(!text.contains(wrong), "{} contains {wrong}", asset.name);
            }
        }
    }
}
