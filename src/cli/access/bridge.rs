//! The flags for access of `serve`, and how the API server reviews Kubernetes tokens (docs/protocol.md#access).

use std::{num::NonZeroU32, sync::Arc};

use clap::{Args, ValueEnum};
use futures::FutureExt;
use tracing::warn;

use super::{AccessArgs, ListenPlace, ResolvedAccess};
use crate::{
    cli::{
        exit::CliError,
        parsers::{MAX_CONNECTIONS, RESPONSE_MEMORY, integer_in},
    },
    http::{
        auth::{
            self, Authenticator, CredentialSources,
            review_cache::{self, ReviewBackend, ReviewUnavailable},
            user::KubernetesUser,
        },
        browser_guard::GuardConfig,
        filter_limit,
        forwarded::TrustedProxies,
        rate_limit, response_budget,
    },
    source::review::{self, Reviewer},
};

/// Flags of `serve` beside those of every server.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct BridgeAccessArgs {
    #[command(flatten)]
    pub(super) common: AccessArgs,

    /// Audience of accepted Kubernetes tokens. Their users need list and watch permission on both resources
    #[arg(long, env = "BRIDGE_TOKEN_AUDIENCE", value_name = "AUDIENCE")]
    pub(super) token_audience: Option<String>,

    /// Whether /ws requires a credential. It always does while a key is limited to one tenant
    #[arg(long, env = "BRIDGE_WS_AUTH", value_enum, default_value_t = WsAuth::Open, value_name = "open|required")]
    #[arg(hide_possible_values = true)]
    pub(super) ws_auth: WsAuth,

    /// Maximum number of different filters (params) of each caller's open streams
    #[arg(long, env = "BRIDGE_MAX_FILTERS_PER_PRINCIPAL", value_name = "N", default_value_t = DEFAULT_MAX_FILTERS)]
    #[arg(value_parser = integer_in::<NonZeroU32>(1..=MAX_CONNECTIONS))]
    max_filters_per_principal: NonZeroU32,

    /// Maximum memory in MiB of responses that clients have not read yet; one caller may use a quarter of it
    #[arg(long, env = "BRIDGE_RESPONSE_MEMORY", value_name = "MIB", default_value_t = DEFAULT_RESPONSE_MEMORY)]
    #[arg(value_parser = integer_in::<NonZeroU32>(RESPONSE_MEMORY))]
    response_memory: NonZeroU32,
}

/// Default of `--max-filters-per-principal`: [`filter_limit::DEFAULT_MAX`].
const DEFAULT_MAX_FILTERS: NonZeroU32 = NonZeroU32::new(filter_limit::DEFAULT_MAX as u32).unwrap();
/// Default of `--response-memory` in MiB: [`response_budget::DEFAULT_MAX_MIB`].
const DEFAULT_RESPONSE_MEMORY: NonZeroU32 = NonZeroU32::new(response_budget::DEFAULT_MAX_MIB).unwrap();

/// `--ws-auth`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum WsAuth {
    Open,
    Required,
}

/// The flags of `serve`, checked and loaded.
pub(in crate::cli) struct ResolvedBridgeAccess {
    pub(in crate::cli) common: ResolvedAccess,
    pub(in crate::cli) max_filters: usize,
    pub(in crate::cli) responses: response_budget::Config,
    /// The audience of Kubernetes tokens.
    pub(in crate::cli) audience: Option<String>,
}

impl BridgeAccessArgs {
    /// As [`AccessArgs::resolve`], for `serve` on `listen_host`.
    ///
    /// # Errors
    /// Those of [`AccessArgs::resolve`].
    pub(in crate::cli) fn resolve(
        self,
        listen_host: &str,
        is_loopback: bool,
    ) -> Result<ResolvedBridgeAccess, CliError> {
        let audience = self.audience()?;
        let place = ListenPlace::of_bridge(listen_host, is_loopback);
        let common = self.common.resolve(&place, audience.is_some(), self.ws_auth == WsAuth::Required)?;
        if common.is_closed && !is_loopback && self.ws_auth == WsAuth::Open {
            warn!("/ws is open without a credential; --ws-auth required closes it");
        }
        let responses = response_budget::Config {
            max_bytes: (self.response_memory.get() as usize) << 20,
            ..response_budget::Config::default()
        };
        Ok(ResolvedBridgeAccess {
            common,
            max_filters: self.max_filters_per_principal.get() as usize,
            responses,
            audience,
        })
    }

    /// Returns the audience of Kubernetes tokens.
    ///
    /// # Errors
    /// A usage error for one without characters.
    pub(super) fn audience(&self) -> Result<Option<String>, CliError> {
        let audience = self.token_audience.as_ref().map(|audience| audience.trim().to_owned());
        if audience.as_deref() == Some("") {
            return Err(CliError::usage(
                "--token-audience is empty, so that every token of the cluster would be accepted: name an audience",
            ));
        }
        Ok(audience)
    }
}

impl ListenPlace<'_> {
    pub(super) fn of_bridge(listen_host: &str, is_loopback: bool) -> ListenPlace<'static> {
        ListenPlace {
            flag: format!("--listen-host {listen_host}"),
            is_loopback,
            credentials: "BOILERHOUSE_API_KEY, --keys-file or --token-audience",
        }
    }
}

impl ResolvedBridgeAccess {
    /// Returns the access of `demo`: no credentials, loopback only.
    pub(in crate::cli) fn open() -> anyhow::Result<ResolvedBridgeAccess> {
        let auth_metrics = auth::Metrics::default();
        let auth = Authenticator::new(auth::Config::default(), CredentialSources::default(), auth_metrics.clone())?;
        let common = ResolvedAccess {
            allowed: GuardConfig::default(),
            limits: rate_limit::Config::default(),
            proxies: TrustedProxies::default(),
            tls: None,
            auth,
            auth_metrics,
            is_closed: false,
        };
        Ok(ResolvedBridgeAccess {
            common,
            max_filters: filter_limit::DEFAULT_MAX,
            responses: response_budget::Config::default(),
            audience: None,
        })
    }

    /// Adds Kubernetes tokens, which the API server reviews.
    pub(in crate::cli) fn with_reviews(self, review: Reviewer) -> ResolvedBridgeAccess {
        let auth = self.common.auth.with_reviews(review_backend(review));
        ResolvedBridgeAccess { common: ResolvedAccess { auth, ..self.common }, ..self }
    }
}

/// Connects the reviews of the API server to authentication, as functions: `http` does not import `source`.
fn review_backend(review: Reviewer) -> ReviewBackend {
    let for_users = review.clone();
    ReviewBackend {
        token: Box::new(move |token| {
            let review = review.clone();
            let request = async move {
                // `Reviewer` has logged the error.
                let user = review.token(token.expose()).await.map_err(|_| ReviewUnavailable)?;
                Ok(user.map(|review::User { name, uid, groups, extra }| KubernetesUser { name, uid, groups, extra }))
            };
            request.boxed()
        }),
        access: Box::new(move |user: Arc<KubernetesUser>| {
            let review = for_users.clone();
            let request = async move {
                let KubernetesUser { name, uid, groups, extra } = (*user).clone();
                let user = review::User { name, uid, groups, extra };
                let denied = review.first_denied(&user).await.map_err(|_| ReviewUnavailable)?;
                Ok(denied.map_or(review_cache::AccessDecision::Granted, |what| {
                    review_cache::AccessDecision::Denied(what.into())
                }))
            };
            request.boxed()
        }),
    }
}
