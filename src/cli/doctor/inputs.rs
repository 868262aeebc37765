//! The flags of the schema pack, the WebAssembly module, MQTT and NATS, as checks of `doctor` (docs/protocol.md#doctor).

use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::{
    cli::{exit::CliError, mqtt, nats, serve::Serve},
    doctor::{Outcome, shell_path},
};

/// Checks the flags of MQTT, NATS and traces as `serve` does, and reads the certificates that they name.
///
/// # Errors
/// Why `serve` would refuse them.
pub(super) async fn check_flags(serve: Arc<Serve>) -> Result<(), String> {
    let check = move || -> Result<(), CliError> {
        serve.mqtt.resolve()?;
        serve.nats.resolve(&serve.namespace)?;
        serve.otlp.resolve()?;
        Ok(())
    };
    let checked = spawn_blocking(check).await.map_err(|error| error.to_string())?;
    checked.map_err(|error| error.text())
}

/// Checks the file of `--schema-pack`.
pub(super) fn schema_pack(serve: &Serve) -> Outcome {
    match serve.ingest.validation.read_pack() {
        None => Outcome::skipped("--schema-pack is not set: the embedded defaults are in use"),
        Some((path, Ok(pack))) => {
            Outcome::passed(format!("{} can be used; entities with rules: {}", path.display(), pack.entities()))
        }
        Some((path, Err(reason))) => Outcome::warning(
            format!("{} cannot be used, and serve uses the embedded defaults: {reason}", path.display()),
            format!("${{EDITOR:-vi}} {}", shell_path(path)),
        ),
    }
}

/// Checks the file of `--booster-wasm`.
pub(super) fn wasm(serve: &Serve) -> Outcome {
    match serve.ingest.validation.load_booster() {
        None => Outcome::skipped("--booster-wasm is not set"),
        Some((path, Ok(_))) => Outcome::passed(format!("{} can be loaded", path.display())),
        Some((path, Err(reason))) => Outcome::failed(
            format!("{} cannot be used: {reason}", path.display()),
            format!("wasm-tools print {}", shell_path(path)),
        ),
    }
}

/// Connects to the broker of `--mqtt-url`.
pub(super) async fn mqtt(serve: Arc<Serve>) -> Outcome {
    let of_flags = serve.clone();
    let Ok(flags) = spawn_blocking(move || of_flags.mqtt.resolve()).await else { return unexpected() };
    judge(
        match flags {
            Ok(None) => return Outcome::skipped("--mqtt-url is not set"),
            Ok(Some(broker)) => mqtt::check(broker).await,
            Err(error) => Err(error.text()),
        },
        serve.mqtt.show_command(),
    )
}

/// Connects to the servers of `--nats-url`.
pub(super) async fn nats(serve: Arc<Serve>) -> Outcome {
    let of_flags = serve.clone();
    let Ok(flags) = spawn_blocking(move || of_flags.nats.resolve(&of_flags.namespace)).await else {
        return unexpected();
    };
    judge(
        match flags {
            Ok(None) => return Outcome::skipped("--nats-url is not set"),
            Ok(Some(servers)) => nats::check(servers).await,
            Err(error) => Err(error.text()),
        },
        serve.nats.show_command(&serve.namespace),
    )
}

/// A bridge works without its brokers, so that a failure is a warning.
fn judge(found: Result<String, String>, hint: String) -> Outcome {
    match found {
        Ok(detail) => Outcome::passed(detail),
        Err(reason) => Outcome::warning(reason, hint),
    }
}

/// The outcome after a panic of a thread.
fn unexpected() -> Outcome {
    Outcome::failed("the flags could not be checked", "boilerhouse-bridge --version")
}
