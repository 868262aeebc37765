//! The API key of the environment, `BOILERHOUSE_API_KEY` (docs/protocol.md#access).

use tracing::warn;

use crate::{
    cli::exit::CliError,
    http::auth::{keys::ApiKeys, secret::Secret},
};

/// Minimum length of an API key in characters, below which the bridge logs a warning: a shorter key can be found from its
/// hash by trial.
pub(super) const MIN_KEY_CHARS: usize = 16;

/// Reads the API key of the environment. An empty variable counts as unset, with a warning.
pub(super) fn env_api_key() -> Result<Option<Secret>, CliError> {
    let name = ApiKeys::ENVIRONMENT;
    let Some(key) = std::env::var_os(name) else { return Ok(None) };
    if key.is_empty() {
        warn!("{name} is empty, so it counts as unset");
        return Ok(None);
    }
    let key = key
        .into_string()
        .map_err(|_| CliError::usage(format!("{name} is not UTF-8: set a key of ASCII characters")))?;
    match key.trim() {
        "" => Err(CliError::usage(format!("{name} holds only white space: set a key, or unset the variable"))),
        key if key.contains(char::is_whitespace) => {
            Err(CliError::usage(format!("{name} contains white space, which no client can send: set a key without it")))
        }
        key => {
            if key.chars().count() < MIN_KEY_CHARS {
                warn!("{name} is short enough to be guessed; use 32 random characters");
            }
            Ok(Some(Secret::new(key)))
        }
    }
}
