//! The checks of the schema pack, the WebAssembly module, and of real brokers.

use serde_json::json;

use super::{Run, run};

async fn check(id: &str, args: &[&str]) -> Run {
    let mut all = vec!["--only", id];
    all.extend(args);
    run(&all).await
}

#[tokio::test]
async fn schema_pack_must_be_readable_and_valid() {
    check("schema-pack", &[]).await.expect("schema-pack", "skipped", "info", "--schema-pack is not set");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pack.json");
    let name = file.to_str().unwrap().to_owned();
    let pack = json!({"version": "1", "name": "p", "entities": {"Telemetry": {"required": ["requests"]}}});
    for (text, words) in [(None, "it cannot be read"), (Some("{"), "pack.json"), (Some("{}"), "pack.json")] {
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        let broken = check("schema-pack", &["--schema-pack", &name]).await;
        broken.expect("schema-pack", "failed", "warning", words);
        assert_eq!(broken.hint("schema-pack"), format!("${{EDITOR:-vi}} {name}"));
    }
    std::fs::write(&file, pack.to_string()).unwrap();
    check("schema-pack", &["--schema-pack", &name]).await.expect_passed("schema-pack", "entities with rules: 1");
}

#[tokio::test]
async fn module_must_be_one_that_serve_accepts() {
    check("wasm", &[]).await.expect("wasm", "skipped", "info", "--booster-wasm is not set");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("module.wasm");
    let name = file.to_str().unwrap().to_owned();
    check("wasm", &["--booster-wasm", &name]).await.expect("wasm", "failed", "error", "No such file");
    std::fs::write(&file, "(module)").unwrap();
    let expected = if cfg!(feature = "wasm") { "not a WebAssembly module" } else { "without the feature `wasm`" };
    check("wasm", &["--booster-wasm", &name]).await.expect("wasm", "failed", "error", expected);
}

#[cfg(feature = "wasm")]
#[tokio::test]
async fn module_with_the_documented_exports_passes() {
    let module = r#"(module (memory (export "memory") 1)
        (func (export "validate") (param i32 i32) (result i32) (i32.const 1)))"#;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), wat::parse_str(module).unwrap()).unwrap();
    check("wasm", &["--booster-wasm", &file.path().to_string_lossy()]).await.expect_passed("wasm", "can be loaded");
}

#[cfg(not(feature = "mqtt"))]
#[tokio::test]
async fn binary_without_mqtt_fails_the_check_of_the_configuration() {
    let run = check("mqtt", &["--mqtt-url", "mqtt://127.0.0.1:1", "--mqtt-topic", "a"]).await;
    run.expect("config", "failed", "error", "no MQTT support");
    run.expect("mqtt", "skipped", "info", "the check config failed");
}

#[cfg(feature = "mqtt")]
mod mqtt {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::{super::Run, check};
    use crate::support::{
        bridge_process::BridgeProcess,
        broker::Broker,
        http_client::{self, metric, poll_until_async},
        sim_cluster::SimCluster,
    };

    async fn connect(url: &str, args: &[&str]) -> Run {
        let mut all = vec!["--mqtt-url", url];
        all.extend(args);
        check("mqtt", &all).await
    }

    #[tokio::test]
    async fn user_password_and_topics_are_tried() {
        check("mqtt", &[]).await.expect("mqtt", "skipped", "info", "--mqtt-url is not set");
        let passwords = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(passwords.path(), "bridge:a long pass word\n").unwrap();
        let hashed = tokio::process::Command::new("mosquitto_passwd").arg("-U").arg(passwords.path()).status().await;
        assert!(hashed.unwrap().success());
        let hashed = std::fs::read_to_string(passwords.path()).unwrap();
        let files = [
            ("users", &*hashed),
            ("user", "bridge\n"),
            ("password", "wrong"),
            ("acl", "user bridge\ntopic read open/#\n"),
        ];
        let lines = ["allow_anonymous false", "password_file DIR/users"];
        let mut broker = Broker::mosquitto(&lines, &files).await;
        let file = |name| broker.file(name).to_string_lossy().into_owned();
        let (user, password, url) = (file("user"), file("password"), format!("mqtt://{}", broker.address));
        let credentials = ["--mqtt-username-file", &user, "--mqtt-password-file", &password];
        let with = async |topic: &str| {
            let run = connect(&url, &[&["--mqtt-topic", topic], &credentials[..]].concat()).await;
            assert!(!run.report.to_string().contains("pass word"), "{:#}", run.report);
            run
        };
        let refused = "the broker does not accept the user or the password";
        let wrong = with("open/a").await;
        wrong.expect("mqtt", "failed", "warning", refused);
        assert_eq!(wrong.code, 0, "a bridge works without its broker");
        let port = broker.address.port();
        let hint = format!(
            "mosquitto_sub -V 5 -C 1 -W 10 -t '$SYS/#' -h 127.0.0.1 -p {port} -u \"$(cat {user})\" -P \"$(cat {password})\""
        );
        assert_eq!(wrong.hint("mqtt"), hint);
        connect(&url, &["--mqtt-topic", "a"]).await.expect("mqtt", "failed", "warning", refused);
        std::fs::write(&password, "a long pass word\n").unwrap();
        with("open/a,$share/g/open/#").await.expect_passed("mqtt", "accepts the connection and the subscription");
        broker.kill();
        with("open/a").await.expect("mqtt", "failed", "warning", "connection refused");
    }

    /// mosquitto accepts every subscription, so this broker is a script (MQTT 5.0, sections 3.2, 3.8 and 3.9).
    #[tokio::test]
    async fn refused_subscription_is_reported() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("mqtt://{}", listener.local_addr().unwrap());
        let broker = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut packet = [0; 1024];
            assert!(stream.read(&mut packet).await.unwrap() > 0, "CONNECT");
            stream.write_all(&[0x20, 3, 0, 0, 0]).await.unwrap();
            assert!(stream.read(&mut packet).await.unwrap() > 4 && packet[0] == 0x82, "SUBSCRIBE: {packet:?}");
            let (granted, not_authorized) = (0, 0x87);
            stream.write_all(&[0x90, 5, packet[2], packet[3], 0, granted, not_authorized]).await.unwrap();
            // Until the client closes the connection.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        };
        let (found, ()) = tokio::join!(connect(&url, &["--mqtt-topic", "open,$share/g/closed"]), broker);
        found.expect("mqtt", "failed", "warning", "the broker refuses the subscription to 'closed': NotAuthorized");
    }

    /// A check does not disturb a bridge with the same client id, and takes no message from its group.
    #[tokio::test]
    async fn running_bridge_keeps_its_connection_and_its_messages() {
        let broker = Broker::mosquitto(&["allow_anonymous true"], &[]).await;
        let cluster = SimCluster::new().await;
        let url = format!("mqtt://{}", broker.address);
        let args = ["--mqtt-topic", "$share/g/#", "--mqtt-client-id", "bridge"];
        let bridge: BridgeProcess = cluster.bridge(&[&["--mqtt-url", &url], &args[..]].concat()).await;
        let is_up = async || (metric(bridge.address, "bridge_mqtt_up").await == 1).then_some(());
        poll_until_async(is_up).await;
        for number in 0..4 {
            let payload = number.to_string();
            let publish = broker.publish("a", payload.as_bytes(), &["-q", "1"]);
            let (found, ()) = tokio::join!(connect(&url, &args), publish);
            found.expect_passed("mqtt", "accepts");
        }
        let has_all = async || {
            let published = "bridge_mqtt_messages_total{outcome=\"published\"}";
            (metric(bridge.address, published).await == 4).then_some(())
        };
        poll_until_async(has_all).await;
        assert_eq!(metric(bridge.address, "bridge_mqtt_connections_total").await, 1);
        assert_eq!(http_client::get(bridge.address, "/readyz").await.status, 200);
    }
}

#[cfg(feature = "nats")]
mod nats {
    use super::check;
    use crate::support::{
        broker::Broker,
        http_client::{get, poll_until_async},
        sim_cluster::SimCluster,
    };

    const AUTHENTICATED: &str = include_str!("../../nats-server/authenticated.conf");
    const CREDENTIALS: &str = include_str!("../../nats-server/bridge.creds");

    #[tokio::test]
    async fn server_jetstream_and_bucket_are_tried() {
        check("nats", &[]).await.expect("nats", "skipped", "info", "--nats-url is not set");
        let mut nats = Broker::nats("", &[]).await;
        let url = format!("nats://{}", nats.address);
        let connect = async |args: &[&str]| check("nats", &[&["--nats-url", &url], args].concat()).await;
        // Twice: the check creates no bucket.
        for _ in 0..2 {
            connect(&[])
                .await
                .expect_passed("nats", "There is no bucket boilerhouse-boilerhouse yet: serve creates it");
        }
        let cluster = SimCluster::new().await;
        let bridge = cluster.bridge(&["--nats-url", &url, "--nats-bucket", "used"]).await;
        let has_bucket =
            async || get(bridge.address, "/readyz?verbose").await.body.contains("nats: connected").then_some(());
        poll_until_async(has_bucket).await;
        connect(&["--nats-bucket", "used"]).await.expect_passed("nats", "the bucket used can be read");
        nats.kill();
        let down = connect(&[]).await;
        down.expect("nats", "failed", "warning", "no connection");
        assert_eq!(down.hint("nats"), format!("nats --server {url} kv info boilerhouse-boilerhouse"));
        assert_eq!(down.code, 0, "a bridge works without NATS");
    }

    #[tokio::test]
    async fn server_without_jetstream_fails() {
        let nats = Broker::nats("accounts: {A: {users: [{user: a}]}}\nno_auth_user: a\n", &[]).await;
        let found = check("nats", &["--nats-url", &format!("nats://{}", nats.address)]).await;
        found.expect("nats", "failed", "warning", "JetStream");
    }

    #[tokio::test]
    async fn credentials_are_tried() {
        let nats = Broker::nats(AUTHENTICATED, &[("bridge.creds", "nothing")]).await;
        let (url, file) = (format!("nats://{}", nats.address), nats.file("bridge.creds"));
        let credentials = file.to_string_lossy().into_owned();
        let connect = async |args: &[&str]| check("nats", &[&["--nats-url", &url], args].concat()).await;
        connect(&[]).await.expect("nats", "failed", "warning", "no connection");
        let with = ["--nats-credentials-file", &credentials];
        connect(&with).await.expect("nats", "failed", "warning", "no valid user JWT and seed");
        std::fs::write(&file, CREDENTIALS).unwrap();
        connect(&with).await.expect_passed("nats", "NATS accepts the connection");
    }
}
