use serde_json::Value;

use super::*;
use crate::{
    event::{Kind, View},
    feed::{Config, Feed, From, Read},
};

#[test]
fn a_reader_is_given_what_the_newest_frames_push_out_of_the_cache() {
    let (mut writer, feed) = Feed::new(Config::default());
    writer.home(Home::of("u"));
    for kind in Kind::ALL {
        writer.replace(kind, Vec::new(), 1);
    }
    let lens = feed.lens(Lens::all(Format::Full), Framing { carrier: Carrier::Lines, matrix: false });
    let mut reader = feed.subscribe(lens.clone(), From::Now).unwrap();
    let mut first = feed.subscribe(lens, From::Now).unwrap();
    // Frames of 3 KB: the cache holds fewer of them than are rendered at once.
    for rv in 2..=400 {
        let (name, ip) = ("a".to_owned(), Some(format!("{rv:0>3000}")));
        writer.upsert(View::Instance(Arc::new(Instance { name, uid: "a".into(), ip, rv, ..Instance::default() })));
        if rv == 60 {
            while let Read::Batch(_) = first.read(1 << 20) {}
        }
    }
    let mut told = Vec::new();
    while let Read::Batch(batch) = reader.read(8 << 10) {
        for line in batch.concat().split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let event: Value = serde_json::from_slice(line).unwrap();
            told.extend(event["instance"]["ip"].as_str().map(|ip| ip.parse::<u64>().unwrap()));
        }
    }
    assert_eq!(told, (2..=400).collect::<Vec<_>>(), "no silent gap");
}
