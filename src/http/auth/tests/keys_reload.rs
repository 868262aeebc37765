//! Tests of the keys file while the file system does not answer, in real time: a blocking thread reads the file.

use std::{fmt::Write as _, path::Path, sync::Mutex};

use super::{keys::KeysFileError, keys_file::reread, *};

/// Returns a keys file with one key.
fn keys_file(secret: &str, expires_at: Timestamp) -> String {
    let mut hash = String::new();
    for byte in Secret::new(secret).fingerprint().bytes() {
        write!(hash, "{byte:02x}").unwrap();
    }
    format!("keys: [{{name: {secret}, sha256: {hash}, expiresAt: '{expires_at}'}}]")
}

/// Runs the watchdog until `condition` holds.
async fn run_until(auth: &Authenticator, condition: impl Fn() -> bool) {
    let reached = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        never = auth.run_watchdog() => match never {},
        reached = timeout(Duration::from_secs(60), reached) => reached.expect("the awaited state is not reached"),
    }
}

/// While it is locked, the file system does not answer.
static FILE_SYSTEM: Mutex<()> = Mutex::new(());

fn read_when_unlocked(path: &Path) -> Result<String, KeysFileError> {
    let _unlocked = FILE_SYSTEM.lock().unwrap();
    reread(path)
}

#[tokio::test]
#[expect(clippy::await_holding_lock, reason = "the lock stands for a read that does not end")]
async fn file_system_without_an_answer_delays_only_the_reload() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let end = Timestamp::now() + Duration::from_secs(2);
    std::fs::write(file.path(), keys_file("first", end)).unwrap();
    let config = Config {
        check_interval: Duration::from_millis(5),
        keys_reload_interval: Duration::from_millis(5),
        keys_read_timeout: Duration::from_millis(10),
        ..Config::default()
    };
    let sources = CredentialSources { file: Some(file.path().to_owned()), ..CredentialSources::default() };
    let (mut auth, limits) = (Authenticator::new(config, sources, Metrics::default()).unwrap(), limits());
    let opened = Arc::into_inner(auth.file.take().unwrap()).unwrap();
    auth.file = Some(opened.with_read(read_when_unlocked).into());
    let principal = authenticate(&auth, &limits, HERE, "first").await.unwrap();
    let mut watch = auth.watch(&principal).unwrap();
    std::fs::write(file.path(), keys_file("second", Timestamp::MAX)).unwrap();

    let read = FILE_SYSTEM.lock().unwrap();
    run_until(&auth, || auth.metrics.keys_file_errors.get() == 1).await;
    // The expiry of a credential is still noticed, and requests are answered.
    let mut ended = false;
    let expired = async {
        while !ended {
            ended = watch.next().await == Some(CredentialStatus::Ended(CloseReason::CredentialExpired));
        }
    };
    tokio::select! {
        never = auth.run_watchdog() => match never {},
        expired = timeout(Duration::from_secs(60), expired) => expired.expect("the end of the key is not noticed"),
    }
    assert_eq!(status_of(authenticate(&auth, &limits, HERE, "second").await.unwrap_err()).0, 401);

    drop(read);
    let is_known = || auth.status(&principal.identity) == CredentialStatus::Ended(CloseReason::AccessRevoked);
    run_until(&auth, is_known).await;
    assert!(authenticate(&auth, &limits, HERE, "second").await.is_ok());
}
