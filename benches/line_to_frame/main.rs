//! Turns a Pod's watch line of 14 KB into its frame, as the hub does, many times. It can also run only the first steps
//! of this path, or parse the line with other parsers for comparison.
//!
//! `cargo bench --bench line_to_frame` prints the time per line of each step. `tests/scripts/instructions` runs
//! `line_to_frame STEP COUNT` under callgrind with two counts: their difference excludes what a process does once.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench is a command line program")]

mod line;

use std::{hint::black_box, process::exit, sync::Arc, time::Instant};

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

/// The steps: the cost of making the next line, line to view, line to log, line to frame (two transports), and parsers
/// of the complete line for comparison.
const STEPS: [&str; 8] = ["bytes", "parse", "take", "websocket", "sse", "ignored", "pod", "value"];
/// Lines that are timed for each step.
const TIMED_LINES: u64 = 10_000;
/// The same without `--bench`, as `cargo test --all-targets` starts it: enough to see that each step works.
const CHECKED_LINES: u64 = 10;
/// Pods in the inventory besides the one that changes.
const OTHERS: u64 = 1000;
/// Bytes that a connection reads at once.
const READ_BYTES: usize = 64 << 10;
const JSON: &str = "the line is JSON";

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_bench = arguments.iter().any(|argument| argument == "--bench");
    arguments.retain(|argument| argument != "--bench");
    match &arguments[..] {
        [] => STEPS.iter().for_each(|step| time(step, if is_bench { TIMED_LINES } else { CHECKED_LINES })),
        [step, count] => match count.parse() {
            Ok(count) if STEPS.contains(&step.as_str()) => run(step, count),
            _ => usage(),
        },
        _ => usage(),
    }
}

fn usage() -> ! {
    eprintln!("usage: line_to_frame [{} COUNT]", STEPS.join("|"));
    exit(2)
}

/// Prints the time of one line.
fn time(step: &str, lines: u64) {
    let start = Instant::now();
    run(step, lines);
    let micros = start.elapsed().as_secs_f64() * 1e6 / lines as f64;
    println!("{step:<10} {micros:>8.2} us a line");
}

fn run(step: &str, count: u64) {
    let mut line = Line::new();
    match step {
        "bytes" => each(line, count, |line| line.len()),
        "parse" => each(line, count, view),
        "take" => {
            let (mut writer, _feed) = feed(&mut line);
            each(line, count, |line| writer.upsert(view(line)));
        }
        "websocket" => frames(line, count, Framing::WEBSOCKET),
        "sse" => frames(
            line,
            count,
            Framing { format: FrameFormat::Sse { named: false, chunked: true }, edgeplane_names: false },
        ),
        "ignored" => each(line, count, |line| serde_json::from_slice::<serde::de::IgnoredAny>(line).expect(JSON)),
        "pod" => each(line, count, |line| serde_json::from_slice::<WatchEvent<Pod>>(line).expect(JSON)),
        "value" => each(line, count, |line| serde_json::from_slice::<Value>(line).expect(JSON)),
        _ => usage(),
    }
}

fn each<T>(mut line: Line, count: u64, mut read: impl FnMut(&[u8]) -> T) {
    for _ in 0..count {
        black_box(read(black_box(line.next())));
    }
}

fn view(line: &[u8]) -> View {
    match parse_watch_line::<DecodedPod>(line) {
        Ok(WatchEvent::Modified(row)) => row.into_decoded().view,
        _ => panic!("the line is not a modification"),
    }
}

/// Returns a feed with the Pod of the line and all others.
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
        other => panic!("expected one frame, read {other:?}"),
    }
}
