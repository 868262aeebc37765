//! What the span of a request reads of its head.

use std::net::IpAddr;

use http::{HeaderMap, Version};

/// The head of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// The method, or `None` if it is not one of the known ones.
    pub method: Option<&'static str>,
    /// The path without the query.
    pub path: &'a str,
    /// The version of HTTP.
    pub version: Version,
    /// Of them, `User-Agent` and `traceparent` are read.
    pub headers: &'a HeaderMap,
    /// The address of the client.
    pub address: IpAddr,
    /// Whether the request was encrypted.
    pub secure: bool,
}
