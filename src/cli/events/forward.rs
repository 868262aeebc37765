//! `--forward-to`: the events go to webhooks, and stdout shows the deliveries (docs/protocol.md#deliveries).

use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, RandomState},
    path::PathBuf,
    pin::Pin,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use futures::future::try_join_all;
use jiff::Timestamp;
use serde_json::json;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep},
};

use super::{
    super::{connection::ConnectionArgs, exit::CliError, logging::report},
    follow::{Follow, Followed},
    lines::Lines,
    printer::Printer,
};
use crate::{
    client::{Builder, tls_config},
    forward::{
        Attempt, Backlog, Feeder, NEVER_FORWARDED, Observer, Outcome, Receiver, SecretsFile, Sender, StateFile, Worker,
    },
};

/// Time between two reports of the counters.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);
/// Receivers of one process. Each has a stream of its own.
const MAX_RECEIVERS: usize = 32;

/// Arguments about deliveries.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Deliveries")]
pub(super) struct ForwardArgs {
    /// POST each event to this URL as a webhook, in order and at least once. Can be given several times; in the variable,
    /// spaces separate the URLs. Stdout shows the deliveries
    #[arg(long, env = "BRIDGE_FORWARD_TO", value_name = "URL")]
    forward_to: Vec<String>,

    /// File with the secret that signs the deliveries: whsec_ and the base64 of 24 to 64 bytes (Standard Webhooks)
    #[arg(long, env = "BRIDGE_WEBHOOK_SECRET_FILE", value_name = "FILE")]
    webhook_secret_file: Option<PathBuf>,

    /// File with the certificates to trust for receivers, in PEM, instead of those of the system
    #[arg(long, env = "BRIDGE_WEBHOOK_CA_FILE", value_name = "FILE")]
    webhook_ca_file: Option<PathBuf>,

    /// File that keeps the cursor of the last delivery for each receiver, so that a restart continues there
    #[arg(long, env = "BRIDGE_STATE_FILE", value_name = "FILE")]
    state_file: Option<PathBuf>,
}

impl ForwardArgs {
    /// Returns whether events are delivered, and not printed.
    pub(super) fn is_used(&self) -> bool {
        !self.forward_to.is_empty()
    }

    /// Delivers events until `count` lines are printed, stdout is closed, or no receiver is left.
    ///
    /// # Errors
    /// The arguments cannot be used, or the stream ends for good. The error has the exit code.
    pub(super) async fn run(
        &self,
        builder: &Builder,
        connection: &ConnectionArgs,
        types: &[String],
        printer: Printer,
        count: Option<u64>,
        stopped: Pin<&mut oneshot::Receiver<()>>,
    ) -> Result<u8, CliError> {
        let receivers = self.receivers()?;
        if let Some(kind) = types.iter().find(|kind| NEVER_FORWARDED.contains(&kind.as_str())) {
            return Err(CliError::usage(format!("--events {kind} concerns one connection only and is not forwarded")));
        }
        let secrets = self.webhook_secret_file.clone().map(SecretsFile::open).transpose().map_err(CliError::usage)?;
        let tls = tls_config(receivers.iter().any(Receiver::has_tls), self.webhook_ca_file.as_deref());
        let tls = tls.map_err(|error| CliError::usage(error.to_string()))?;
        let state = StateFile::open(self.state_file.as_deref()).map_err(CliError::failed)?;
        let sender = Sender::new(tls);
        let run = format!("{:016x}", RandomState::new().hash_one(()));
        let (mut streams, mut counts) = (Vec::new(), Vec::new());
        for receiver in &receivers {
            let cursor = state.cursor(receiver);
            let client = match cursor {
                Some(cursor) => builder.clone().since(cursor).build(),
                None => builder.clone().build(),
            };
            let client = client.map_err(|error| CliError::usage(error.to_string()))?;
            let (feeder, worker) = Worker::new(
                receiver.clone(),
                types.to_vec(),
                client.since(),
                &run,
                sender.clone(),
                secrets.clone(),
                state.clone(),
            );
            counts.push(Counts::new(receiver.name(), worker.backlog()));
            streams.push((Follow::new(&client, connection), feeder, worker));
        }
        let deliveries = Deliveries::new(printer, count, counts);
        let (opened, all) = (AtomicUsize::new(0), receivers.len());
        let on_opened = || {
            if opened.fetch_add(1, Ordering::Relaxed) + 1 == all {
                report(&format!("connected; deliveries to {all} {}", if all == 1 { "receiver" } else { "receivers" }));
            }
        };
        let receivers = streams.into_iter().map(|(follow, feeder, worker)| {
            let (deliveries, on_opened) = (&deliveries, &on_opened);
            async move {
                tokio::select! {
                    fed = feed(follow, feeder, on_opened) => fed,
                    () = worker.run(deliveries) => Ok(()),
                }
            }
        });
        let outcome = tokio::select! {
            ended = try_join_all(receivers) => match ended {
                Ok(_) => Err(CliError::failed("no receiver is left: each has answered 410")),
                Err(error) => Err(error),
            },
            () = deliveries.done.notified() => Ok(0),
            () = deliveries.lines.closed() => Ok(0),
            _ = stopped => Ok(0),
            _ = state.run(report) => Ok(0),
            () = deliveries.report_counts() => Ok(0),
        };
        deliveries.report_totals(true);
        state.write().context("cannot write the state file")?;
        deliveries.lines.finish().await.context("cannot print the deliveries")?;
        outcome
    }

    /// Parses the URLs. The parser of flags would repeat a wrong one, which may contain a secret.
    fn receivers(&self) -> Result<Vec<Receiver>, CliError> {
        let urls: Vec<&str> = self.forward_to.iter().flat_map(|urls| urls.split_whitespace()).collect();
        let is_one = |url: &&str| url.contains("://") || urls.len() == 1;
        if !urls.iter().all(is_one) {
            return Err(CliError::usage(
                "--forward-to: a URL has no spaces; of several, each begins with http:// or https://",
            ));
        }
        let parse =
            |url: &&str| Receiver::parse(url).map_err(|error| CliError::usage(format!("--forward-to: {error}")));
        let receivers: Vec<Receiver> = urls.iter().map(parse).collect::<Result<_, _>>()?;
        let names: BTreeSet<String> = receivers.iter().map(Receiver::name).collect();
        if names.len() < receivers.len() {
            return Err(CliError::usage(
                "--forward-to names a receiver twice: URLs that differ only in their query are one",
            ));
        }
        if receivers.len() > MAX_RECEIVERS {
            return Err(CliError::usage(format!("--forward-to accepts at most {MAX_RECEIVERS} receivers")));
        }
        Ok(receivers)
    }
}

/// Fills the queue of one receiver until the receiver wants no more.
async fn feed(mut follow: Follow<'_>, mut feeder: Feeder, on_opened: impl Fn()) -> Result<(), CliError> {
    let mut is_first = true;
    loop {
        let goes_on = match follow.next().await? {
            Followed::Connected => {
                if std::mem::take(&mut is_first) {
                    on_opened();
                }
                feeder.on_connected(follow.resumed_after()).await
            }
            Followed::Event(event) => feeder.on_event(&event).await,
            Followed::Malformed => feeder.on_malformed().await,
            Followed::CursorRejected => {
                feeder.on_cursor_rejected();
                true
            }
        };
        if !goes_on {
            return Ok(());
        }
    }
}

/// The counts of one receiver.
#[derive(Debug)]
struct Counts {
    receiver: String,
    backlog: Backlog,
    accepted: u64,
    failed: u64,
    /// Since when the receiver has not accepted its next event.
    failing_since: Option<Instant>,
    /// What was reported last: delivered, failed, waiting.
    reported: (u64, u64, usize),
}

impl Counts {
    fn new(receiver: String, backlog: Backlog) -> Counts {
        Counts { receiver, backlog, accepted: 0, failed: 0, failing_since: None, reported: (0, 0, 0) }
    }

    /// Counts an attempt. Returns what to report.
    fn count(&mut self, outcome: &Outcome) -> Option<String> {
        let receiver = &self.receiver;
        match (outcome, outcome.error()) {
            (Outcome::Gone, _) => Some(format!("{receiver} answers 410: no more deliveries to it")),
            (_, Some(error)) => {
                self.failed += 1;
                let is_first = self.failing_since.is_none();
                self.failing_since.get_or_insert_with(Instant::now);
                is_first.then(|| format!("{receiver}: {error}; the delivery is repeated until the receiver accepts it"))
            }
            (_, None) => {
                self.accepted += 1;
                let since = self.failing_since.take()?;
                Some(format!("{receiver} accepts again after {:.1} s", since.elapsed().as_secs_f64()))
            }
        }
    }

    /// Returns the counts for people. During the run, that is only if they have changed or messages wait.
    fn text(&mut self, waiting: usize, is_end: bool) -> Option<String> {
        let Counts { receiver, accepted, failed, failing_since, .. } = self;
        let failing = failing_since
            .map_or(String::new(), |since| format!(", no delivery for {:.0} s", since.elapsed().as_secs_f64()));
        let now = (*accepted, *failed, waiting);
        let is_new = std::mem::replace(&mut self.reported, now) != now;
        (is_new || waiting > 0 || is_end)
            .then(|| format!("{receiver}: {accepted} delivered, {failed} failed attempts, {waiting} waiting{failing}"))
    }
}

/// Prints deliveries, and counts them.
#[derive(Debug)]
struct Deliveries {
    printer: Printer,
    lines: Lines,
    limit: Option<u64>,
    state: Mutex<DeliveryState>,
    /// Enough lines are printed.
    done: Notify,
}

#[derive(Debug)]
struct DeliveryState {
    printed: u64,
    /// Lines that were left out, because stdout is not read.
    left_out: u64,
    counts: Vec<Counts>,
}

impl Deliveries {
    fn new(printer: Printer, limit: Option<u64>, counts: Vec<Counts>) -> Deliveries {
        let state = Mutex::new(DeliveryState { printed: 0, left_out: 0, counts });
        Deliveries { printer, lines: Lines::new(), limit, state, done: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, DeliveryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports the counts once a minute.
    async fn report_counts(&self) {
        loop {
            sleep(REPORT_INTERVAL).await;
            self.report_totals(false);
        }
    }

    fn report_totals(&self, is_end: bool) {
        let text = |counts: &mut Counts| counts.text(counts.backlog.messages(), is_end);
        let texts: Vec<String> = self.state().counts.iter_mut().filter_map(text).collect();
        texts.iter().for_each(|text| report(text));
        let left_out = std::mem::take(&mut self.state().left_out);
        if left_out > 0 {
            report(&format!("stdout is not read: {left_out} lines about deliveries are left out"));
        }
    }

    fn count(&self, receiver: &str, outcome: &Outcome) {
        let mut state = self.state();
        let counts = state.counts.iter_mut().find(|counts| counts.receiver == receiver);
        let message = counts.and_then(|counts| counts.count(outcome));
        drop(state);
        if let Some(message) = message {
            report(&message);
        }
    }
}

impl Observer for Deliveries {
    fn report(&self, message: &str) {
        report(message);
    }

    fn on_attempt(&self, attempt: &Attempt<'_>) {
        let Attempt { receiver, kind, reason, id, number, outcome, duration, .. } = attempt;
        let now = Timestamp::now();
        let (receiver, milliseconds) = (receiver.name(), u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        let json = json!({
            "time": now.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
            "receiver": receiver,
            "type": kind,
            "reason": reason,
            "webhookId": id,
            "status": outcome.status(),
            "error": outcome.error(),
            "attempt": number,
            "milliseconds": milliseconds,
        });
        let status = outcome.status().map_or_else(|| outcome.error().unwrap_or_default(), |status| status.to_string());
        let clock = now.strftime("%H:%M:%S%.3f");
        let reason = reason.map_or(String::new(), |reason| format!(" ({reason})"));
        let text = format!("{clock} {receiver}  {kind}{reason}  {id}  {status}  attempt {number}  {milliseconds} ms");
        self.count(&receiver, outcome);
        let line = self.printer.line(&json, &text);
        let mut state = self.state();
        if self.limit.is_some_and(|limit| state.printed >= limit) {
            return;
        }
        state.printed += 1;
        if !self.lines.push(line) {
            state.left_out += 1;
        }
        if self.limit.is_some_and(|limit| state.printed >= limit) {
            self.done.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_reported_when_they_change_while_messages_wait_and_at_the_end() {
        let mut counts = Counts::new("r".to_owned(), Backlog::default());
        assert_eq!(counts.text(0, false), None);
        // The first attempt has not ended, or the receiver has asked for a long delay.
        for _ in 0..2 {
            assert_eq!(counts.text(2, false).as_deref(), Some("r: 0 delivered, 0 failed attempts, 2 waiting"));
        }
        assert_eq!(counts.text(0, false).as_deref(), Some("r: 0 delivered, 0 failed attempts, 0 waiting"));
        assert_eq!(counts.text(0, false), None);
        assert_eq!(counts.text(0, true).as_deref(), Some("r: 0 delivered, 0 failed attempts, 0 waiting"));
    }
}
