//! A real control plane for tests: etcd and kube-apiserver on loopback
//! (docs/kubernetes-behavior.md#control-plane-of-the-tests).
//!
//! Owns both server processes and a temporary folder.
//!
//! Guarantees:
//! - Both servers can be killed and started again on the same ports.
//! - Both servers end when the value is dropped. If the test process ends without dropping it, a shell process kills
//!   them. The shared control plane is a static, and statics are never dropped.
//! - No controller and no node runs. Pods stay `Pending` until a test patches their status, and tests create service
//!   accounts and tokens themselves. RBAC is enforced.

mod flags;
pub(crate) mod process;

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

/// The token of a user in the group `system:masters`, which has all permissions.
pub(crate) const ADMIN_TOKEN: &str = "admin-token";
/// The token of a user without permissions.
pub(crate) const UNPRIVILEGED_TOKEN: &str = "unprivileged-token";

/// The CRD of claims, as users apply it.
pub(crate) const CRD_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/boilerhouseclaims.yaml");

/// How long the servers may take to be ready. They take 4 s on an idle machine, and far longer beside a compiler on two
/// cores.
const READY_BOUND: Duration = Duration::from_secs(90);
/// How long one kubectl command may take, for the same reason.
const KUBECTL_BOUND: Duration = Duration::from_secs(60);
/// How long the API server may serve compacted versions from its snapshots. It checks for compaction every 15 s.
const COMPACT_BOUND: Duration = Duration::from_secs(40);
/// Pause between two checks of an awaited state.
const POLL: Duration = Duration::from_millis(50);
/// Number of attempts to start. Another process can bind a port after this process has checked it and before the server
/// binds it.
const START_ATTEMPTS: usize = 3;

/// Options of a control plane.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Interval in which the API server compacts etcd; 5 minutes if absent.
    pub(crate) compaction: Option<Duration>,
    /// Whether the API server writes each request to [`ControlPlane::audit_log`], as one JSON object per line.
    pub(crate) audit: bool,
    /// Further flags for kube-apiserver.
    pub(crate) api_server_flags: Vec<String>,
}

/// etcd and kube-apiserver. They run until the value is dropped.
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
    /// Starts a control plane of this test only, applies the CRD of claims, and waits until both are ready.
    ///
    /// # Panics
    /// When the binaries do not exist and cannot be built, or when the servers are not ready within 90 s. The message
    /// contains the last lines of the API server's log.
    pub(crate) async fn start() -> Self {
        Self::start_with(&Options::default()).await
    }

    /// Does the same as [`Self::start`], with options.
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

    /// Returns the control plane that all tests of this process share which do not break it. Each test uses its own
    /// namespace.
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

    /// Returns a client with all permissions. Create one in each test, because its connections belong to the runtime of the
    /// test.
    pub(crate) async fn client(&self) -> Client {
        Client::try_from(self.config(ADMIN_TOKEN).await).unwrap()
    }

    /// Returns the configuration of a client with this token. The client itself retries nothing.
    pub(crate) async fn config(&self, token: &str) -> Config {
        // Only the first call in the process installs the provider. Later calls fail, which is harmless.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig_of(token)).unwrap();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        config.default_retry = false;
        config
    }

    /// Returns the path of a kubeconfig file with all permissions, for kubectl and the bridge's binary.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_of(ADMIN_TOKEN)
    }

    /// Returns the path of a kubeconfig file with this token.
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
        // The file is replaced atomically, because other tests of this process can read it meanwhile.
        let mut temporary = tempfile::NamedTempFile::new_in(self.dir.path()).unwrap();
        temporary.write_all(file.to_string().as_bytes()).unwrap();
        temporary.persist(&path).unwrap();
        path
    }

    /// Returns the path of kubectl, for a test that starts it itself.
    pub(crate) fn kubectl_binary(&self) -> &Path {
        &self.kubectl
    }

    /// Runs kubectl with all permissions. Returns its standard output, or its standard error if it fails.
    pub(crate) async fn kubectl(&self, args: &[&str], stdin: &str) -> Result<String, String> {
        self.kubectl_with(args, stdin, &self.kubeconfig().to_string_lossy()).await
    }

    /// Does the same with this value of `KUBECONFIG`.
    pub(crate) async fn kubectl_with(&self, args: &[&str], stdin: &str, kubeconfig: &str) -> Result<String, String> {
        let mut child = tokio::process::Command::new(&self.kubectl)
            .args(args)
            .env("KUBECONFIG", kubeconfig)
            .env("KUBECACHEDIR", self.dir.path().join("kubectl-cache"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        // A kubectl that does not read its input closes it. This is not an error of the test.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes()).await;
        let output = tokio::time::timeout(KUBECTL_BOUND, child.wait_with_output())
            .await
            .expect("kubectl does not end in time")
            .unwrap();
        let printed = if output.status.success() { Ok(output.stdout) } else { Err(output.stderr) };
        printed.map(|bytes| text(&bytes)).map_err(|bytes| text(&bytes))
    }

    /// Creates a namespace and returns its name.
    pub(crate) async fn namespace(&self) -> String {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"generateName": "test-"}})).unwrap();
        let created = Api::all(self.client().await).create(&PostParams::default(), &namespace).await.unwrap();
        created.metadata.name.unwrap()
    }

    /// Kills the API server (kill -9). Its watch history is lost with its memory.
    pub(crate) fn kill_api_server(&mut self) {
        self.api_server.kill();
    }

    /// Starts a killed API server on its former port and waits until it is ready. etcd must run.
    pub(crate) async fn start_api_server(&mut self) {
        self.api_server.start();
        self.ready().await.unwrap();
    }

    /// Returns whether the API server is started and not killed.
    pub(crate) fn has_api_server(&self) -> bool {
        self.api_server.is_started()
    }

    /// Kills etcd (kill -9). Acknowledged writes survive; only a crash of the machine would lose them.
    pub(crate) fn kill_etcd(&mut self) {
        self.etcd.kill();
    }

    /// Copies the data of etcd.
    pub(crate) async fn backup_etcd(&mut self) {
        self.kill_etcd();
        self.copy("etcd", "etcd-backup");
        self.start_etcd().await;
    }

    /// Restores the copy of etcd's data and starts a new API server on it.
    pub(crate) async fn restore_etcd(&mut self) {
        self.kill_api_server();
        self.kill_etcd();
        self.copy("etcd-backup", "etcd");
        self.start_etcd().await;
        self.start_api_server().await;
    }

    fn copy(&self, from: &str, to: &str) {
        let [from, to] = [from, to].map(|name| self.dir.path().join(name));
        let _ = std::fs::remove_dir_all(&to);
        let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
        assert!(copied.success());
    }

    /// Starts a killed etcd with its former port and data. Waits until the API server is ready, unless it is killed too.
    pub(crate) async fn start_etcd(&mut self) {
        self.etcd.start();
        if self.api_server.is_started() {
            self.ready().await.unwrap();
        }
    }

    /// Compacts etcd's history up to now. Waits until the API server answers 410 to an exact list of Pods at the
    /// version before. This takes up to 15 s, the interval in which the API server checks its snapshots. It is
    /// immediate with the flag `--feature-gates=ListFromCacheSnapshot=false`, or if the API server has just been
    /// started.
    pub(crate) async fn compact(&self) {
        let etcd = self.etcd_client();
        let key = BASE64.encode("compact_rev_key");
        let before = revision(&etcd_call(&etcd, "range", &json!({"key": key})).await);
        // The API server detects a compaction by the key in which its own compactor stores the revision.
        let value = BASE64.encode((before + 1).to_string());
        let after = revision(&etcd_call(&etcd, "put", &json!({"key": key, "value": value})).await);
        etcd_call(&etcd, "compaction", &json!({"revision": after.to_string(), "physical": true})).await;
        let client = self.client().await;
        let path = format!("/api/v1/pods?limit=1&resourceVersionMatch=Exact&resourceVersion={before}");
        let end = Instant::now() + COMPACT_BOUND;
        loop {
            match client.request_text(get(&path)).await {
                Err(kube::Error::Api(status)) if status.code == 410 => return,
                other => assert!(Instant::now() < end, "expected 410 for an exact list of Pods at {before}: {other:?}"),
            }
            sleep(POLL).await;
        }
    }

    /// Sends a request with all permissions and returns the object in the response.
    ///
    /// # Panics
    /// When the API server answers with an error.
    pub(crate) async fn call(&self, method: http::Method, path: &str, body: &Value) -> Value {
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder().method(&method).uri(path).header("content-type", "application/json");
        let answer = self.client().await.request(request.body(bytes).unwrap()).await;
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// Signs bytes as the API server signs tokens of service accounts (ES256).
    pub(crate) fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        sign(self.dir.path(), bytes)
    }

    /// Returns the metrics of the API server as text.
    pub(crate) async fn metrics(&self) -> String {
        self.client().await.request_text(get("/metrics")).await.unwrap()
    }

    /// Returns the number of watches of a resource (its plural name) that the API server serves now, in all namespaces.
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

    /// Returns the path of the log that [`Options::audit`] turns on.
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
        tokio::time::timeout(READY_BOUND, wait).await.expect("the CRD is not established in time").unwrap();
    }

    /// Waits until `/readyz` answers 200. It does so when etcd and the initial roles of RBAC are ready.
    async fn ready(&mut self) -> Result<(), String> {
        let end = Instant::now() + READY_BOUND;
        // The API server creates the certificate at its first start. A client needs the certificate.
        let mut client = None;
        let mut last = String::from("no certificate exists");
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
        Err(format!("the control plane is not ready within {READY_BOUND:?}: {last}\n{}", self.api_server.log_tail()))
    }

    /// Returns a client of etcd's HTTP gateway. kube's client serves as an HTTP client.
    fn etcd_client(&self) -> Client {
        let url = format!("http://127.0.0.1:{}", self.etcd_port).parse().unwrap();
        Client::try_from(Config::new(url)).unwrap()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.api_server.kill();
        self.etcd.kill();
        // The shell process continues at the end of its input. The servers are killed, so it only removes the folder.
        drop(self.orphan_killer.stdin.take());
        let _ = self.orphan_killer.wait();
    }
}

async fn etcd_call(etcd: &Client, method: &str, body: &Value) -> Value {
    let request = Request::post(format!("/v3/kv/{method}")).body(body.to_string().into_bytes()).unwrap();
    etcd.request(request).await.unwrap()
}

/// Returns the revision in the header of etcd's response. Its gateway writes 64-bit numbers as JSON strings.
fn revision(answer: &Value) -> u64 {
    answer["header"]["revision"].as_str().unwrap().parse().unwrap()
}

fn get(path: &str) -> Request<Vec<u8>> {
    Request::get(path).body(Vec::new()).unwrap()
}
