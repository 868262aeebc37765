//! What was asked: a request without its body, and the ways to read its parameters.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderMap, HeaderValue, Method};
use warp::reply::Response;

use super::{
    Site,
    auth::Principal,
    error::{Code, Error},
    forwarded::Came,
};
use crate::event::projection::{Filter, Format, Lens, Types};

/// A request of somebody who may make it, and the site that it was made to. It cannot be printed: its headers and its query
/// hold credentials.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) site: Arc<Site>,
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) query: String,
    pub(super) came: Came,
    pub(super) principal: Principal,
    /// The variable segment of the path, decoded, where the route has one.
    pub(super) segment: Option<String>,
}

/// The query's parameters, each at most once. A ticket may be among them: they cannot be printed.
pub(super) struct Parameters(BTreeMap<String, String>);

impl Asked {
    /// The query, of which only these parameters are understood.
    ///
    /// # Errors
    /// 400 that names an unknown or repeated parameter and lists those that are accepted.
    pub(super) fn parameters(&self, accepted: &[&str]) -> Result<Parameters, Error> {
        let mut found = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(self.query.as_bytes()) {
            if !accepted.contains(&&*name) {
                let accepted = match accepted {
                    [] => "this endpoint takes none".to_owned(),
                    some => format!("accepted are {}", some.join(", ")),
                };
                return Err(Error::parameter(&name, &format!("unknown; {accepted}")));
            }
            if found.insert(name.clone().into_owned(), value.into_owned()).is_some() {
                return Err(Error::parameter(&name, "given more than once"));
            }
        }
        Ok(Parameters(found))
    }

    /// Checks `connectionId` against the one connection that this bridge has.
    ///
    /// # Errors
    /// 404 for another one.
    pub(super) fn check_connection(&self, parameters: &Parameters) -> Result<(), Error> {
        let Some(wanted) = parameters.get("connectionId") else { return Ok(()) };
        let own = self.site.feed.home().map(|home| home.connection_id.to_string());
        if own.as_deref() == Some(wanted) {
            return Ok(());
        }
        Err(Error::new(
            Code::NotFound,
            format!("there is no connection '{wanted}': leave connectionId out, this bridge has one"),
        ))
    }

    /// What this principal sees of everything that there is. Whatever is asked for is a part of it.
    pub(super) fn lens(&self, format: Format) -> Lens {
        let scope = self.principal.scope().clone();
        Lens { scope, filter: Filter::default(), types: Types::all(format), format }
    }
}

/// The answer to OPTIONS and to methods that a route does not have; `None` when it has this one.
pub(super) fn other_method(method: &Method, allowed: &'static str) -> Option<Response> {
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
    let error = Error::new(Code::MethodNotAllowed, message);
    Some(error.with(http::header::ALLOW, HeaderValue::from_static(allowed)).into_response())
}

impl Parameters {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// `params`; everything where it is left out.
    ///
    /// # Errors
    /// 400 that says what in it is wrong and what is accepted.
    pub(super) fn filter(&self) -> Result<Filter, Error> {
        let Some(text) = self.get("params") else { return Ok(Filter::default()) };
        Filter::parse(text).map_err(|problem| Error::parameter("params", &problem))
    }
}
