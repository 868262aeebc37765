//! Takes a Pod's watch line of 14 KB to its ready frame again and again, as the hub does it, or only a part of the way,
//! or reads the line with what others would read it with: `line_to_frame WHAT COUNT`.
//!
//! `tests/scripts/instructions` runs it under callgrind with two counts; the difference leaves out what comes before.
#![allow(clippy::print_stderr, reason = "an example is a command line program")]

mod line;

use std::{hint::black_box, process::exit, sync::Arc};

use boilerhouse_bridge::{
    event::{
        Instance, NamespaceId, Resource, View,
        projection::{EventFormat, Projection},
    },
    feed::{self, Feed, FrameFormat, Framing, ReadResult, StartAt, Subscription, Writer},
    source::decode::{Decode, DecodedPod, watch_line::parse_watch_line},
};
use k8s_openapi::api::core::v1::Pod;
use kube::core::WatchEvent;
use serde_json::Value;

use line::Line;

/// Pods that are there beside the one that changes.
const OTHERS: u64 = 1000;
/// What a connection takes up with one read.
const READ_BYTES: usize = 64 << 10;
/// What the line is, for all that read it.
const JSON: &str = "the line is JSON";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, count] = &arguments[..] else { usage() };
    let Ok(count) = count.parse() else { usage() };
    let mut line = Line::new();
    match what.as_str() {
        "bytes" => each(line, count, |line| line.len()),
        "parse" => each(line, count, view),
        "take" => {
            let (mut writer, _feed) = feed(&mut line);
            each(line, count, |line| writer.upsert(view(line)));
        }
        "websocket" => frames(line, count, Framing::WEBSOCKET),
        "sse" => frames(line, count, Framing { format: FrameFormat::Sse { named: false }, edgeplane_names: false }),
        "ignored" => each(line, count, |line| serde_json::from_slice::<serde::de::IgnoredAny>(line).expect(JSON)),
        "pod" => each(line, count, |line| serde_json::from_slice::<WatchEvent<Pod>>(line).expect(JSON)),
        "value" => each(line, count, |line| serde_json::from_slice::<Value>(line).expect(JSON)),
        _ => usage(),
    }
}

fn usage() -> ! {
    eprintln!("usage: line_to_frame bytes|parse|take|websocket|sse|ignored|pod|value COUNT");
    exit(2)
}

fn each<T>(mut line: Line, count: u64, mut read: impl FnMut(&[u8]) -> T) {
    for _ in 0..count {
        black_box(read(black_box(line.next())));
    }
}

fn view(line: &[u8]) -> View {
    match parse_watch_line::<DecodedPod>(line) {
        Ok(WatchEvent::Modified(row)) => row.into_decoded().view,
        _ => panic!("the line tells of a change"),
    }
}

/// A feed that knows the line's Pod and all the others.
fn feed(line: &mut Line) -> (Writer, Feed) {
    let (mut writer, feed) = Feed::new(feed::Config::default());
    let other = |n| {
        let labels = [("boilerhouse.dev/managed".to_owned(), "true".to_owned())].into();
        let name = format!("web-{n:05}");
        let (uid, workload_ref) = (format!("uid-of-{name}"), Some("web".to_owned()));
        View::Instance(Arc::new(Instance {
            name,
            uid,
            workload_ref,
            labels,
            resource_version: n,
            ..Instance::default()
        }))
    };
    writer.set_namespace(NamespaceId::from_uid("7c1d9c2e-6a35-4a0f-9b52-0d3f1f7a8e11"));
    writer.replace(Resource::Pods, (1..=OTHERS).map(other).collect(), OTHERS);
    writer.replace(Resource::Claims, Vec::new(), OTHERS);
    writer.upsert(view(line.next()));
    (writer, feed)
}

fn frames(mut line: Line, count: u64, framing: Framing) {
    let (mut writer, feed) = feed(&mut line);
    let mut reader = feed
        .subscribe(feed.projection_cache(Projection::everything(EventFormat::Full), framing), StartAt::Live)
        .expect("the feed is ready");
    // The heartbeat that opens a stream.
    frame(&mut reader);
    each(line, count, |line| {
        writer.upsert(view(line));
        frame(&mut reader)
    });
}

fn frame(reader: &mut Subscription) -> usize {
    match reader.read(READ_BYTES) {
        ReadResult::Batch(frames) if frames.len() == 1 => frames[0].len(),
        other => panic!("one frame is to be read, not {other:?}"),
    }
}
