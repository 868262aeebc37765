//! One receiver: what its stream delivers goes into its queue, and from there to the receiver.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::{
    intake::Intake,
    message::Message,
    queue::{Backlog, Input, Output, queue},
    receiver::Receiver,
    send::{Outcome, Sender},
    signature::Secrets,
    state_file::StateFile,
};
use crate::client::{Backoff, Event, random};

/// Time after which the file with the secrets is read again.
const SECRETS_INTERVAL: Duration = Duration::from_secs(10);
/// Bytes of the file with the secrets.
const MAX_SECRETS_BYTES: u64 = 4096;

/// One attempt, for people and scripts.
#[derive(Clone, Debug)]
pub struct Attempt<'a> {
    /// The receiver.
    pub receiver: &'a Receiver,
    /// The type of the event.
    pub kind: &'a str,
    /// The reason of a gap.
    pub reason: Option<&'a str>,
    /// `webhook-id`.
    pub id: &'a str,
    /// The number of the attempt for this event, from 1.
    pub number: u64,
    /// How it ended.
    pub outcome: &'a Outcome,
    /// How long it took.
    pub duration: Duration,
    /// When the next attempt follows.
    pub next: Option<Duration>,
}

/// What is called when something happens.
pub trait Observer: Send + Sync {
    /// Something concerns a person.
    fn report(&self, message: &str);

    /// An attempt has ended.
    fn on_attempt(&self, attempt: &Attempt<'_>);
}

/// The secrets of a file, which is read again from time to time.
#[derive(Clone, Debug)]
pub struct SecretsFile {
    path: PathBuf,
    secrets: Secrets,
    read_at: Instant,
    /// The error of the last read.
    error: Option<String>,
}

impl SecretsFile {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or has no usable secret. The text contains no part of a secret.
    pub fn open(path: PathBuf) -> Result<SecretsFile, String> {
        let secrets = read_secrets(&path)?;
        Ok(SecretsFile { path, secrets, read_at: Instant::now(), error: None })
    }

    /// Reads the file again, if it is time. A file that can no longer be used changes nothing. Returns what to report.
    fn refresh(&mut self) -> Option<String> {
        if self.read_at.elapsed() < SECRETS_INTERVAL {
            return None;
        }
        self.read_at = Instant::now();
        let error = match read_secrets(&self.path) {
            Ok(secrets) => {
                self.secrets = secrets;
                None
            }
            Err(error) => Some(error),
        };
        let is_new = error.is_some() && error != self.error;
        self.error.clone_from(&error);
        error.filter(|_| is_new).map(|error| format!("{error}; the secrets that were read before stay in use"))
    }
}

fn read_secrets(path: &Path) -> Result<Secrets, String> {
    use std::io::Read as _;
    let failed = |reason: String| format!("{}: {reason}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    file.take(MAX_SECRETS_BYTES + 1).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    // Part of a secret can be a valid secret.
    if text.len() as u64 > MAX_SECRETS_BYTES {
        return Err(failed(format!("the file has more than {MAX_SECRETS_BYTES} bytes")));
    }
    Secrets::parse(&text).map_err(failed)
}

/// What the stream of a receiver fills.
#[derive(Debug)]
pub struct Feeder {
    receiver: Receiver,
    state: StateFile,
    intake: Intake,
    input: Input,
}

impl Feeder {
    /// Records that a connection is open, which resumes after `cursor`. Returns false if the receiver wants no more.
    pub async fn on_connected(&mut self, cursor: Option<&str>) -> bool {
        self.state.set_started(&self.receiver);
        match self.intake.on_connected(cursor, &now()) {
            Some(item) => self.input.push(item).await,
            None => true,
        }
    }

    /// Queues an event. It waits while the queue is full. Returns false if the receiver wants no more.
    pub async fn on_event(&mut self, event: &Event) -> bool {
        let item = self.intake.on_event(event, &now());
        self.input.push(item).await
    }

    /// Queues a gap in place of an event that cannot be parsed. Returns false if the receiver wants no more.
    pub async fn on_malformed(&mut self) -> bool {
        let item = self.intake.on_malformed(&now());
        self.input.push(item).await
    }

    /// Records that the server does not accept the cursor.
    pub fn on_cursor_rejected(&mut self) {
        self.intake.on_cursor_rejected();
    }
}

/// Delivers to one receiver.
#[derive(Debug)]
pub struct Worker {
    receiver: Receiver,
    output: Output,
    sender: Sender,
    secrets: Option<SecretsFile>,
    state: StateFile,
}

impl Worker {
    /// Returns the worker of a receiver, and what its stream fills. `types` are the forwarded types; empty means all. `since`
    /// is the cursor after which the stream starts. `run` differs in each process: it is the start of the ids of events
    /// without a key.
    #[must_use]
    pub fn new(
        receiver: Receiver,
        types: Vec<String>,
        since: Option<&str>,
        run: &str,
        sender: Sender,
        secrets: Option<SecretsFile>,
        state: StateFile,
    ) -> (Feeder, Worker) {
        let (input, output) = queue();
        let has_started = since.is_some() || state.is_started(&receiver);
        let intake = Intake::new(types, has_started, run.to_owned());
        let feeder = Feeder { receiver: receiver.clone(), state: state.clone(), intake, input };
        (feeder, Worker { receiver, output, sender, secrets, state })
    }

    /// Returns the messages that wait.
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        self.output.backlog()
    }

    /// Delivers in order until the receiver answers 410. Each event is tried until it is accepted.
    pub async fn run(mut self, observer: &impl Observer) {
        loop {
            if let Some(message) = self.output.first().await.message
                && !self.deliver(&message, observer).await
            {
                return;
            }
            if let Some(cursor) = self.output.remove_first() {
                self.state.set_cursor(&self.receiver, cursor);
            }
        }
    }

    /// Returns false after a 410.
    async fn deliver(&mut self, message: &Message, observer: &impl Observer) -> bool {
        let mut backoff = Backoff::default();
        for number in 1.. {
            if let Some(problem) = self.secrets.as_mut().and_then(SecretsFile::refresh) {
                observer.report(&problem);
            }
            let secrets = self.secrets.as_ref().map(|file| &file.secrets);
            let start = Instant::now();
            let outcome = self.sender.send(&self.receiver, message, secrets).await;
            let duration = start.elapsed();
            let next = match &outcome {
                Outcome::Accepted(_) | Outcome::Gone => None,
                Outcome::Failed(_) => Some(backoff.next(None, random())),
                Outcome::Rejected { retry_after, .. } => {
                    Some(backoff.next(None, random()).max(retry_after.unwrap_or_default()))
                }
            };
            observer.on_attempt(&Attempt {
                receiver: &self.receiver,
                kind: &message.kind,
                reason: message.reason.as_deref(),
                id: &message.id,
                number,
                outcome: &outcome,
                duration,
                next,
            });
            match next {
                None => return !matches!(outcome, Outcome::Gone),
                Some(delay) => sleep(delay).await,
            }
        }
        false
    }
}

/// Returns the time (RFC 3339, UTC, milliseconds).
fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_cut_at_the_bound_of_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            read_secrets(file.path())
        };
        let max = usize::try_from(MAX_SECRETS_BYTES).unwrap();
        // The base64 of 48 bytes. Its first half is the base64 of 24 bytes, which is a secret too.
        let secret = format!("whsec_{}", "MDEyMzQ1".repeat(8));
        let half = secret.len() - 32;
        assert!(read(&secret[..half]).is_ok() && read(&format!("{secret:>max$}")).is_ok());
        let error = read(&(" ".repeat(max - half) + &secret)).unwrap_err();
        assert!(error.ends_with("the file has more than 4096 bytes"), "{error}");
    }
}
