//! An admitted request without its body, and its parameters.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use warp::reply::Response;

use super::{
    app::{App, ServedFeed},
    auth::Principal,
    error::{ApiError, ErrorCode},
    forwarded::ClientInfo,
    rate_limit::StreamSlot,
    stream::{Endpoint, StreamPermit},
    unavailable::{Unavailable, failures, not_ready},
};
use crate::{
    event::{
        NamespaceId,
        projection::{EventFormat, EventTypes, Filter, Projection},
    },
    traces::RequestSpan,
};

/// An admitted request and the application that answers it.
///
/// It has no `Debug`, because its headers and its query contain credentials.
pub(super) struct ApiRequest<C = ServedFeed> {
    pub(super) app: Arc<App<C>>,
    pub(super) method: Method,
    pub(super) version: Version,
    pub(super) headers: HeaderMap,
    pub(super) query: String,
    pub(super) client: ClientInfo,
    pub(super) principal: Principal,
    /// The decoded variable segment of the path, if the route has one.
    pub(super) path_param: Option<String>,
    pub(super) span: RequestSpan,
}

/// The parameters of a query, each at most once. It has no `Debug`, because a stream ticket may be among them.
pub(super) struct QueryParams(BTreeMap<String, String>);

impl<C> ApiRequest<C> {
    /// Parses the query. Names that begin with `_` are ignored, because clients add one with a changing value to pass caches.
    ///
    /// # Errors
    /// 400 that names an unknown or repeated parameter and lists the accepted ones.
    pub(super) fn parameters(&self, accepted: &[&str]) -> Result<QueryParams, ApiError> {
        let mut parameters = BTreeMap::new();
        let parsed = form_urlencoded::parse(self.query.as_bytes());
        for (name, value) in parsed.filter(|(name, _)| !name.starts_with('_')) {
            if !accepted.contains(&&*name) {
                let accepted = match accepted {
                    [] => "this endpoint has no parameters".to_owned(),
                    names => format!("accepted: {}", names.join(", ")),
                };
                return Err(ApiError::parameter(&name, &format!("unknown; {accepted}")));
            }
            if parameters.insert(name.clone().into_owned(), value.into_owned()).is_some() {
                return Err(ApiError::parameter(&name, "repeated; send it once"));
            }
        }
        Ok(QueryParams(parameters))
    }

    /// Returns a permit for one more stream, and the slot that it takes of the caller.
    ///
    /// # Errors
    /// Too many streams are open, of all callers or of this one. Where credentials are configured, this is earlier for a
    /// caller without one.
    pub(super) fn acquire_stream(
        &self,
        endpoint: &'static Endpoint,
    ) -> Result<(StreamPermit, Option<StreamSlot>), Unavailable> {
        let App { streams, auth, rate_limits, .. } = &*self.app;
        let permit = if self.principal.is_anonymous() && !auth.allows_anonymous() {
            streams.try_acquire_unreserved(endpoint).ok_or(Unavailable::TooManyAnonymousStreams)?
        } else {
            streams.try_acquire(endpoint).ok_or(Unavailable::TooManyStreams)?
        };
        Ok((permit, rate_limits.open_stream(&self.principal.caller)?))
    }

    /// Adds the span of the stream that starts now. `resumes` is whether the client named where the stream continues.
    pub(super) fn traced(&self, permit: StreamPermit, resumes: bool) -> StreamPermit {
        let Endpoint { path, transport } = permit.endpoint();
        permit.with_span(self.span.stream(path, transport.label(), resumes))
    }
}

impl ApiRequest {
    /// Checks `connectionId` against the one connection of this bridge.
    ///
    /// # Errors
    /// 404 for another id. 503 while the own id is unknown, because the Namespace has not been read.
    pub(super) fn resolve_connection(&self, parameters: &QueryParams) -> Result<(), ApiError> {
        let Some(requested) = parameters.get("connectionId") else { return Ok(()) };
        if self.namespace()?.connection_id.to_string() == requested {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorCode::NotFound,
            format!("no such connection: '{requested}'; omit connectionId, this bridge has one connection"),
        ))
    }

    /// Returns the watched namespace.
    ///
    /// # Errors
    /// 503 until the API server has returned the uid of the Namespace.
    pub(super) fn namespace(&self) -> Result<NamespaceId, ApiError> {
        let feed = &self.app.content.feed;
        let failed = || not_ready("the Namespace has not been read yet", failures(feed).as_deref());
        feed.namespace().ok_or_else(failed)
    }

    /// Returns the projection of everything that the principal may see. A filter of the request can only reduce it.
    pub(super) fn base_projection(&self, format: EventFormat) -> Projection {
        let scope = self.principal.scope().clone();
        Projection { scope, filter: Filter::default(), types: EventTypes::all(format), format }
    }
}

/// Returns the error for a method that the route does not allow, or `None` for an allowed one. `allowed` is the value of the
/// `Allow` header.
pub(super) fn method_error(method: &Method, allowed: &'static str) -> Option<ApiError> {
    if allowed.split(", ").any(|name| name == method.as_str()) {
        return None;
    }
    let message = format!("method {method} is not allowed; allowed methods: {allowed}");
    let error = ApiError::new(ErrorCode::MethodNotAllowed, message);
    Some(error.with(header::ALLOW, HeaderValue::from_static(allowed)))
}

/// Returns the response to OPTIONS. `allowed` is the value of the `Allow` header.
pub(super) fn options_response(allowed: &'static str) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

impl QueryParams {
    /// Returns the value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Returns the filter in `params`, or the one that matches everything if `params` is missing.
    ///
    /// # Errors
    /// 400 that names the mistake and lists what is accepted.
    pub(super) fn filter(&self) -> Result<Filter, ApiError> {
        let Some(text) = self.get("params") else { return Ok(Filter::default()) };
        Filter::parse(text).map_err(|error| ApiError::parameter("params", &error))
    }
}
