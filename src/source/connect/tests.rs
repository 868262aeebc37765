mod credentials;
mod mutations;
mod test_server;

use std::{fs, path::Path};

use kube::client::Body;

use super::*;
use crate::source::error::{RequestInfo, UpstreamError};

const TWO_CONTEXTS: &str = "
apiVersion: v1
kind: Config
current-context: home
clusters:
- {name: c, cluster: {server: 'http://127.0.0.1:1'}}
- {name: p, cluster: {server: 'http://127.0.0.1:1', proxy-url: 'http://127.0.0.1:2'}}
contexts:
- {name: home, context: {cluster: c, user: u}}
- {name: away, context: {cluster: p, user: u}}
users:
- {name: u, user: {token: canary-token}}
";

fn file(text: &str) -> (tempfile::TempDir, Config) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config");
    fs::write(&path, text).unwrap();
    (dir, Config { kubeconfig: Some(path), ..Config::default() })
}

/// The error with all its causes, as `cli` prints it.
fn full_text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[tokio::test]
async fn current_context_is_the_default() {
    let (_dir, config) = file(TWO_CONTEXTS);
    let connection = connect(&config).await.unwrap();
    assert_eq!(format!("{connection:?}"), "ClusterConnection(home, boilerhouse, http://127.0.0.1:1)");
}

#[tokio::test]
async fn missing_context_error_lists_available_contexts() {
    let (_dir, config) = file(TWO_CONTEXTS);
    let error = connect(&Config { context: Some("prod".into()), ..config.clone() }).await.unwrap_err();
    assert_eq!(full_text(&error), "the kubeconfig has no context `prod`; it has `home`, `away`");
    let error = connect(&Config { context: Some("away".into()), ..config }).await.unwrap_err();
    assert!(full_text(&error).contains("cluster `p`: proxy-url"), "{error}");

    let (_dir, config) = file(&TWO_CONTEXTS.replace("current-context: home", ""));
    let error = connect(&config).await.unwrap_err();
    assert_eq!(
        full_text(&error),
        "the kubeconfig names no current context; choose one with --context: it has `home`, `away`"
    );

    let (_dir, config) = file(&TWO_CONTEXTS.replace("name: c, cluster", "name: d, cluster"));
    let error = connect(&config).await.unwrap_err();
    assert!(
        full_text(&error).starts_with("cannot use the context `home` of the kubeconfig: context `home`: cluster: "),
        "{}",
        full_text(&error)
    );
}

#[tokio::test]
async fn explicit_kubeconfig_must_exist_and_parse() {
    let (dir, config) = file("{nonsense");
    assert!(matches!(connect(&config).await, Err(Error::Malformed { .. })));
    let config = Config { kubeconfig: Some(dir.path().join("none")), ..config };
    let error = connect(&config).await.unwrap_err();
    assert!(full_text(&error).contains("none"), "{}", full_text(&error));
}

#[tokio::test]
async fn kubeconfig_error_gives_position_or_field_without_content() {
    let wrong_type = TWO_CONTEXTS.replace("user: {token: canary-token}", "user: {token: [canary-token]}");
    for (text, end) in [
        ("{canary-token", "error at line 1, column 1"),
        ("users:\n- {name: u, user: {token: 'canary-token}}", "error at line 2, column 27"),
        (&wrong_type, "user `u`: token: expected a text, found a list"),
        ("canary-token", "the document: expected a mapping"),
    ] {
        let (_dir, config) = file(text);
        let error = connect(&config).await.unwrap_err();
        let text = full_text(&error);
        assert!(text.ends_with(end), "expected {end}: {text}");
        assert!(!format!("{text} {error:?}").contains("canary"), "{error:?}");
    }
}

#[test]
fn kubeconfig_search_paths_match_kubectl() {
    let path = PathBuf::from;
    let home = || Some(path("/home/a"));
    assert_eq!(search_paths(Some(Path::new("/x")), Some("/y".into()), home()), [path("/x")]);
    assert_eq!(search_paths(None, Some("/y:/z:".into()), home()), [path("/y"), path("/z")]);
    assert_eq!(search_paths(None, Some("".into()), home()), [path("/home/a/.kube/config")]);
    assert_eq!(search_paths(None, None, home()), [path("/home/a/.kube/config")]);
    assert_eq!(search_paths(None, None, None), Vec::<PathBuf>::new());
}

#[test]
fn kubeconfig_variable_files_are_merged_and_may_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (one, none) = (dir.path().join("one"), dir.path().join("none"));
    fs::write(&one, TWO_CONTEXTS).unwrap();
    let kubeconfig = Kubeconfig::read(&[none.clone(), one], false).unwrap().unwrap();
    assert_eq!(kubeconfig.context_name(None).unwrap(), "home");
    assert!(Kubeconfig::read(std::slice::from_ref(&none), false).unwrap().is_none());
    assert!(matches!(Kubeconfig::read(&[none], true), Err(Error::Read { .. })));
}

/// The error of a request with the real client to a server at this port.
async fn request_error(scheme: &str, port: u16) -> UpstreamError {
    let (_dir, config) = file(&TWO_CONTEXTS.replace("http://127.0.0.1:1'", &format!("{scheme}://127.0.0.1:{port}'")));
    let ClusterConnection { client, server, .. } = connect(&config).await.unwrap();
    let request_info =
        RequestInfo { verb: "list", resource: "pods".into(), namespace: "bh".into(), server: server.into() };
    let error = client.send(http::Request::get("/api").body(Body::empty()).unwrap()).await.unwrap_err();
    UpstreamError::from_client_error(&error, &request_info)
}

#[tokio::test]
async fn closed_port_is_refused_and_plaintext_server_is_a_tls_error() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let plaintext_server = async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut socket, _) = listener.accept().await.unwrap();
        let _ = socket.read(&mut [0; 512]).await;
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        std::future::pending().await
    };
    let error = tokio::select! {
        result = tokio::time::timeout(Duration::from_secs(10), request_error("https", port)) => result.unwrap(),
        () = plaintext_server => unreachable!("the server never ends"),
    };
    assert!(matches!(error, UpstreamError::Tls { .. }), "expected a TLS error: {error:?}");
    drop(listener);
    assert_eq!(
        request_error("http", port).await,
        UpstreamError::ConnectionRefused { server: format!("http://127.0.0.1:{port}").into() }
    );
}

/// Entries of later files are ignored if their name is known, and paths are relative to the file that contains them.
#[test]
fn first_file_with_a_name_counts_and_paths_are_relative_to_their_file() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    };
    let first = write("one/config", "users: [{name: u, user: {tokenFile: token}}]\n");
    let second = write(
        "two/config",
        "current-context: home\nclusters: [{name: c, cluster: {server: 'https://a', certificate-authority: ../ca.crt}}]\nusers: \
         [{name: u, user: {token: b, client-key: k}}, {name: v, user: {exec: {command: sh}}}, {name: w, user: {exec: \
         {command: ./sh}}}]\ncontexts: [{name: home, context: {cluster: c, user: u}}, {name: v, context: {cluster: c, user: \
         v}}, {name: w, context: {cluster: c, user: w}}]\n",
    );
    let third = write("three", "current-context: v\n");
    let merged = Kubeconfig::read(&[first, second, third], true).unwrap().unwrap();
    assert_eq!(merged.context_name(None).unwrap(), "home");
    let (cluster, user) = merged.cluster_and_user("home").unwrap();
    assert_eq!(Path::new(cluster.text("certificate-authority")), dir.path().join("two/../ca.crt"));
    assert_eq!(Path::new(user.text("tokenFile")), dir.path().join("one/token"));
    assert!(!user.has("token") && !user.has("client-key"), "the second user `u` must be ignored");
    let command =
        |context: &str| merged.cluster_and_user(context).unwrap().1.object("exec").unwrap().text("command").to_owned();
    assert_eq!(command("v"), "sh");
    assert_eq!(Path::new(&command("w")), dir.path().join("two/./sh"));
}

#[tokio::test]
async fn kubeconfig_of_any_length_is_read_up_to_a_bound() {
    let (_dir, config) = file(&format!("{TWO_CONTEXTS}# {}", "x".repeat(1 << 20)));
    connect(&config).await.unwrap();
    let (_dir, config) = file(&"#".repeat((16 << 20) + 1));
    let error = connect(&config).await.unwrap_err();
    assert!(full_text(&error).ends_with("more than 16 MiB"), "{}", full_text(&error));
}

#[test]
fn address_of_a_pod_is_read_from_the_environment() {
    for (host, port, expected) in [
        ("10.0.0.1", "443", Some("https://10.0.0.1:443")),
        ("fd00::1", "6443", Some("https://[fd00::1]:6443")),
        ("api.example", "443", Some("https://api.example:443")),
        ("10.0.0.1", "", Some("https://10.0.0.1")),
        ("10.0.0.1", "https", None),
        ("", "443", None),
        ("a/b", "443", None),
    ] {
        let target = Target::in_cluster(Some(host.into()), Some(port.into()));
        assert_eq!(target.ok().map(|target| target.server.to_string()).as_deref(), expected, "{host} {port}");
    }
}
