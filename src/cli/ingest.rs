//! The flags of telemetry, and of the validation of payloads from outside.

use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use tracing::{error, info};

use super::{exit::CliError, parsers::integer_in};
use crate::validate::{
    Booster, MAX_MODULE_BYTES, Validator,
    schema_pack::{self, SchemaPack},
};

/// Arguments of telemetry, and of the validation of payloads.
#[derive(Clone, Debug, Args)]
pub(super) struct IngestArgs {
    /// Seconds for which the telemetry of a tunnel is served after it was received
    #[arg(long, env = "BRIDGE_TELEMETRY_TTL", default_value_t = 300, value_name = "SECONDS")]
    #[arg(value_parser = integer_in::<u64>(1..=86_400))]
    telemetry_ttl: u64,

    #[command(flatten)]
    pub(super) validation: ValidationArgs,
}

/// Arguments of the validation of payloads.
#[derive(Clone, Debug, Args)]
pub(super) struct ValidationArgs {
    /// Path of a schema pack (JSON): for each entity the required fields of its payloads, or their JSON Schema. If it cannot be
    /// used, that is logged, and the embedded defaults are in use
    #[arg(long, env = schema_pack_env(), value_name = "FILE")]
    schema_pack: Option<PathBuf>,

    /// Path of a WebAssembly module that accepts or refuses payloads. It needs a binary with the feature `wasm`
    #[arg(long, env = "BRIDGE_BOOSTER_WASM", value_name = "FILE")]
    booster_wasm: Option<PathBuf>,
}

/// Returns the variable of `--schema-pack`. The name that other tools use is read when the own one is not set.
fn schema_pack_env() -> &'static str {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let [own, other] = ["BRIDGE_SCHEMA_PACK", "EP_SCHEMA_PACK_FILE"];
    if !is_set(own) && is_set(other) { other } else { own }
}

impl IngestArgs {
    pub(super) fn telemetry_ttl(&self) -> Duration {
        Duration::from_secs(self.telemetry_ttl)
    }
}

impl ValidationArgs {
    /// Returns the validator, and a line for `/readyz?verbose` if the schema pack is not in use.
    ///
    /// # Errors
    /// An unusable module.
    pub(super) fn validator(&self) -> Result<(Arc<Validator>, Option<String>), CliError> {
        let (pack, warning) = self.pack();
        Ok((Arc::new(Validator::new(pack, self.booster()?)), warning))
    }

    /// Refuses the flags of a command that has nothing to validate without `needed`.
    ///
    /// # Errors
    /// One of the flags is set.
    pub(super) fn refuse_without(&self, needed: &str) -> Result<(), CliError> {
        let flags = [("--schema-pack", &self.schema_pack), ("--booster-wasm", &self.booster_wasm)];
        match flags.into_iter().find(|(_, value)| value.is_some()) {
            None => Ok(()),
            Some((flag, _)) => Err(CliError::usage(format!("{flag} needs {needed}"))),
        }
    }

    fn pack(&self) -> (SchemaPack, Option<String>) {
        match self.read_pack() {
            None => (SchemaPack::default(), None),
            Some((_, Ok(pack))) => {
                info!(pack = pack.title(), entities = pack.entities(), "schema pack in use");
                (pack, None)
            }
            Some((path, Err(reason))) => {
                error!(file = %path.display(), reason, "schema pack not usable; the embedded defaults are in use");
                (SchemaPack::default(), Some(format!("schema pack not usable, embedded defaults in use: {reason}")))
            }
        }
    }

    /// Reads the file of `--schema-pack`, if there is one.
    pub(super) fn read_pack(&self) -> Option<(&Path, Result<SchemaPack, String>)> {
        let path = self.schema_pack.as_deref()?;
        let read = read_bounded(path, schema_pack::MAX_BYTES).map_err(|error| format!("it cannot be read: {error}"));
        Some((path, read.and_then(|file| SchemaPack::parse(&file).map_err(|error| error.to_string()))))
    }

    fn booster(&self) -> Result<Booster, CliError> {
        match self.load_booster() {
            None => Ok(Booster::default()),
            Some((path, Ok(booster))) => {
                info!(file = %path.display(), "WebAssembly module in use");
                Ok(booster)
            }
            Some((path, Err(reason))) => Err(CliError::usage(format!("--booster-wasm {}: {reason}", path.display()))),
        }
    }

    /// Loads the module of `--booster-wasm`, if there is one.
    pub(super) fn load_booster(&self) -> Option<(&Path, Result<Booster, String>)> {
        let path = self.booster_wasm.as_deref()?;
        let file = read_bounded(path, MAX_MODULE_BYTES).map_err(|error| error.to_string());
        Some((path, file.and_then(|file| Booster::load(&file).map_err(|error| error.to_string()))))
    }
}

/// Reads a file, and one byte more than `max` of a longer one.
fn read_bounded(path: &Path, max: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(max as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
