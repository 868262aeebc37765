//! A real control plane for a test: etcd and kube-apiserver on loopback, with a folder of their own.
//!
//! No controllers and no nodes run: Pods stay Pending until a test patches their status, service accounts and their
//! tokens are there when a test makes them, RBAC decides. Both servers can be killed and started again on their ports.
//! They end with the value that owns them, and, should the test process die without dropping it, by a small shell
//! process that notices (the shared plane is a static, and statics are never dropped).

mod flags;
mod process;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::Request;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout_at};

use flags::{api_server_flags, etcd_flags, sign, write_credentials};
use process::{Server, binaries, free_port, orphan_killer, text};

/// The token of a user in `system:masters`, who may do everything.
pub(crate) const ADMIN_TOKEN: &str = "admin-token";
/// The token of a user who is known, and may do nothing.
pub(crate) const UNPRIVILEGED_TOKEN: &str = "unprivileged-token";

/// The claims' CRD as users apply it.
pub(crate) const CRD_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/boilerhouseclaims.yaml");

/// How long the servers may take to be ready. Alone they take 4 s; beside a compiler on two cores, far longer.
const READY_BOUND: Duration = Duration::from_secs(90);
/// How long one kubectl command may take, for the same reason.
const KUBECTL_BOUND: Duration = Duration::from_secs(60);
/// How long the API server may go on serving compacted versions from its snapshots: it looks every 15 s.
const COMPACT_BOUND: Duration = Duration::from_secs(40);
/// Pause between two looks at a state that is waited for.
const POLL: Duration = Duration::from_millis(50);
/// How often starting is tried: another process can take a port between our look at it and the server's bind.
const START_ATTEMPTS: usize = 3;
/// What may differ from the usual plane.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// How often the API server has etcd compacted (5 minutes where absent).
    pub(crate) compaction: Option<Duration>,
    /// Whether the API server writes who asked what to [`ControlPlane::audit_log`], one JSON object a request.
    pub(crate) audit: bool,
    /// Further flags for kube-apiserver.
    pub(crate) api_server_flags: Vec<String>,
}

/// etcd and kube-apiserver, running until dropped.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    etcd: Server,
    api_server: Server,
    etcd_port: u16,
    api_port: u16,
    kubectl: PathBuf,
    orphan_killer: Child,
    dir: TempDir,
}

impl ControlPlane {
    /// A control plane of the test's own, ready, with the claims' CRD.
    ///
    /// # Panics
    /// When the binaries are neither there nor buildable, or the servers do not become ready within 90 s; the message
    /// says which, with the end of the server's log.
    pub(crate) async fn start() -> Self {
        Self::start_with(&Options::default()).await
    }

    /// As [`Self::start`], with options.
    pub(crate) async fn start_with(options: &Options) -> Self {
        let binaries = binaries().await;
        let mut failures = Vec::new();
        while failures.len() < START_ATTEMPTS {
            let mut plane = Self::spawn(&binaries, options);
            match plane.ready().await {
                Ok(()) => {
                    plane.apply_crd().await;
                    return plane;
                }
                Err(error) => failures.push(error),
            }
        }
        panic!("{}", failures.join("\n\n"));
    }

    /// The one that all tests of this process share which do not break it: a namespace each keeps them apart.
    pub(crate) async fn shared() -> &'static Self {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    fn spawn(binaries: &Path, options: &Options) -> Self {
        let dir = tempfile::Builder::new().prefix("control-plane-").tempdir().unwrap();
        let orphan_killer = orphan_killer(dir.path());
        let [etcd_port, peer_port, api_port] = [free_port(), free_port(), free_port()];
        write_credentials(dir.path());
        let mut etcd = Server::new(binaries, "etcd", dir.path(), etcd_flags(dir.path(), etcd_port, peer_port));
        let flags = api_server_flags(dir.path(), etcd_port, api_port, options);
        let mut api_server = Server::new(binaries, "kube-apiserver", dir.path(), flags);
        etcd.start();
        api_server.start();
        Self { etcd, api_server, etcd_port, api_port, kubectl: binaries.join("kubectl"), orphan_killer, dir }
    }

    /// A client with all rights. Make one a test: its connections live on the runtime that made it.
    pub(crate) async fn client(&self) -> Client {
        Client::try_from(self.config(ADMIN_TOKEN).await).unwrap()
    }

    /// What a client of this user is made of. Nothing is retried inside the client.
    pub(crate) async fn config(&self, token: &str) -> Config {
        // Only the first caller in the process installs; the others find it done.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig_of(token)).unwrap();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        config.default_retry = false;
        config
    }

    /// A kubeconfig file with all rights, for kubectl and the bridge's own binary.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_of(ADMIN_TOKEN)
    }

    /// A kubeconfig file of the user whom this token names.
    pub(crate) fn kubeconfig_of(&self, token: &str) -> PathBuf {
        // Tokens of service accounts are longer than a file name may be.
        let mut hasher = DefaultHasher::new();
        token.hash(&mut hasher);
        let path = self.dir.path().join(format!("{:016x}.kubeconfig", hasher.finish()));
        let cluster = json!({
            "server": format!("https://127.0.0.1:{}", self.api_port),
            "certificate-authority": self.dir.path().join("certificates/apiserver.crt"),
        });
        let file = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        // Whole or not at all: other tests of this process may be reading it.
        let mut whole = tempfile::NamedTempFile::new_in(self.dir.path()).unwrap();
        whole.write_all(file.to_string().as_bytes()).unwrap();
        whole.persist(&path).unwrap();
        path
    }

    /// Runs kubectl with all rights: what it printed, or, where it failed, what it complained of.
    pub(crate) async fn kubectl(&self, args: &[&str], stdin: &str) -> Result<String, String> {
        let mut child = tokio::process::Command::new(&self.kubectl)
            .args(args)
            .env("KUBECONFIG", self.kubeconfig())
            .env("KUBECACHEDIR", self.dir.path().join("kubectl-cache"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        // A kubectl that does not read its input closes it: that is no error of the test's.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes()).await;
        let output =
            tokio::time::timeout(KUBECTL_BOUND, child.wait_with_output()).await.expect("kubectl hangs").unwrap();
        let printed = if output.status.success() { Ok(output.stdout) } else { Err(output.stderr) };
        printed.map(|bytes| text(&bytes)).map_err(|bytes| text(&bytes))
    }

    /// A fresh namespace.
    pub(crate) async fn namespace(&self) -> String {
        let wanted: Namespace = serde_json::from_value(json!({"metadata": {"generateName": "test-"}})).unwrap();
        let made = Api::all(self.client().await).create(&PostParams::default(), &wanted).await.unwrap();
        made.metadata.name.unwrap()
    }

    /// kill -9: its memory is gone, with it the history of its watches.
    pub(crate) fn kill_api_server(&mut self) {
        self.api_server.kill();
    }

    /// Starts a killed API server on its old port and waits until it is ready; etcd has to run.
    pub(crate) async fn start_api_server(&mut self) {
        self.api_server.start();
        self.ready().await.unwrap();
    }

    /// Whether the API server is there, or killed.
    pub(crate) fn has_api_server(&self) -> bool {
        self.api_server.is_started()
    }

    /// kill -9; what it had acknowledged survives, only a crash of the machine would lose it.
    pub(crate) fn kill_etcd(&mut self) {
        self.etcd.kill();
    }

    /// Keeps a copy of what etcd holds.
    pub(crate) async fn backup_etcd(&mut self) {
        self.kill_etcd();
        self.copy("etcd", "etcd-kept");
        self.start_etcd().await;
    }

    /// Puts etcd back to the copy, and starts a new API server on it.
    pub(crate) async fn restore_etcd(&mut self) {
        self.kill_api_server();
        self.kill_etcd();
        self.copy("etcd-kept", "etcd");
        self.start_etcd().await;
        self.start_api_server().await;
    }

    fn copy(&self, from: &str, to: &str) {
        let [from, to] = [from, to].map(|name| self.dir.path().join(name));
        let _ = std::fs::remove_dir_all(&to);
        let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
        assert!(copied.success());
    }

    /// Starts a killed etcd on its old port and data, and waits until the API server, unless it is killed too, is ready
    /// with it.
    pub(crate) async fn start_etcd(&mut self) {
        self.etcd.start();
        if self.api_server.is_started() {
            self.ready().await.unwrap();
        }
    }

    /// Compacts etcd's history up to now, and waits until the API server answers 410 for Pods as they were before.
    /// That takes up to 15 s, as the API server looks at its own snapshots that seldom; none with the flag
    /// `--feature-gates=ListFromCacheSnapshot=false`, or where the API server has just been started.
    pub(crate) async fn compact(&self) {
        let etcd = self.etcd_client();
        let key = BASE64.encode("compact_rev_key");
        let before = revision(&etcd_call(&etcd, "range", &json!({"key": key})).await);
        // The API server learns of a compaction from the key in which its own compactor leaves the revision.
        let value = BASE64.encode((before + 1).to_string());
        let after = revision(&etcd_call(&etcd, "put", &json!({"key": key, "value": value})).await);
        etcd_call(&etcd, "compaction", &json!({"revision": after.to_string(), "physical": true})).await;
        let client = self.client().await;
        let path = format!("/api/v1/pods?limit=1&resourceVersionMatch=Exact&resourceVersion={before}");
        let end = Instant::now() + COMPACT_BOUND;
        loop {
            match client.request_text(get(&path)).await {
                Err(kube::Error::Api(status)) if status.code == 410 => return,
                other => assert!(Instant::now() < end, "still no 410 for Pods at {before}: {other:?}"),
            }
            sleep(POLL).await;
        }
    }

    /// Sends a request with all rights; returns the object that it is answered with.
    ///
    /// # Panics
    /// When it is refused.
    pub(crate) async fn call(&self, method: http::Method, path: &str, body: &Value) -> Value {
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder().method(&method).uri(path).header("content-type", "application/json");
        let answer = self.client().await.request(request.body(bytes).unwrap()).await;
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// Signs as the API server signs service accounts' tokens (ES256).
    pub(crate) fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        sign(self.dir.path(), bytes)
    }

    /// The API server's own metrics, as text.
    pub(crate) async fn metrics(&self) -> String {
        self.client().await.request_text(get("/metrics")).await.unwrap()
    }

    /// How many watches of this resource (its plural) the API server serves now, in all namespaces.
    pub(crate) async fn watches(&self, resource: &str) -> u64 {
        let metrics = self.metrics().await;
        let label = format!("resource=\"{resource}\"");
        let watches = |line: &&str| {
            line.starts_with("apiserver_longrunning_requests{")
                && line.contains(&label)
                && line.contains("verb=\"WATCH\"")
        };
        metrics.lines().filter(watches).map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Where [`Options::audit`] has the requests written.
    pub(crate) fn audit_log(&self) -> PathBuf {
        self.dir.path().join("audit.log")
    }

    async fn apply_crd(&self) {
        let file = std::fs::read_to_string(CRD_FILE).unwrap();
        let crd: CustomResourceDefinition = serde_saphyr::from_str(&file).unwrap();
        let name = crd.metadata.name.clone().unwrap();
        let crds: Api<CustomResourceDefinition> = Api::all(self.client().await);
        crds.patch(&name, &PatchParams::apply("tests"), &Patch::Apply(&crd)).await.unwrap();
        let established = kube::runtime::conditions::is_crd_established();
        let wait = kube::runtime::wait::await_condition(crds, &name, established);
        tokio::time::timeout(READY_BOUND, wait).await.expect("the CRD is not established").unwrap();
    }

    /// Waits for `/readyz`, which waits for etcd and for the roles that RBAC starts with.
    async fn ready(&mut self) -> Result<(), String> {
        let end = Instant::now() + READY_BOUND;
        // The certificate is made by the API server's first start, and no client can be made before.
        let mut client = None;
        let mut last = String::from("no certificate yet");
        while Instant::now() < end {
            self.etcd.alive()?;
            self.api_server.alive()?;
            if client.is_none() && self.dir.path().join("certificates/apiserver.key").exists() {
                client = Some(self.client().await);
            }
            if let Some(client) = &client {
                match timeout_at(end, client.request_text(get("/readyz"))).await {
                    Ok(Ok(_)) => return Ok(()),
                    Ok(Err(error)) => last = error.to_string(),
                    Err(_) => {}
                }
            }
            sleep(POLL).await;
        }
        Err(format!("not ready in {READY_BOUND:?}: {last}\n{}", self.api_server.log_tail()))
    }

    /// etcd's HTTP gateway, through the one HTTP client at hand.
    fn etcd_client(&self) -> Client {
        let url = format!("http://127.0.0.1:{}", self.etcd_port).parse().unwrap();
        Client::try_from(Config::new(url)).unwrap()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.api_server.kill();
        self.etcd.kill();
        // The end of its input lets the reaper go; with the servers dead only the folder is left to it.
        drop(self.orphan_killer.stdin.take());
        let _ = self.orphan_killer.wait();
    }
}

async fn etcd_call(etcd: &Client, method: &str, body: &Value) -> Value {
    let request = Request::post(format!("/v3/kv/{method}")).body(body.to_string().into_bytes()).unwrap();
    etcd.request(request).await.unwrap()
}

/// The revision that etcd's answer was made at (a string in JSON, as every 64-bit number of its gateway).
fn revision(answer: &Value) -> u64 {
    answer["header"]["revision"].as_str().unwrap().parse().unwrap()
}

fn get(path: &str) -> Request<Vec<u8>> {
    Request::get(path).body(Vec::new()).unwrap()
}
