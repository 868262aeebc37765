//! The screens, as golden files for three sizes. `BLESS=1` rewrites them.

use std::path::Path;

use ratatui::{Terminal, backend::TestBackend, crossterm::event::KeyCode};
use tokio::time::Instant;

use super::*;
use crate::{
    cli::top::{data::Clock, link::Update},
    client::{Error, Event},
};

const PLAIN: Look = Look { is_colored: false };

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn apply(model: &mut Model, json: &str) {
    let item = Ok(Event::from_json(json).unwrap());
    model.update(&Update { item, connections: 1, retry_at: None }, model.clock);
}

/// A model with objects, whose time is fixed.
fn model() -> Model {
    let start = Clock { now: Instant::now(), wall: "2026-01-02T03:04:05Z".parse().unwrap() };
    let mut model = Model::new("http://127.0.0.1:3000/api/ws".to_owned(), start);
    let instances: Vec<String> = (1..=30)
        .map(|n| {
            let (phase, pool, tenant) = match n % 3 {
                0 => ("Running", "ready", ""),
                1 => ("Running", "acquired", "alice"),
                _ => ("Pending", "warming", ""),
            };
            format!(
                r#"{{"uid":"uid-{n}","name":"python-repl-{n:05}","phase":"{phase}","workloadRef":"python-repl",
                "tenantId":"{tenant}","poolStatus":"{pool}","ip":"10.0.0.{n}","createdAt":"2026-01-02T02:0{}:00Z",
                "labels":{{"team":"blue","boilerhouse.dev/workload":"python-repl"}}}}"#,
                n % 10
            )
        })
        .collect();
    let claim = r#"{"uid":"c1","name":"alice-python","tenantId":"alice","workloadRef":"python-repl","phase":"Active",
        "instanceId":"python-repl-00001","source":"pool","claimedAt":"2026-01-02T03:00:00Z",
        "endpoint":{"host":"10.0.0.1","port":8080}}"#;
    let pool = r#"{"workloadRef":"python-repl","warming":10,"ready":4,"acquired":10}"#;
    let state = format!(
        r#"{{"type":"state.initial","snapshotAt":"2026-01-02T03:04:05Z","reason":"connect","instances":[{}],"claims":[{claim}],"pools":[{pool}]}}"#,
        instances.join(",")
    );
    apply(&mut model, &state);
    for (second, ready) in (1..=40).zip((0..9).cycle()) {
        let depth = format!(
            r#"{{"type":"pool.depth","workloadRef":"python-repl","warming":10,"ready":{ready},"acquired":10}}"#
        );
        apply(&mut model, &depth);
        model.tick(Clock { now: start.now + seconds(second), wall: start.wall + seconds(second) });
    }
    let forged = r#"{"type":"instance.state","time":"2026-01-02T03:04:44Z","name":"a\u001b[2Jb\u202ec","phase":"Failed",
        "previousPhase":"Running","instance":{"uid":"x","name":"a\u001b[2Jb\u202ec","phase":"Failed","workloadRef":"\n"}}"#;
    apply(&mut model, forged);
    apply(&mut model, r#"{"type":"heartbeat","upstream":"live","upstreamAgeMs":240}"#);
    let clock = Clock { now: start.now + seconds(42), wall: start.wall + seconds(42) };
    model.tick(clock);
    model
}

fn screen(model: &mut Model, width: u16, height: u16, look: Look) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| render(model, look, frame)).unwrap();
    terminal
}

fn text(model: &mut Model, width: u16, height: u16) -> String {
    let terminal = screen(model, width, height, PLAIN);
    let buffer = terminal.backend().buffer();
    let lines = buffer.content().chunks(usize::from(width)).map(|line| {
        let line: String = line.iter().map(ratatui::buffer::Cell::symbol).collect();
        line.trim_end().to_owned() + "\n"
    });
    lines.collect()
}

fn press(model: &mut Model, keys: &[KeyCode]) {
    for key in keys {
        model.key((*key).into());
    }
}

fn check(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/top").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == actual, "{name} differs; BLESS=1 rewrites it\n--- golden\n{expected}\n--- actual\n{actual}");
}

#[test]
fn screens_match_the_golden_files() {
    for (width, height) in [(80, 24), (120, 40), (20, 5)] {
        let mut model = model();
        let mut screens = String::new();
        let keys: [(&str, &[KeyCode]); 8] = [
            ("instances", &[]),
            ("selected", &[KeyCode::Down, KeyCode::PageDown]),
            ("detail", &[KeyCode::Enter]),
            ("tenants", &[KeyCode::Esc, KeyCode::Char('2')]),
            ("pools", &[KeyCode::Char('3')]),
            ("events", &[KeyCode::Char('4')]),
            ("help", &[KeyCode::Char('?')]),
            ("filter", &[KeyCode::Esc, KeyCode::Char('1'), KeyCode::Char('/'), KeyCode::Char('f')]),
        ];
        for (name, keys) in keys {
            press(&mut model, keys);
            screens += &format!("--- {name}\n{}", text(&mut model, width, height));
        }
        assert!(!screens.contains(['\x1b', '\u{202e}']), "{screens:?}");
        check(&format!("{width}x{height}.txt"), &screens);
    }
}

#[test]
fn the_header_says_what_the_connection_does() {
    let mut model = model();
    let retry_at = Some(model.clock.now + Duration::from_millis(2500));
    let lost = Error::Lost("connection\u{1b}[31m reset".to_owned());
    model.update(&Update { item: Err(lost), connections: 1, retry_at }, model.clock);
    press(&mut model, &[KeyCode::Char('p')]);
    let lost = text(&mut model, 120, 24);
    assert!(
        lost.contains("PAUSED  reconnecting in 3 s: the connection was lost: connection\\u{1b}[31m reset"),
        "{lost}"
    );
    let event = Event::from_json(r#"{"type":"instance.state"}"#).unwrap();
    model.update(&Update { item: Ok(event), connections: 2, retry_at: None }, model.clock);
    let resumed = text(&mut model, 120, 24);
    assert!(resumed.contains("connected (resumed)  upstream live (age 0.2 s; heartbeat 2 s ago)"), "{resumed}");
    assert!(resumed.contains("instances 31: Failed 1, Pending 10, Running 20"), "{resumed}");
    let mut empty = Model::new("http://127.0.0.1:1".to_owned(), model.clock);
    let empty = text(&mut empty, 80, 24);
    assert!(
        empty.contains("connecting\n") && empty.contains("0.0 events/s") && empty.contains("no state yet"),
        "{empty}"
    );
}

#[test]
fn no_size_and_no_view_panics() {
    for (width, height) in [(1, 1), (3, 2), (20, 5), (30, 7), (79, 12), (400, 3)] {
        let mut model = model();
        for keys in ["", "2", "3", "4", "?", "?/x"] {
            press(&mut model, &keys.chars().map(KeyCode::Char).collect::<Vec<_>>());
            text(&mut model, width, height);
            press(&mut model, &[KeyCode::Enter]);
            text(&mut model, width, height);
            press(&mut model, &[KeyCode::Esc, KeyCode::Esc]);
        }
    }
}

#[test]
fn colors_are_used_only_on_request() {
    let mut model = model();
    let mut colors = |is_colored| {
        let terminal = screen(&mut model, 80, 24, Look { is_colored });
        terminal.backend().buffer().content().iter().filter(|cell| cell.fg != Color::Reset).count()
    };
    assert_eq!(colors(false), 0);
    assert!(colors(true) > 100);
}

/// It prints the time of a redraw. `cli::top_command` of the integration tests judges the cost.
#[test]
fn five_thousand_instances_are_drawn() {
    let mut model = model();
    for n in 0..5000 {
        let instance = format!(r#"{{"uid":"{n:x}","name":"pod-{n}","phase":"Running"}}"#);
        apply(&mut model, &format!(r#"{{"type":"instance.state","phase":"Running","instance":{instance}}}"#));
    }
    for filter in ["", "pod-4", "nothing"] {
        model.filter = filter.to_owned();
        let started = std::time::Instant::now();
        let shown = text(&mut model, 120, 40);
        println!("a redraw of 5,000 instances with the filter {filter:?} takes {:?}", started.elapsed());
        let rows = ["5031 rows", "1111 rows", "0 rows"].into_iter().any(|rows| shown.contains(rows));
        assert!(rows, "{shown}");
    }
}
