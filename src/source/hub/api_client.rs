//! The requests of the hub: get the Namespace, list, probe, start a watch.
//!
//! Guarantees: each request has a time limit and each response a size limit (docs/limits.md). Nothing is retried here.

use std::{marker::PhantomData, time::Duration};

use bytes::Bytes;
use http::Response;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Client,
    client::Body,
    core::{
        Request, Resource as _,
        params::{GetParams, ListParams, VersionMatch, WatchParams},
        request::Error as RequestError,
    },
};
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use super::{config::Config, metrics::Metrics};
use crate::{
    api::MANAGED_SELECTOR,
    event::{Resource, ResourceVersion, View},
    source::{
        answer::{self, ListMeta, ListVersion},
        decode::{Decode, Decoded},
        error::{RequestInfo, UpstreamError},
        list_limits::ListUsage,
    },
};

/// The requests about one resource.
pub(super) struct ResourceApi<'a, T> {
    client: &'a Client,
    pub(super) config: &'a Config,
    pub(super) metrics: &'a Metrics,
    request: Request,
    object: PhantomData<fn() -> T>,
}

#[derive(Deserialize)]
struct Page<T> {
    metadata: ListMeta,
    /// Null in an empty list.
    items: Option<Vec<T>>,
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
        ResourceApi { client, config, metrics, request, object: PhantomData }
    }

    /// Describes a request with this verb, for error messages.
    pub(super) fn request_info(&self, verb: &'static str) -> RequestInfo {
        answer::request_info(verb, T::RESOURCE, &self.config.namespace, &self.config.server)
    }

    /// Returns the uid of the watched Namespace. It needs the right to `get` that object.
    pub(super) async fn namespace_uid(&self) -> Result<String, UpstreamError> {
        let namespace = &self.config.namespace;
        let request_info =
            RequestInfo { resource: format!("namespaces/{namespace}").into(), ..self.request_info("get") };
        let request = Request::new(Namespace::url_path(&(), None)).get(namespace, &GetParams::default());
        let body = self
            .read(&request_info, request, answer::ERROR_BYTES.max(self.config.line_bytes), self.config.page_timeout)
            .await?;
        Ok(answer::parse::<ObjectUid>(&body)?.metadata.uid)
    }

    /// Returns all objects and the version of the list, as of now (a quorum read).
    pub(super) async fn list(&self) -> Result<(Vec<View>, ResourceVersion), UpstreamError> {
        self.list_at(None).await
    }

    /// Returns all objects and the version of the list, at exactly this earlier version if one is given.
    pub(super) async fn list_at(
        &self,
        exact: Option<ResourceVersion>,
    ) -> Result<(Vec<View>, ResourceVersion), UpstreamError> {
        let Config { page_objects, page_bytes, page_timeout, list: limits, .. } = *self.config;
        let request_info = self.request_info("list");
        let too_large = |excess| UpstreamError::ListTooLarge { excess, request_info: request_info.clone() };
        let mut views = Vec::new();
        let mut params = ListParams { limit: Some(page_objects), ..self.params() };
        if let Some(exact) = exact {
            params = params.at(&exact.to_string()).matching(VersionMatch::Exact);
        }
        let start = Instant::now();
        let mut usage = ListUsage::start(limits, start);
        loop {
            usage.add_page().map_err(too_large)?;
            let left = usage.time_left(Instant::now());
            let page = self.read(&request_info, self.request.list(&params), page_bytes, page_timeout);
            let body = timeout(left, page)
                .await
                .map_err(|_| UpstreamError::Timeout { request_info: request_info.clone(), limit: limits.time })??;
            self.metrics.list_pages[T::RESOURCE].inc();
            self.metrics.record_received(T::RESOURCE);
            usage.add_bytes(body.len()).map_err(too_large)?;
            let page: Page<T> = answer::parse(&body)?;
            drop(body);
            for object in page.items.unwrap_or_default() {
                let view = self.view(object);
                usage.add_object(view.charged_bytes()).map_err(too_large)?;
                views.push(view);
            }
            match page.metadata.next {
                // The continue token contains the version, so the next page must not repeat it.
                Some(next) if !next.is_empty() => {
                    params = ListParams { limit: Some(page_objects), continue_token: Some(next), ..self.params() };
                }
                _ => {
                    self.metrics.list_duration[T::RESOURCE].observe(start.elapsed().as_secs_f64());
                    return Ok((views, page.metadata.resource_version));
                }
            }
        }
    }

    /// Returns the current version of the API server, by a list of one object (a probe).
    pub(super) async fn current_version(&self) -> Result<ResourceVersion, UpstreamError> {
        self.metrics.probes[T::RESOURCE].inc();
        let request = self.request.list(&ListParams { limit: Some(1), ..self.params() });
        let body =
            self.read(&self.request_info("list"), request, self.config.line_bytes, self.config.probe_timeout).await?;
        Ok(answer::parse::<ListVersion>(&body)?.metadata.resource_version)
    }

    /// Returns whether the API server still has the objects at exactly this version, by a list of one object.
    pub(super) async fn has_version(&self, version: ResourceVersion) -> Result<bool, UpstreamError> {
        self.metrics.probes[T::RESOURCE].inc();
        let params = ListParams { limit: Some(1), ..self.params() };
        let request = self.request.list(&params.at(&version.to_string()).matching(VersionMatch::Exact));
        let (bytes, limit) = (self.config.line_bytes, self.config.probe_timeout);
        match self.read(&self.request_info("list"), request, bytes, limit).await {
            Ok(_) => Ok(true),
            Err(UpstreamError::Expired) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Starts a watch of the changes after `from` that ends after `duration`, in whole seconds.
    pub(super) async fn watch(&self, from: ResourceVersion, duration: Duration) -> Result<Body, UpstreamError> {
        let seconds = u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
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
        self.metrics.watches_started[T::RESOURCE].inc();
        Ok(response.into_body())
    }

    /// Returns the view of an object, and counts its malformed fields.
    pub(super) fn view(&self, object: T) -> View {
        let Decoded { view, malformed_fields } = object.into_decoded();
        for field in malformed_fields {
            tracing::debug!(resource = T::RESOURCE.plural(), name = view.name(), field, "malformed field left out");
            self.metrics.record_malformed(T::RESOURCE, field);
        }
        view
    }

    fn params(&self) -> ListParams {
        let label_selector = match T::RESOURCE {
            Resource::Pods => Some(MANAGED_SELECTOR.to_owned()),
            Resource::Claims => None,
        };
        ListParams { label_selector, ..ListParams::default() }
    }

    /// Sends a request and reads its response, of at most `bytes`, within `limit`.
    async fn read(
        &self,
        request_info: &RequestInfo,
        request: Result<http::Request<Vec<u8>>, RequestError>,
        bytes: usize,
        limit: Duration,
    ) -> Result<Bytes, UpstreamError> {
        let body =
            async { answer::read_body(self.send(request_info, request).await?.into_body(), bytes, |_| Ok(())).await };
        timeout(limit, body).await.map_err(|_| UpstreamError::Timeout { request_info: request_info.clone(), limit })?
    }

    /// Sends a request and returns its response if the status is a success.
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
        answer::require_success(response, request_info).await
    }
}
