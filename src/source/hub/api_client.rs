//! The hub's requests: get the Namespace, list, probe, start a watch. Each has a time and a size that it may take.

use std::{marker::PhantomData, time::Duration};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Client,
    client::Body,
    core::{
        Request, Resource as _, WatchEvent,
        params::{GetParams, ListParams, VersionMatch, WatchParams},
        request::Error as RequestError,
    },
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::{Instant, timeout};

use super::{Config, Metrics, metrics::ResourceLabel};
use crate::{
    event::{Resource, ResourceVersion, View},
    source::{
        crd::MANAGED_SELECTOR,
        decode::{self, Row, Seen, version},
        error::{Ask, Trouble},
    },
};

/// Bytes of an error answer that are read: a Status is a few hundred.
const ERROR_BYTES: usize = 64 << 10;

/// Requests about one resource.
pub(super) struct Api<'a, T> {
    client: &'a Client,
    pub(super) config: &'a Config,
    pub(super) metrics: &'a Metrics,
    request: Request,
    row: PhantomData<fn() -> T>,
}

#[derive(Deserialize)]
struct Page<T> {
    metadata: PageMeta,
    /// Null in a list of nothing.
    items: Option<Vec<T>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    #[serde(deserialize_with = "version")]
    resource_version: ResourceVersion,
    #[serde(rename = "continue")]
    next: Option<String>,
}

/// Only a list's metadata.
#[derive(Deserialize)]
struct PageHead {
    metadata: PageMeta,
}

#[derive(Deserialize)]
struct Identified {
    metadata: Identity,
}

#[derive(Deserialize)]
struct Identity {
    uid: String,
}

impl<'a, T: Row> Api<'a, T> {
    pub(super) fn new(client: &'a Client, config: &'a Config, metrics: &'a Metrics) -> Self {
        let request = Request::new(T::url_path(&(), Some(&config.namespace)));
        Api { client, config, metrics, request, row: PhantomData }
    }

    pub(super) fn label(&self) -> ResourceLabel {
        ResourceLabel { resource: T::KIND.resource() }
    }

    /// What is asked, for messages.
    pub(super) fn ask(&self, verb: &'static str) -> Ask {
        let resource = match T::KIND {
            Resource::Instance => "pods",
            Resource::Claim => "boilerhouseclaims.boilerhouse.dev",
        };
        let Config { namespace, server, .. } = self.config;
        Ask { verb, resource: resource.into(), namespace: namespace.clone(), server: server.clone() }
    }

    /// The uid of the watched Namespace. Needs the verb `get` on that one object.
    pub(super) async fn home(&self) -> Result<String, Trouble> {
        let namespace = &self.config.namespace;
        let ask = Ask { resource: format!("namespaces/{namespace}").into(), ..self.ask("get") };
        let request = Request::new(Namespace::url_path(&(), None)).get(namespace, &GetParams::default());
        let body = self.read(&ask, request, ERROR_BYTES.max(self.config.line_bytes), self.config.page_timeout).await?;
        Ok(parse::<Identified>(&body)?.metadata.uid)
    }

    /// Everything there is and the version it is true at, as of now (a quorum read).
    pub(super) async fn list(&self) -> Result<(Vec<View>, ResourceVersion), Trouble> {
        self.list_at(None).await
    }

    /// The same as of exactly this earlier version, where there is one.
    pub(super) async fn list_at(
        &self,
        exact: Option<ResourceVersion>,
    ) -> Result<(Vec<View>, ResourceVersion), Trouble> {
        let Config { page_objects, page_bytes, page_timeout, list_objects, .. } = *self.config;
        let mut views = Vec::new();
        let mut params = ListParams { limit: Some(page_objects), ..self.params() };
        if let Some(exact) = exact {
            params = params.at(&exact.to_string()).matching(VersionMatch::Exact);
        }
        loop {
            let body = self.read(&self.ask("list"), self.request.list(&params), page_bytes, page_timeout).await?;
            self.metrics.lists.get_or_create(&self.label()).inc();
            self.metrics.heard(T::KIND, Instant::now());
            let page: Page<T> = parse(&body)?;
            views.extend(page.items.unwrap_or_default().into_iter().map(|row| self.view(row)));
            if views.len() > list_objects {
                return Err(Trouble::Unreadable(format!("a list of more than {list_objects} objects")));
            }
            match page.metadata.next {
                // The token says at which version the list goes on.
                Some(next) if !next.is_empty() => {
                    params = ListParams { limit: Some(page_objects), continue_token: Some(next), ..self.params() };
                }
                _ => return Ok((views, page.metadata.resource_version)),
            }
        }
    }

    /// The version that the API server is at now, by a list of one object.
    pub(super) async fn version(&self) -> Result<ResourceVersion, Trouble> {
        self.metrics.probes.get_or_create(&self.label()).inc();
        let request = self.request.list(&ListParams { limit: Some(1), ..self.params() });
        let body = self.read(&self.ask("list"), request, self.config.line_bytes, self.config.probe_timeout).await?;
        Ok(parse::<PageHead>(&body)?.metadata.resource_version)
    }

    /// Starts a watch, for so long, of what comes after `from`.
    pub(super) async fn watch(&self, from: ResourceVersion, lasts: Duration) -> Result<Body, Trouble> {
        let seconds = u32::try_from(lasts.as_secs()).unwrap_or(u32::MAX);
        let params = WatchParams {
            label_selector: self.params().label_selector,
            timeout: Some(seconds),
            bookmarks: true,
            ..WatchParams::default()
        };
        let ask = self.ask("watch");
        let limit = self.config.start_timeout;
        let start = self.send(&ask, self.request.watch(&params, &from.to_string()));
        let response = timeout(limit, start).await.map_err(|_| Trouble::NoAnswer { ask: ask.clone(), limit })??;
        self.metrics.watches.get_or_create(&self.label()).inc();
        Ok(response.into_body())
    }

    /// The view of a row; its odd fields are counted.
    pub(super) fn view(&self, row: T) -> View {
        let Seen { view, odd } = row.into_seen();
        for field in odd {
            tracing::debug!(resource = T::KIND.resource(), name = view.name(), field, "left out: its type is odd");
            self.metrics.odd(T::KIND, field);
        }
        view
    }

    fn params(&self) -> ListParams {
        let label_selector = match T::KIND {
            Resource::Instance => Some(MANAGED_SELECTOR.to_owned()),
            Resource::Claim => None,
        };
        ListParams { label_selector, ..ListParams::default() }
    }

    async fn read(
        &self,
        ask: &Ask,
        request: Result<http::Request<Vec<u8>>, RequestError>,
        bytes: usize,
        limit: Duration,
    ) -> Result<Bytes, Trouble> {
        let whole = async { collect(self.send(ask, request).await?.into_body(), bytes).await };
        timeout(limit, whole).await.map_err(|_| Trouble::NoAnswer { ask: ask.clone(), limit })?
    }

    async fn send(
        &self,
        ask: &Ask,
        request: Result<http::Request<Vec<u8>>, RequestError>,
    ) -> Result<Response<Body>, Trouble> {
        let request = request.map_err(|error| Trouble::of(&kube::Error::BuildRequest(error), ask))?;
        let response = self.client.send(request.map(Body::from)).await.map_err(|error| Trouble::of(&error, ask))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        // What an error answer says is a help, not a need.
        let body = collect(body, ERROR_BYTES).await.unwrap_or_default();
        Err(Trouble::answered(head.status, &head.headers, &body, ask))
    }
}

async fn collect(body: Body, bytes: usize) -> Result<Bytes, Trouble> {
    match Limited::new(body, bytes).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Trouble::Unreadable(format!("an answer of more than {bytes} bytes")))
        }
        Err(error) => Err(Trouble::Cut(error.to_string())),
    }
}

pub(super) fn parse<D: DeserializeOwned>(text: &[u8]) -> Result<D, Trouble> {
    serde_json::from_slice(text).map_err(|error| Trouble::unreadable(&error))
}

/// One line of a watch.
pub(super) fn line<T: Row>(text: &[u8]) -> Result<WatchEvent<T>, Trouble> {
    decode::line(text).map_err(|error| Trouble::unreadable(&error))
}
