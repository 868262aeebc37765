//! What was asked: a request without its body, and the ways to read its parameters.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderMap, HeaderValue, Method};
use warp::reply::Response;

use super::{
    app::App,
    auth::Principal,
    error::{ApiError, ErrorCode},
    forwarded::ClientInfo,
};
use crate::event::projection::{EventFormat, EventTypes, Filter, Projection};

/// A request of somebody who may make it, and the site that it was made to. It cannot be printed: its headers and its query
/// hold credentials.
#[derive(Clone)]
pub(super) struct ApiRequest {
    pub(super) app: Arc<App>,
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) query: String,
    pub(super) client: ClientInfo,
    pub(super) principal: Principal,
    /// The variable segment of the path, decoded, where the route has one.
    pub(super) path_param: Option<String>,
}

/// The query's parameters, each at most once. A ticket may be among them: they cannot be printed.
pub(super) struct QueryParams(BTreeMap<String, String>);

impl ApiRequest {
    /// The query, of which only these parameters are understood.
    ///
    /// # Errors
    /// 400 that names an unknown or repeated parameter and lists those that are accepted.
    pub(super) fn parameters(&self, accepted: &[&str]) -> Result<QueryParams, ApiError> {
        let mut found = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(self.query.as_bytes()) {
            if !accepted.contains(&&*name) {
                let accepted = match accepted {
                    [] => "this endpoint takes none".to_owned(),
                    some => format!("accepted are {}", some.join(", ")),
                };
                return Err(ApiError::parameter(&name, &format!("unknown; {accepted}")));
            }
            if found.insert(name.clone().into_owned(), value.into_owned()).is_some() {
                return Err(ApiError::parameter(&name, "given more than once"));
            }
        }
        Ok(QueryParams(found))
    }

    /// Checks `connectionId` against the one connection that this bridge has.
    ///
    /// # Errors
    /// 404 for another one.
    pub(super) fn resolve_connection(&self, parameters: &QueryParams) -> Result<(), ApiError> {
        let Some(wanted) = parameters.get("connectionId") else { return Ok(()) };
        let own = self.app.feed.namespace().map(|home| home.connection_id.to_string());
        if own.as_deref() == Some(wanted) {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorCode::NotFound,
            format!("there is no connection '{wanted}': leave connectionId out, this bridge has one"),
        ))
    }

    /// What this principal sees of everything that there is. Whatever is asked for is a part of it.
    pub(super) fn base_projection(&self, format: EventFormat) -> Projection {
        let scope = self.principal.scope().clone();
        Projection { scope, filter: Filter::default(), types: EventTypes::all(format), format }
    }
}

/// The answer to OPTIONS and to methods that a route does not have; `None` when it has this one.
pub(super) fn method_response(method: &Method, allowed: &'static str) -> Option<Response> {
    if *method == Method::OPTIONS {
        let mut response = Response::default();
        *response.status_mut() = http::StatusCode::NO_CONTENT;
        response.headers_mut().insert(http::header::ALLOW, HeaderValue::from_static(allowed));
        return Some(response);
    }
    if allowed.split(", ").any(|one| one == method.as_str()) {
        return None;
    }
    let message = format!("{method} is not possible here: {allowed} are");
    let error = ApiError::new(ErrorCode::MethodNotAllowed, message);
    Some(error.with(http::header::ALLOW, HeaderValue::from_static(allowed)).into_response())
}

impl QueryParams {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// `params`; everything where it is left out.
    ///
    /// # Errors
    /// 400 that says what in it is wrong and what is accepted.
    pub(super) fn filter(&self) -> Result<Filter, ApiError> {
        let Some(text) = self.get("params") else { return Ok(Filter::default()) };
        Filter::parse(text).map_err(|error| ApiError::parameter("params", &error))
    }
}
