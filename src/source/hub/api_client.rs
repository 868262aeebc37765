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
    api::MANAGED_SELECTOR,
    event::{Resource, ResourceVersion, View},
    source::{
        decode::{self, Decode, Decoded, resource_version},
        error::{RequestInfo, UpstreamError},
    },
};

/// Bytes of an error answer that are read: a Status is a few hundred.
const ERROR_BYTES: usize = 64 << 10;

/// Requests about one resource.
pub(super) struct ResourceApi<'a, T> {
    client: &'a Client,
    pub(super) config: &'a Config,
    pub(super) metrics: &'a Metrics,
    request: Request,
    row: PhantomData<fn() -> T>,
}

#[derive(Deserialize)]
struct Page<T> {
    metadata: ListMeta,
    /// Null in a list of nothing.
    items: Option<Vec<T>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    #[serde(deserialize_with = "resource_version")]
    resource_version: ResourceVersion,
    #[serde(rename = "continue")]
    next: Option<String>,
}

/// Only a list's metadata.
#[derive(Deserialize)]
struct ListHead {
    metadata: ListMeta,
}

#[derive(Deserialize)]
struct ObjectUid {
    metadata: UidMetadata,
}

#[derive(Deserialize)]
struct UidMetadata {
    uid: String,
}

impl<'a, T: Decode> ResourceApi<'a, T> {
    pub(super) fn new(client: &'a Client, config: &'a Config, metrics: &'a Metrics) -> Self {
        let request = Request::new(T::url_path(&(), Some(&config.namespace)));
        ResourceApi { client, config, metrics, request, row: PhantomData }
    }

    pub(super) fn resource_label(&self) -> ResourceLabel {
        ResourceLabel { resource: T::KIND.plural() }
    }

    /// What is asked, for messages.
    pub(super) fn request_info(&self, verb: &'static str) -> RequestInfo {
        let resource = match T::KIND {
            Resource::Pods => "pods",
            Resource::Claims => "boilerhouseclaims.boilerhouse.dev",
        };
        let Config { namespace, server, .. } = self.config;
        RequestInfo { verb, resource: resource.into(), namespace: namespace.clone(), server: server.clone() }
    }

    /// The uid of the watched Namespace. Needs the verb `get` on that one object.
    pub(super) async fn namespace_uid(&self) -> Result<String, UpstreamError> {
        let namespace = &self.config.namespace;
        let request_info =
            RequestInfo { resource: format!("namespaces/{namespace}").into(), ..self.request_info("get") };
        let request = Request::new(Namespace::url_path(&(), None)).get(namespace, &GetParams::default());
        let body = self
            .read(&request_info, request, ERROR_BYTES.max(self.config.line_bytes), self.config.page_timeout)
            .await?;
        Ok(parse::<ObjectUid>(&body)?.metadata.uid)
    }

    /// Everything there is and the version it is true at, as of now (a quorum read).
    pub(super) async fn list(&self) -> Result<(Vec<View>, ResourceVersion), UpstreamError> {
        self.list_at(None).await
    }

    /// The same as of exactly this earlier version, where there is one.
    pub(super) async fn list_at(
        &self,
        exact: Option<ResourceVersion>,
    ) -> Result<(Vec<View>, ResourceVersion), UpstreamError> {
        let Config { page_objects, page_bytes, page_timeout, list_objects, .. } = *self.config;
        let mut views = Vec::new();
        let mut params = ListParams { limit: Some(page_objects), ..self.params() };
        if let Some(exact) = exact {
            params = params.at(&exact.to_string()).matching(VersionMatch::Exact);
        }
        loop {
            let body =
                self.read(&self.request_info("list"), self.request.list(&params), page_bytes, page_timeout).await?;
            self.metrics.lists.get_or_create(&self.resource_label()).inc();
            self.metrics.record_received(T::KIND, Instant::now());
            let page: Page<T> = parse(&body)?;
            views.extend(page.items.unwrap_or_default().into_iter().map(|row| self.view(row)));
            if views.len() > list_objects {
                return Err(UpstreamError::Decode(format!("a list of more than {list_objects} objects")));
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
    pub(super) async fn current_version(&self) -> Result<ResourceVersion, UpstreamError> {
        self.metrics.probes.get_or_create(&self.resource_label()).inc();
        let request = self.request.list(&ListParams { limit: Some(1), ..self.params() });
        let body =
            self.read(&self.request_info("list"), request, self.config.line_bytes, self.config.probe_timeout).await?;
        Ok(parse::<ListHead>(&body)?.metadata.resource_version)
    }

    /// Starts a watch, for so long, of what comes after `from`.
    pub(super) async fn watch(&self, from: ResourceVersion, lasts: Duration) -> Result<Body, UpstreamError> {
        let seconds = u32::try_from(lasts.as_secs()).unwrap_or(u32::MAX);
        let params = WatchParams {
            label_selector: self.params().label_selector,
            timeout: Some(seconds),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request_info = self.request_info("watch");
        let limit = self.config.start_timeout;
        let start = self.send(&request_info, self.request.watch(&params, &from.to_string()));
        let response = timeout(limit, start)
            .await
            .map_err(|_| UpstreamError::Timeout { request_info: request_info.clone(), limit })??;
        self.metrics.watches.get_or_create(&self.resource_label()).inc();
        Ok(response.into_body())
    }

    /// The view of a row; its odd fields are counted.
    pub(super) fn view(&self, row: T) -> View {
        let Decoded { view, malformed_fields: odd } = row.into_decoded();
        for field in odd {
            tracing::debug!(resource = T::KIND.plural(), name = view.name(), field, "left out: its type is odd");
            self.metrics.record_malformed(T::KIND, field);
        }
        view
    }

    fn params(&self) -> ListParams {
        let label_selector = match T::KIND {
            Resource::Pods => Some(MANAGED_SELECTOR.to_owned()),
            Resource::Claims => None,
        };
        ListParams { label_selector, ..ListParams::default() }
    }

    async fn read(
        &self,
        request_info: &RequestInfo,
        request: Result<http::Request<Vec<u8>>, RequestError>,
        bytes: usize,
        limit: Duration,
    ) -> Result<Bytes, UpstreamError> {
        let whole = async { collect(self.send(request_info, request).await?.into_body(), bytes).await };
        timeout(limit, whole).await.map_err(|_| UpstreamError::Timeout { request_info: request_info.clone(), limit })?
    }

    async fn send(
        &self,
        request_info: &RequestInfo,
        request: Result<http::Request<Vec<u8>>, RequestError>,
    ) -> Result<Response<Body>, UpstreamError> {
        let request = request
            .map_err(|error| UpstreamError::from_client_error(&kube::Error::BuildRequest(error), request_info))?;
        let response = self
            .client
            .send(request.map(Body::from))
            .await
            .map_err(|error| UpstreamError::from_client_error(&error, request_info))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        // What an error answer says is a help, not a need.
        let body = collect(body, ERROR_BYTES).await.unwrap_or_default();
        Err(UpstreamError::from_response(head.status, &head.headers, &body, request_info))
    }
}

async fn collect(body: Body, bytes: usize) -> Result<Bytes, UpstreamError> {
    match Limited::new(body, bytes).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(UpstreamError::Decode(format!("an answer of more than {bytes} bytes")))
        }
        Err(error) => Err(UpstreamError::ConnectionLost(error.to_string())),
    }
}

pub(super) fn parse<D: DeserializeOwned>(text: &[u8]) -> Result<D, UpstreamError> {
    serde_json::from_slice(text).map_err(|error| UpstreamError::from_json_error(&error))
}

/// One line of a watch.
pub(super) fn parse_line<T: Decode>(text: &[u8]) -> Result<WatchEvent<T>, UpstreamError> {
    decode::parse_watch_line(text).map_err(|error| UpstreamError::from_json_error(&error))
}
