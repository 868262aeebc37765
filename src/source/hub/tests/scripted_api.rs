//! An API server that says what the test tells it to, and a record of what the hub made of it.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    io,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};

use super::super::*;
use crate::source::hub::{api_client::ResourceApi, watch_loop::WatchLoop};

/// Longer than anything here waits for, in paused time.
const BOUND: Duration = Duration::from_secs(600);

type AnswerBody = UnsyncBoxBody<Bytes, io::Error>;

pub(super) enum Answer {
    Json(u16, Value),
    Patience(u16, u64),
    /// What comes is what the sender sends; the end of the sender is the end of the body.
    Stream(mpsc::Receiver<io::Result<Bytes>>),
    Hang,
    Refused,
}

pub(super) struct Asked {
    pub(super) at: Instant,
    pub(super) what: &'static str,
    pub(super) query: String,
}

/// Answers by what is asked (`home`, `list`, `more`, `probe`, `watch`), and for ever the last one said of each.
#[derive(Clone, Default)]
pub(super) struct Script {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    answers: HashMap<&'static str, VecDeque<Answer>>,
    asked: Vec<Asked>,
    facts: Vec<(Instant, SourceEvent)>,
}

pub(super) fn pod(name: &str, rv: ResourceVersion) -> Value {
    json!({"metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": rv.to_string()},
           "status": {"phase": "Running"}})
}

pub(super) fn list(rv: ResourceVersion, items: &[Value]) -> Answer {
    Answer::Json(200, json!({"metadata": {"resourceVersion": rv.to_string()}, "items": items}))
}

pub(super) fn line(kind: &str, object: &Value) -> io::Result<Bytes> {
    Ok(Bytes::from(format!("{}\n", json!({"type": kind, "object": object}))))
}

pub(super) fn bookmark(rv: ResourceVersion) -> io::Result<Bytes> {
    line("BOOKMARK", &json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": rv.to_string()}}))
}

pub(super) fn expired() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410,
           "message": "too old resource version"})
}

/// A watch and the way to speak through it.
pub(super) fn watch() -> (mpsc::Sender<io::Result<Bytes>>, Answer) {
    let (sender, receiver) = mpsc::channel(16);
    (sender, Answer::Stream(receiver))
}

/// A watch that says all this and ends.
pub(super) fn said(lines: impl IntoIterator<Item = io::Result<Bytes>>) -> Answer {
    let (sender, answer) = watch();
    for line in lines {
        sender.try_send(line).unwrap();
    }
    answer
}

pub(super) fn versions(views: &[View]) -> Vec<(String, ResourceVersion)> {
    views.iter().map(|view| (view.name().to_owned(), view.resource_version())).collect()
}

impl Script {
    /// The next answer to `what`, after those already said.
    pub(super) fn on(&self, what: &'static str, answer: Answer) {
        self.state.lock().unwrap().answers.entry(what).or_default().push_back(answer);
    }

    /// Forgets the answers to `what` and gives this one from now on.
    pub(super) fn only(&self, what: &'static str, answer: Answer) {
        self.state.lock().unwrap().answers.insert(what, VecDeque::from([answer]));
    }

    pub(super) fn client(&self) -> Client {
        let script = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let script = script.clone();
            async move { script.answer(request.uri()).await }
        });
        Client::new(service, "bh")
    }

    async fn answer(&self, uri: &http::Uri) -> io::Result<Response<AnswerBody>> {
        let query = uri.query().unwrap_or_default().to_owned();
        let what = match uri.path() {
            "/api/v1/namespaces/bh" => "home",
            "/api/v1/namespaces/bh/pods" if query.contains("watch=true") => "watch",
            "/api/v1/namespaces/bh/pods" if query.contains("continue=") => "more",
            "/api/v1/namespaces/bh/pods" if query.contains("limit=1&") || query.ends_with("limit=1") => "probe",
            "/api/v1/namespaces/bh/pods" => "list",
            _ => "other",
        };
        let answer = {
            let mut state = self.state.lock().unwrap();
            state.asked.push(Asked { at: Instant::now(), what, query });
            let answers = state.answers.entry(what).or_default();
            match answers.front() {
                Some(Answer::Stream(_)) => answers.pop_front(),
                Some(_) if answers.len() > 1 => answers.pop_front(),
                Some(Answer::Json(code, value)) => Some(Answer::Json(*code, value.clone())),
                Some(Answer::Patience(code, seconds)) => Some(Answer::Patience(*code, *seconds)),
                Some(Answer::Refused) => Some(Answer::Refused),
                Some(Answer::Hang) | None => None,
            }
        };
        self.changed.notify_waiters();
        let full = |text: String| Full::from(text).map_err(|never: Infallible| match never {}).boxed_unsync();
        match answer.unwrap_or(Answer::Hang) {
            Answer::Json(code, value) => Ok(Response::builder().status(code).body(full(value.to_string())).unwrap()),
            Answer::Patience(code, seconds) => {
                Ok(Response::builder().status(code).header("Retry-After", seconds).body(full(String::new())).unwrap())
            }
            Answer::Stream(receiver) => {
                let chunks = stream::unfold(receiver, |mut receiver| async {
                    let chunk = receiver.recv().await?;
                    Some((chunk, receiver))
                });
                Ok(Response::new(BodyExt::boxed_unsync(StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))))))
            }
            Answer::Hang => std::future::pending().await,
            Answer::Refused => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }

    fn take(&self, fact: SourceEvent) {
        self.state.lock().unwrap().facts.push((Instant::now(), fact));
        self.changed.notify_waiters();
    }

    /// Follows the pods while the test goes on.
    pub(super) async fn follow(&self, config: &Config, test: impl Future<Output = ()>) {
        let (client, metrics) = (self.client(), Metrics::default());
        let api = ResourceApi::<DecodedPod>::new(&client, config, &metrics);
        let out = Mutex::new(|fact| self.take(fact));
        tokio::select! {
            never = WatchLoop::new(&api, &out).run() => match never {},
            () = test => (),
        }
    }

    /// Runs the whole hub while the test goes on.
    pub(super) async fn follow_both(&self, config: &Config, test: impl Future<Output = ()>) {
        let (client, metrics) = (self.client(), Metrics::default());
        let out = Mutex::new(|fact| self.take(fact));
        tokio::select! {
            never = watch_all(&client, config, &metrics, &out) => match never {},
            () = test => (),
        }
    }

    /// Waits until something can be made of the facts.
    pub(super) async fn until<R>(&self, find: impl Fn(&[(Instant, SourceEvent)]) -> Option<R>) -> R {
        let found = timeout(BOUND, async {
            loop {
                let changed = self.changed.notified();
                if let Some(found) = find(&self.state.lock().unwrap().facts) {
                    return found;
                }
                changed.await;
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => panic!("not within {BOUND:?}: {:#?}", self.state.lock().unwrap().facts),
        }
    }

    /// When the `n`th fact of this shape came (from 1), and which it was.
    pub(super) async fn nth(&self, n: usize, is: impl Fn(&SourceEvent) -> bool) -> (Instant, SourceEvent) {
        self.until(|facts| facts.iter().filter(|(_, fact)| is(fact)).nth(n - 1).cloned()).await
    }

    /// Waits until `what` was asked `n` times.
    pub(super) async fn asked(&self, what: &str, n: usize) -> (Instant, String) {
        let asked = timeout(BOUND, async {
            loop {
                let changed = self.changed.notified();
                if let Some(found) = self.state.lock().unwrap().asked.iter().filter(|a| a.what == what).nth(n - 1) {
                    return (found.at, found.query.clone());
                }
                changed.await;
            }
        });
        asked.await.unwrap_or_else(|_| panic!("{what} was not asked {n} times: {:?}", self.facts()))
    }

    pub(super) fn count(&self, what: &str) -> usize {
        self.state.lock().unwrap().asked.iter().filter(|asked| asked.what == what).count()
    }

    pub(super) fn facts(&self) -> Vec<SourceEvent> {
        self.state.lock().unwrap().facts.iter().map(|(_, fact)| fact.clone()).collect()
    }
}
