//! Kubeconfigs: kubectl and the bridge accept the same ones, on a real API server (docs/reference.md#kubeconfigs).
//!
//! For each kubeconfig of the table, the test asks the API server who the user is, with kubectl and with the bridge's client.
//! Both must get the same user, or both must fail. The error of the bridge must name the field.

mod certificates;
mod merged_files;
mod slow_start;
mod variants;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use boilerhouse_bridge::source::connect::{self, ClusterConnection};
use boilerhouse_bridge::source::error::{RequestInfo, UpstreamError};
use futures::StreamExt as _;
use http::Request;
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use self::certificates::{Authority, Identity, self_signed};
use self::variants::{Material, Variant, all};
use crate::support::bridge_process;
use crate::support::control_plane::{ControlPlane, Options};

/// Minimum number of kubeconfigs in the table.
const MIN_VARIANTS: usize = 171;
/// How long one request of the bridge's client may take. The test machine may be busy.
const BOUND: Duration = Duration::from_secs(30);
/// Kubeconfigs that are tried at the same time.
const CONCURRENCY: usize = 4;

/// A control plane with further server certificates and a client authority, and `kubectl proxy`.
struct Fixture {
    plane: ControlPlane,
    material: Material,
    _proxy: Child,
    _dir: TempDir,
}

impl Fixture {
    async fn start() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let (named, clients) = (Authority::new("named-authority"), Authority::new("client-authority"));
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let named_server = named.server(&["api.test"], false);
        let self_signed = self_signed(&["self.test"]);
        let expired = named.server(&["old.test"], true);
        let mut flags = vec![format!("--client-ca-file={}", file("clients.crt", &clients.certificate))];
        for (name, Identity { certificate, key }) in
            [("api.test", &named_server), ("self.test", &self_signed), ("old.test", &expired)]
        {
            let [certificate, key] =
                [("crt", certificate), ("key", key)].map(|(end, text)| file(&format!("{name}.{end}"), text));
            flags.push(format!("--tls-sni-cert-key={certificate},{key}:{name}"));
        }
        let plane = ControlPlane::start_with(&Options { api_server_flags: flags, ..Options::default() }).await;
        let kubeconfig: Value = serde_json::from_slice(&std::fs::read(plane.kubeconfig()).unwrap()).unwrap();
        let cluster = &kubeconfig["clusters"][0]["cluster"];
        let chain = std::fs::read_to_string(cluster["certificate-authority"].as_str().unwrap()).unwrap();
        let (own, issuer) = chain.split_at(chain.rfind("-----BEGIN").unwrap());
        let (proxy, address) = proxy(&plane).await;
        let material = Material {
            server: cluster["server"].as_str().unwrap().to_owned(),
            proxy: address,
            chain: [own.to_owned(), issuer.to_owned()],
            named: [named.certificate.clone(), named_server.certificate],
            self_signed: self_signed.certificate,
            expired: expired.certificate,
            client: clients.client(false),
            client_of_version_1: clients.client_of_version_1(),
            client_with_chain: clients.client_with_chain(),
            expired_client: clients.client(true),
        };
        Fixture { plane, material, _proxy: proxy, _dir: dir }
    }
}

/// Starts `kubectl proxy`. Returns it and its `host:port`.
async fn proxy(plane: &ControlPlane) -> (Child, String) {
    let mut proxy = Command::new(plane.kubectl_binary())
        .args(["proxy", "--port=0"])
        .env("KUBECONFIG", plane.kubeconfig())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(proxy.stdout.take().unwrap()).lines();
    let line = timeout(BOUND, lines.next_line()).await.expect("kubectl proxy does not start").unwrap().unwrap();
    (proxy, line.rsplit(' ').next().unwrap().to_owned())
}

/// Writes the files of a variant into an empty folder. Returns the path of the kubeconfig.
fn write(variant: &Variant, folder: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = folder.join("config");
    std::fs::write(&path, &variant.bytes).unwrap();
    for (name, text) in &variant.files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    path
}

/// Returns the user that kubectl is, or its error.
async fn kubectl(plane: &ControlPlane, path: &Path) -> Result<Value, String> {
    let path = path.to_string_lossy();
    let args = ["--kubeconfig", &path, "--request-timeout=20s", "auth", "whoami", "-o", "json"];
    let printed = plane.kubectl(&args, "").await?;
    let review: Value = serde_json::from_str(&printed).map_err(|error| error.to_string())?;
    Ok(review["status"]["userInfo"].clone())
}

/// Returns the user that the bridge's client is, or the error that its log shows.
async fn bridge(path: &Path) -> Result<Value, String> {
    let config =
        connect::Config { kubeconfig: Some(path.to_owned()), plugin_wait: BOUND, ..connect::Config::default() };
    let connection = connect::connect(&config).await.map_err(|error| chain(&error))?;
    timeout(BOUND, whoami(&connection)).await.unwrap_or_else(|_| Err("no answer".to_owned()))
}

async fn whoami(connection: &ClusterConnection) -> Result<Value, String> {
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let body = r#"{"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"}"#;
    let request = Request::post(path).header("content-type", "application/json");
    let request = request.body(Body::from(body.as_bytes().to_vec())).unwrap();
    let info = RequestInfo {
        verb: "create",
        resource: "selfsubjectreviews.authentication.k8s.io".into(),
        namespace: "default".into(),
        server: connection.server.as_str().into(),
    };
    let response = connection.client.send(request).await;
    let response = response.map_err(|error| UpstreamError::from_client_error(&error, &info).to_string())?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
    if !head.status.is_success() {
        return Err(UpstreamError::from_response(head.status, &head.headers, &body, &info).to_string());
    }
    let review: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    Ok(review["status"]["userInfo"].clone())
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

/// Runs the binary with a kubeconfig that it must refuse at start. Returns what it prints.
async fn refused_by_binary(path: &Path) -> String {
    let path = path.to_string_lossy();
    let mut command = bridge_process::command(&["serve", "--port", "0", "--kubeconfig", &path]);
    let output = command.stderr(Stdio::piped()).kill_on_drop(true).output();
    let output = timeout(BOUND, output).await.expect("the bridge does not exit").unwrap();
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{printed}");
    printed
}

/// Compares one variant. Returns what is wrong.
async fn compare(plane: &ControlPlane, variant: &Variant) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = write(variant, folder.path());
    let [kubectl, bridge] = [kubectl(plane, &path).await, bridge(&path).await];
    let is_equal = match (&kubectl, &bridge) {
        (Ok(kubectl), Ok(bridge)) => kubectl == bridge,
        (Err(_), Err(_)) => true,
        _ => false,
    };
    println!(
        "{}: {}",
        variant.name,
        match &bridge {
            Ok(user) => format!("works, as {}", user["username"]),
            Err(error) => format!("refused: {}", error.replace(&*folder.path().to_string_lossy(), "")),
        }
    );
    let both = || format!("{}: kubectl {kubectl:#?}, bridge {bridge:#?}", variant.name);
    if !is_equal || bridge.is_ok() != variant.refusal.is_empty() {
        return Err(both());
    }
    if let Err(error) = &bridge
        && !error.contains(variant.refusal)
    {
        return Err(format!("the error must contain {:?}: {}", variant.refusal, both()));
    }
    // An error about a field of the kubeconfig ends the process at its start.
    if bridge.is_err_and(|error| error.starts_with("cannot use the")) {
        let printed = refused_by_binary(&path).await;
        if !printed.contains(variant.refusal) || printed.contains("panicked") {
            return Err(format!("{}: the binary prints {printed}", variant.name));
        }
    }
    Ok(())
}

#[tokio::test]
async fn kubectl_and_the_bridge_accept_the_same_kubeconfigs() {
    let fixture = Fixture::start().await;
    let variants = all(&fixture.material);
    assert!(variants.len() >= MIN_VARIANTS, "expected at least {MIN_VARIANTS} kubeconfigs: {}", variants.len());
    let names: std::collections::BTreeSet<_> = variants.iter().map(|variant| variant.name).collect();
    assert_eq!(names.len(), variants.len(), "each kubeconfig has a name of its own");
    let compared = futures::stream::iter(&variants).map(|variant| compare(&fixture.plane, variant));
    let results: Vec<_> = compared.buffer_unordered(CONCURRENCY).collect().await;
    let wrong: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "{} of {} kubeconfigs:\n{}", wrong.len(), variants.len(), wrong.join("\n\n"));
}
