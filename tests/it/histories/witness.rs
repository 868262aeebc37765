//! What the API server told an engine: a layer between the simulated API and a client that writes down each answer.
//!
//! It knows nothing of the bridge. It says up to where a watch has come, at which version a list was read, and whether
//! there was a reason to list again; what has to be told to a reader follows from that and the store's history.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::event::{Kind, Rv};
use boilerhouse_bridge::sim::Sim;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use kube::client::Body;
use serde::Deserialize;
use tokio::time::{Instant, sleep};
use tower::{BoxError, Service};

use super::truth::NAMESPACE;

/// One thing that an engine heard about one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    /// Which history the API server had then.
    pub(super) epoch: usize,
    pub(super) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A watch's line about an object, at this version.
    Line(Rv),
    /// A bookmark.
    Bookmark(Rv),
    /// The last page of a list that is true at this version.
    List(Rv),
    /// A list of one object, which says how far the API server is.
    Probe(Rv),
    /// 410, as a status or as a line.
    Gone,
    /// A line that does not parse.
    Garbage,
}

impl Heard {
    pub(super) fn is_list(&self) -> bool {
        matches!(self.what, What::List(_))
    }
}

/// What one engine heard, pods then claims.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) heard: [Vec<Heard>; 2],
    /// When the last byte came.
    pub(super) last_byte: [Option<Instant>; 2],
    pub(super) troubles: [Option<Failing>; 2],
}

/// A time without an answer that helps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failing {
    since: Instant,
    /// When a watch began again.
    over: Option<Instant>,
}

/// A watch that began and was followed by another failure so soon was no end of the trouble: a list of one object,
/// which is asked for to find out, may take 5 s.
const RELAPSE: Duration = Duration::from_secs(6);

impl Log {
    fn fails(&mut self, kind: Kind, since: Instant) {
        let trouble = &mut self.troubles[kind as usize];
        match trouble {
            Some(Failing { over, .. }) if over.is_none_or(|over| over.elapsed() < RELAPSE) => *over = None,
            Some(_) | None => *trouble = Some(Failing { since, over: None }),
        }
    }

    fn works(&mut self, kind: Kind) {
        if let Some(trouble) = &mut self.troubles[kind as usize] {
            trouble.over.get_or_insert_with(Instant::now);
        }
    }

    /// Whether one of the resources has been without an answer for so long.
    pub(super) fn fails_since(&self, long: Duration) -> bool {
        let lasts = |trouble: &Failing| trouble.over.is_none_or(|over| over.elapsed() < RELAPSE);
        self.troubles.iter().flatten().any(|trouble| lasts(trouble) && trouble.since.elapsed() >= long)
    }
}

/// What all engines share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) epoch: AtomicUsize,
    /// So many lists will stop in the middle of their body, pods and claims.
    pub(super) half_lists: [AtomicUsize; 2],
}

/// A client of the simulated API that keeps a log. Lists come in pages of three objects, whatever is asked for: a
/// server may give less than the limit, and pages are where things happen.
/// A request is `way` underway, another time for each client, so that it is the seed and not chance which of them comes
/// first and meets what is armed.
pub(super) fn client(sim: &Sim, shared: &Arc<Shared>, way: Duration) -> (kube::Client, Arc<Mutex<Log>>) {
    let log = Arc::new(Mutex::new(Log::default()));
    let witness = Witness { log: log.clone(), shared: shared.clone() };
    let api = sim.service();
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let (witness, mut api) = (witness.clone(), api.clone());
        async move {
            let uri = request.uri().to_string();
            *request.uri_mut() = uri.replace("limit=500", "limit=3").parse()?;
            let kind = match &uri {
                uri if uri.contains("/pods") => Some(Kind::Instance),
                uri if uri.contains("/boilerhouseclaims") => Some(Kind::Claim),
                _ => None,
            };
            // One that is refused, or given up unanswered, has failed since it was made.
            sleep(way).await;
            let mut asked = Asked { log: witness.log.clone(), kind, answered: false, at: Instant::now() };
            let (response, answered) = witness.answer(kind, &uri, api.call(request).await?).await?;
            asked.answered = answered;
            Ok::<_, BoxError>(response)
        }
    });
    (kube::Client::new(service, NAMESPACE), log)
}

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

#[derive(Clone)]
struct Witness {
    log: Arc<Mutex<Log>>,
    shared: Arc<Shared>,
}

/// A request on its way.
struct Asked {
    log: Arc<Mutex<Log>>,
    /// Both where it is about the Namespace, without which nothing else is asked for.
    kind: Option<Kind>,
    answered: bool,
    at: Instant,
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mine = Kind::ALL.into_iter().filter(|kind| !self.answered && self.kind.is_none_or(|mine| mine == *kind));
        for kind in mine {
            self.log.lock().unwrap().fails(kind, self.at);
        }
    }
}

#[derive(Deserialize)]
struct Line {
    r#type: String,
    object: Object,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    metadata: Metadata,
    code: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: Option<String>,
    r#continue: Option<String>,
}

impl Metadata {
    fn version(&self) -> Rv {
        self.resource_version.as_ref().unwrap().parse().unwrap()
    }
}

impl Witness {
    /// Looks into an answer, and says whether it is one.
    async fn answer<B>(&self, kind: Option<Kind>, uri: &str, response: Response<B>) -> Result<(Answer, bool), BoxError>
    where
        B: hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
    {
        let Some(kind) = kind else {
            let answered = response.status().is_success();
            return Ok((response.map(|body| body.map_err(BoxError::from).boxed_unsync()), answered));
        };
        self.byte(kind);
        if response.status() == 410 {
            self.note(kind, What::Gone);
        }
        if !response.status().is_success() {
            return Ok((response.map(|body| body.map_err(BoxError::from).boxed_unsync()), false));
        }
        if uri.contains("watch=true") {
            self.log.lock().unwrap().works(kind);
            let witness = self.clone();
            let listen = move |frame: Frame<Bytes>| {
                witness.line(kind, frame.data_ref().unwrap());
                frame
            };
            return Ok((response.map(|body| body.map_frame(listen).map_err(BoxError::from).boxed_unsync()), true));
        }
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        let is_probe = uri.contains("limit=1&") || uri.ends_with("limit=1");
        let half_lists = &self.shared.half_lists[kind as usize];
        if !is_probe && half_lists.load(Ordering::Relaxed) > 0 {
            half_lists.fetch_sub(1, Ordering::Relaxed);
            let half = Ok::<_, BoxError>(Frame::data(body.slice(..body.len() / 2)));
            let stopped = futures::StreamExt::chain(futures::stream::iter([half]), futures::stream::pending());
            return Ok((Response::from_parts(head, StreamBody::new(stopped).boxed_unsync()), false));
        }
        let page: Object = serde_json::from_slice(&body)?;
        let version = page.metadata.version();
        match page.metadata.r#continue {
            _ if is_probe => self.note(kind, What::Probe(version)),
            Some(more) if !more.is_empty() => {}
            Some(_) | None => self.note(kind, What::List(version)),
        }
        let whole = Full::new(body).map_err(|never: Infallible| match never {});
        Ok((Response::from_parts(head, whole.boxed_unsync()), true))
    }

    fn line(&self, kind: Kind, bytes: &[u8]) {
        self.byte(kind);
        if !bytes.ends_with(b"\n") {
            // The first half of a line, and the connection's last bytes: nobody can make anything of it.
            return;
        }
        let what = match serde_json::from_slice::<Line>(bytes) {
            Err(_) => What::Garbage,
            Ok(line) if line.object.code == Some(410) => What::Gone,
            Ok(line) if line.r#type == "BOOKMARK" => What::Bookmark(line.object.metadata.version()),
            Ok(line) => What::Line(line.object.metadata.version()),
        };
        self.note(kind, what);
    }

    fn byte(&self, kind: Kind) {
        self.log.lock().unwrap().last_byte[kind as usize] = Some(Instant::now());
    }

    fn note(&self, kind: Kind, what: What) {
        let epoch = self.shared.epoch.load(Ordering::Relaxed);
        self.log.lock().unwrap().heard[kind as usize].push(Heard { epoch, what });
    }
}
