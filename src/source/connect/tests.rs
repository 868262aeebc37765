use std::fs;

use super::*;

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

/// The whole chain, as cli prints it.
fn told(error: &Error) -> String {
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
    assert_eq!(told(&error), "the kubeconfig has no context `prod`; it has `home`, `away`");
    let error = connect(&Config { context: Some("away".into()), ..config }).await.unwrap_err();
    assert!(told(&error).contains("`proxy-url`"), "{error}");

    let (_dir, config) = file(&TWO_CONTEXTS.replace("current-context: home", ""));
    let error = connect(&config).await.unwrap_err();
    assert_eq!(
        told(&error),
        "the kubeconfig names no current context; choose one with --context: it has `home`, `away`"
    );

    let (_dir, config) = file(&TWO_CONTEXTS.replace("name: c, cluster", "name: d, cluster"));
    let error = connect(&config).await.unwrap_err();
    assert!(told(&error).starts_with("the context `home` of the kubeconfig cannot be used: "), "{}", told(&error));
}

#[tokio::test]
async fn explicit_kubeconfig_must_exist_and_parse() {
    let (dir, config) = file("{nonsense");
    assert!(matches!(connect(&config).await, Err(Error::Malformed { .. })));
    let config = Config { kubeconfig: Some(dir.path().join("none")), ..config };
    let error = connect(&config).await.unwrap_err();
    assert!(told(&error).contains("none"), "{}", told(&error));
}

#[tokio::test]
async fn credential_plugin_error_hides_the_token() {
    let plugin = "exec: {apiVersion: client.authentication.k8s.io/v1, command: sh, interactiveMode: Never, \
                  args: ['-c', 'echo canary-token; exit 3']}";
    let (_dir, config) = file(&TWO_CONTEXTS.replace("token: canary-token", plugin));
    let error = connect(&config).await.unwrap_err();
    let told = told(&error);
    assert!(told.contains("credential plugin") && told.contains("exit status: 3"), "{told}");
    assert!(!format!("{told} {error:?}").contains("canary"), "{error:?}");
}

#[tokio::test]
async fn kubeconfig_parse_error_gives_position_without_content() {
    let misspelt = TWO_CONTEXTS.replace("user: {token: canary-token}", "user: {token: [canary-token]}");
    for (text, place) in [
        ("canary-token", "line 1, column 1"),
        (&misspelt, "line 12, column 27"),
        ("users:\n- {name: u, user: {token: 'canary-token}}", "line 2, column 27"),
    ] {
        let (_dir, config) = file(text);
        let error = connect(&config).await.unwrap_err();
        let told = told(&error);
        assert!(told.ends_with(&format!("cannot be understood: something is wrong at {place}")), "{told}");
        assert!(!format!("{told} {error:?}").contains("canary"), "{error:?}");
    }
}

#[test]
fn kubeconfig_search_paths_match_kubectl() {
    let path = PathBuf::from;
    let home = || Some(path("/home/a"));
    assert_eq!(kubeconfig_paths(Some(Path::new("/x")), Some("/y".into()), home()), [path("/x")]);
    assert_eq!(kubeconfig_paths(None, Some("/y:/z:".into()), home()), [path("/y"), path("/z")]);
    assert_eq!(kubeconfig_paths(None, Some("".into()), home()), [path("/home/a/.kube/config")]);
    assert_eq!(kubeconfig_paths(None, None, home()), [path("/home/a/.kube/config")]);
    assert_eq!(kubeconfig_paths(None, None, None), Vec::<PathBuf>::new());
}

#[test]
fn kubeconfig_variable_files_are_merged_and_may_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (one, none) = (dir.path().join("one"), dir.path().join("none"));
    fs::write(&one, TWO_CONTEXTS).unwrap();
    let kubeconfig = read(&[none.clone(), one], false).unwrap().unwrap();
    assert_eq!(context(&kubeconfig, None).unwrap(), "home");
    assert!(read(std::slice::from_ref(&none), false).unwrap().is_none());
    assert!(matches!(read(&[none], true), Err(Error::Read { .. })));
}

/// What the real client stack says about a server, as the hub would tell it.
async fn trouble(scheme: &str, port: u16) -> UpstreamError {
    let (_dir, config) = file(&TWO_CONTEXTS.replace("http://127.0.0.1:1'", &format!("{scheme}://127.0.0.1:{port}'")));
    let ClusterConnection { client, server, .. } = connect(&config).await.unwrap();
    let ask = RequestInfo { verb: "list", resource: "pods".into(), namespace: "bh".into(), server: server.into() };
    let error = client.send(http::Request::get("/api").body(Body::empty()).unwrap()).await.unwrap_err();
    UpstreamError::from_client_error(&error, &ask)
}

#[tokio::test]
async fn closed_port_is_refused_and_plaintext_server_is_a_tls_error() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let plain = async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut socket, _) = listener.accept().await.unwrap();
        let _ = socket.read(&mut [0; 512]).await;
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        std::future::pending().await
    };
    let told = tokio::select! {
        told = tokio::time::timeout(Duration::from_secs(10), trouble("https", port)) => told.unwrap(),
        () = plain => unreachable!("it waits for ever"),
    };
    assert!(matches!(told, UpstreamError::Tls { .. }), "{told:?}");
    drop(listener);
    assert_eq!(
        trouble("http", port).await,
        UpstreamError::ConnectionRefused { server: format!("http://127.0.0.1:{port}").into() }
    );
}
