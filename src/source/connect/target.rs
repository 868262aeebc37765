//! What one context states: the server, how to verify it, and which credentials to send. Pure, except that a
//! plugin depends on whether stdin is a terminal.
//!
//! Guarantees: the rules are those of client-go (`clientcmd` and `transport`): which of two credentials counts, which
//! combinations are refused, and that credentials are sent over https only.

use std::{ffi::OsString, path::PathBuf, sync::Arc};

use http::{HeaderMap, HeaderValue};
use rustls::pki_types::ServerName;

use super::{
    field::{FieldError, Fields},
    headers::{basic, bearer, impersonation},
    plugin::Plugin,
    server_url::ServerUrl,
};

/// Folder of the service account in a Pod (Kubernetes, "Accessing the Kubernetes API from a Pod").
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where bytes come from, and the name of the field in errors.
#[derive(Clone)]
pub(super) struct Input {
    pub(super) place: String,
    pub(super) origin: Origin,
}

#[derive(Clone)]
pub(super) enum Origin {
    Bytes(Arc<[u8]>),
    File(PathBuf),
}

/// How the certificate of the server is verified.
pub(super) enum Trust {
    /// With the certificates of the operating system.
    System {
        /// The field that would name others.
        place: String,
    },
    /// With these certificates.
    Authority(Input),
    /// Not at all.
    Nothing,
}

/// The TLS part of a target with an https URL.
pub(super) struct TlsTarget {
    pub(super) trust: Trust,
    /// `tls-server-name`, if it is set.
    pub(super) server_name: Option<ServerName<'static>>,
    /// The client certificate and its key.
    pub(super) identity: Option<[Input; 2]>,
}

/// Where the header `Authorization` comes from.
pub(super) enum Authorization {
    /// There is none.
    None,
    /// A token or a password.
    Fixed(HeaderValue),
    /// A file with a token, and the token that counts while the file cannot be read.
    File { file: Input, otherwise: Option<HeaderValue> },
    /// A credential plugin, which also can provide a client certificate.
    Plugin(Arc<Plugin>),
}

/// A usable context.
pub(super) struct Target {
    pub(super) server: ServerUrl,
    /// `None` for an http URL.
    pub(super) tls: Option<TlsTarget>,
    pub(super) authorization: Authorization,
    /// The headers of `as`, `as-uid`, `as-groups` and `as-user-extra`.
    pub(super) impersonation: HeaderMap,
    /// What the operator should know, although the context is usable.
    pub(super) warnings: Vec<String>,
}

impl Target {
    /// Evaluates a cluster and a user.
    ///
    /// # Errors
    /// The first field that client-go refuses as well, or that the bridge does not support.
    pub(super) fn new(cluster: &Fields, user: &Fields) -> Result<Target, FieldError> {
        let server = server(cluster)?;
        check_cluster(cluster)?;
        check_user(user)?;
        let mut warnings = Vec::new();
        if server.is_scheme_missing {
            warnings
                .push(format!("{}: the URL has no scheme; http:// is used, as kubectl does", cluster.place("server")));
        }
        let has_credentials = ["token", "tokenFile", "username", "client-certificate", "client-certificate-data"]
            .iter()
            .any(|field| user.has(field))
            || ["exec", "auth-provider"].iter().any(|object| user.object(object).is_some());
        if !server.is_https() && has_credentials {
            warnings
                .push(format!("{}: the credentials are not sent, because the server's URL is not https", user.entry()));
        }
        let plugin = user.object("exec").map(|exec| Plugin::new(&exec, cluster, &server)).transpose()?;
        let (tls, authorization) = match server.is_https() {
            true => (Some(tls(cluster, user, &server)?), authorization(user, plugin)?),
            false => (None, Authorization::None),
        };
        let has_identity = tls.as_ref().is_some_and(|tls| tls.identity.is_some());
        if server.is_https() && !has_identity && matches!(authorization, Authorization::None) {
            warnings.push(format!("{}: the user has no credentials; requests are anonymous", user.entry()));
        }
        Ok(Target { impersonation: impersonation(user)?, server, tls, authorization, warnings })
    }

    /// Evaluates the environment of a Pod: the address of the API server, and the files of the service account.
    ///
    /// # Errors
    /// When the address is not valid.
    pub(super) fn in_cluster(host: Option<OsString>, port: Option<OsString>) -> Result<Target, FieldError> {
        let text = |value: Option<OsString>| value.and_then(|value| value.into_string().ok()).unwrap_or_default();
        let (host, port) = (text(host), text(port));
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let server = ServerUrl::parse(&format!("https://{bracketed}:{port}")).ok().filter(|url| url.host() == host);
        let server = server.ok_or_else(|| {
            let problem = "the values are no host and port";
            FieldError::new("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT", problem)
        })?;
        let file = |name: &str| {
            let path = PathBuf::from(SERVICE_ACCOUNT).join(name);
            Input { place: path.display().to_string(), origin: Origin::File(path) }
        };
        let trust = Trust::Authority(file("ca.crt"));
        Ok(Target {
            server,
            tls: Some(TlsTarget { trust, server_name: None, identity: None }),
            authorization: Authorization::File { file: file("token"), otherwise: None },
            impersonation: HeaderMap::new(),
            warnings: Vec::new(),
        })
    }
}

fn server(cluster: &Fields) -> Result<ServerUrl, FieldError> {
    if !cluster.has("server") {
        return Err(cluster.error("server", "the field is missing"));
    }
    ServerUrl::parse(cluster.text("server")).map_err(|problem| cluster.error("server", problem))
}

/// The rules of client-go's `validateClusterInfo` and `TLSConfigFor`.
fn check_cluster(cluster: &Fields) -> Result<(), FieldError> {
    if cluster.has("proxy-url") {
        return Err(cluster.error("proxy-url", "the bridge does not support proxies; use a context without it"));
    }
    check_one_of(cluster, "certificate-authority")
}

/// The rules of client-go's `validateAuthInfo`.
fn check_user(user: &Fields) -> Result<(), FieldError> {
    if user.has("token") && (user.has("username") || user.has("password")) {
        return Err(user.error("token", "the user also has a password; remove one of them"));
    }
    if has_either(user, "client-certificate") {
        check_one_of(user, "client-certificate")?;
        check_one_of(user, "client-key")?;
        if !has_either(user, "client-key") {
            return Err(user.error("client-key-data", "the field is missing; a client certificate needs its key"));
        }
    }
    if let Some(provider) = user.object("auth-provider") {
        if user.object("exec").is_some() {
            return Err(user.error("auth-provider", "the user also has `exec`; remove one of them"));
        }
        let hint = "use `exec` with a credential plugin, such as gke-gcloud-auth-plugin or kubelogin";
        let is_oidc = provider.text("name") == "oidc";
        if !is_oidc {
            return Err(user.error("auth-provider", format!("this provider is not supported; {hint}")));
        }
        if provider.object("config").is_none_or(|config| !config.has("id-token")) {
            return Err(user.error("auth-provider: config: id-token", format!("the field is missing; {hint}")));
        }
    }
    let needs_user = ["as-uid", "as-groups", "as-user-extra"]
        .into_iter()
        .find(|field| user.has(field) || !user.texts(field).is_empty() || !user.text_lists(field).is_empty());
    match needs_user {
        Some(field) if !user.has("as") => Err(user.error(field, "the field `as` is missing")),
        _ => Ok(()),
    }
}

/// Refuses both forms of one value: a file, and data.
fn check_one_of(fields: &Fields, file: &str) -> Result<(), FieldError> {
    match fields.has(file) && fields.has(&format!("{file}-data")) {
        true => Err(fields.error(file, format!("`{file}-data` is set as well; remove one of them"))),
        false => Ok(()),
    }
}

fn has_either(fields: &Fields, file: &str) -> bool {
    fields.has(file) || fields.has(&format!("{file}-data"))
}

/// Returns the value of `<file>-data`, or the name of the file.
fn input(fields: &Fields, file: &str) -> Option<Input> {
    let data = format!("{file}-data");
    if fields.has(&data) {
        return Some(Input { place: fields.place(&data), origin: Origin::Bytes(fields.bytes(&data).into()) });
    }
    fields.has(file).then(|| file_input(fields, file))
}

fn file_input(fields: &Fields, file: &str) -> Input {
    Input { place: fields.place(file), origin: Origin::File(fields.text(file).into()) }
}

fn tls(cluster: &Fields, user: &Fields, server: &ServerUrl) -> Result<TlsTarget, FieldError> {
    let name = |field: &str, name: &str| {
        ServerName::try_from(name.to_owned())
            .map_err(|_| cluster.error(field, "the value is neither a DNS name nor an IP address"))
    };
    let server_name = match cluster.text("tls-server-name") {
        "" => name("server", server.host()).map(|_| None)?,
        given => Some(name("tls-server-name", given)?),
    };
    let trust = match (input(cluster, "certificate-authority"), cluster.flag("insecure-skip-tls-verify")) {
        (Some(_), true) => {
            let problem = "a certificate authority is set as well; remove one of them";
            return Err(cluster.error("insecure-skip-tls-verify", problem));
        }
        (Some(authority), false) => Trust::Authority(authority),
        (None, true) => Trust::Nothing,
        (None, false) => Trust::System { place: cluster.place("certificate-authority-data") },
    };
    let certificate = input(user, "client-certificate");
    let identity = certificate.and_then(|certificate| Some([certificate, input(user, "client-key")?]));
    Ok(TlsTarget { trust, server_name, identity })
}

/// Returns the credential that client-go sends. A plugin runs only for a user without another credential.
fn authorization(user: &Fields, plugin: Option<Plugin>) -> Result<Authorization, FieldError> {
    let token = |field: &str, token: &str| {
        let problem = "the token contains a line break or another control character; write it on one line";
        bearer(token.as_bytes()).ok_or_else(|| user.error(field, problem))
    };
    let given = match user.text("token") {
        "" => None,
        given => Some(token("token", given)?),
    };
    if user.has("tokenFile") {
        return Ok(Authorization::File { file: file_input(user, "tokenFile"), otherwise: given });
    }
    if let Some(given) = given {
        return Ok(Authorization::Fixed(given));
    }
    if user.has("username") {
        return basic(user).map(Authorization::Fixed);
    }
    if let Some(config) = user.object("auth-provider").and_then(|provider| provider.object("config")) {
        return Ok(Authorization::Fixed(token("auth-provider: config: id-token", config.text("id-token"))?));
    }
    let plugin = plugin.filter(|_| !has_either(user, "client-certificate"));
    Ok(plugin.map_or(Authorization::None, |plugin| Authorization::Plugin(Arc::new(plugin))))
}
