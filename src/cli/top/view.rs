//! Draws the model. Every text from outside goes through `escape`, so that it cannot change the terminal.

use std::{collections::BTreeMap, time::Duration};

use ratatui::{
    Frame,
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::Widget as _,
};

use super::{
    columns::{Column, View, Width},
    detail::Lines,
    keys::HELP,
    link::{Link, Start},
    model::{Detail, Mode, Model},
};
use crate::cli::{event_text::Tone, logging::escape};

/// Heights from which the address and the counts, and the line with the keys, are shown.
const ROOM_FOR_HEADER: u16 = 12;
const ROOM_FOR_KEYS: u16 = 7;
/// The width from which the names of all views are shown.
const ROOM_FOR_NAMES: u16 = 70;

/// How tones look: with colors, or with modifiers only (<https://no-color.org>).
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) is_colored: bool,
}

impl Look {
    fn tone(self, tone: Tone) -> Style {
        let (color, modifier) = match tone {
            Tone::Quiet => (Color::DarkGray, Modifier::DIM),
            Tone::Bad => (Color::Red, Modifier::BOLD),
            Tone::Good => (Color::Green, Modifier::empty()),
            Tone::Warning => (Color::Yellow, Modifier::UNDERLINED),
            Tone::Pool => (Color::Blue, Modifier::empty()),
            Tone::Tenant => (Color::Magenta, Modifier::empty()),
            Tone::State => (Color::Cyan, Modifier::BOLD),
        };
        if self.is_colored { Style::new().fg(color) } else { Style::new().add_modifier(modifier) }
    }
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws everything. It also moves the first visible row, so that the selected one is visible.
pub(super) fn render(model: &mut Model, look: Look, frame: &mut Frame<'_>) {
    let area = frame.area();
    let details = u16::from(area.height >= ROOM_FOR_HEADER);
    let keys = u16::from(area.height >= ROOM_FOR_KEYS);
    let heights = [details, 1, details, 1].map(Constraint::Length);
    let [title, status, counts, tabs, body, hints] =
        Layout::vertical(heights.into_iter().chain([Constraint::Fill(1), Constraint::Length(keys)])).areas(area);
    let buffer = frame.buffer_mut();
    title_line(model, look).render(title, buffer);
    status_line(model, look).render(status, buffer);
    counts_line(model, look).render(counts, buffer);
    let shown = match model.mode {
        Mode::Browse | Mode::Filter(_) => Some(table(model, look, body, buffer)),
        Mode::Detail(_) => {
            model.refresh_detail(body.width, usize::from(body.height));
            if let Mode::Detail(detail) = &model.mode {
                pairs(&detail.lines, detail.scroll, look, body, buffer);
            }
            None
        }
        Mode::Help => {
            pairs(&Lines::new(HELP, body.width), 0, look, body, buffer);
            None
        }
    };
    tabs_line(model, shown, tabs.width, look).render(tabs, buffer);
    hints_line(model, look).render(hints, buffer);
}

/// Returns the address, and what the stream does.
fn title_line(model: &Model, look: Look) -> Line<'_> {
    let data = model.live();
    let mut spans = vec![Span::styled(escape(&model.url), BOLD)];
    if let Some(age) = data.last_event_age() {
        spans.push(Span::raw(format!("  last event {} s ago", age.as_secs())));
    }
    spans.push(Span::raw(format!("  {:.1} events/s", data.rate())));
    if model.links.malformed > 0 {
        spans.push(Span::styled(format!("  {} malformed", model.links.malformed), look.tone(Tone::Bad)));
    }
    Line::from(spans)
}

/// Returns the state of the connection and of the upstream, and whether the tables stand still.
fn status_line(model: &Model, look: Look) -> Line<'_> {
    let (text, tone) = match &model.links.link {
        Link::Connecting => ("connecting".to_owned(), Tone::Warning),
        Link::Open(Start::Unknown) => ("connected".to_owned(), Tone::Good),
        Link::Open(Start::Resumed) => ("connected (resumed)".to_owned(), Tone::Good),
        Link::Open(Start::NewState(reason)) => (format!("connected (new state: {})", escape(reason)), Tone::Good),
        Link::Lost { reason, retry_at } => {
            let wait = retry_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(model.clock.now));
            let when = if wait.is_zero() { "now".to_owned() } else { format!("in {:.0} s", wait.as_secs_f64().ceil()) };
            let what = if model.links.was_open() { "reconnecting" } else { "connecting again" };
            (format!("{what} {when}: {}", escape(reason)), Tone::Bad)
        }
    };
    let mut spans = Vec::new();
    if model.is_paused() {
        spans.extend([Span::styled("PAUSED", REVERSED), Span::raw("  ")]);
    }
    spans.push(Span::styled(text, look.tone(tone)));
    let data = model.live();
    if let Some(upstream) = data.upstream() {
        // The first of two resources can be up again. NATS says nothing about the cluster.
        let is_partly_down = model.links.outages().iter().any(|(resource, _)| resource != "nats");
        let state = if upstream.state == "live" && is_partly_down { "down" } else { &upstream.state };
        let tone = if state == "live" { Tone::Good } else { Tone::Bad };
        spans.push(Span::raw("  upstream "));
        spans.push(Span::styled(escape(state).into_owned(), look.tone(tone)));
        for (resource, reason) in model.links.outages() {
            // The event of a relay names no resource.
            let name = if resource.is_empty() { String::new() } else { format!("{}: ", escape(resource)) };
            spans.push(Span::styled(format!(" {name}{}", escape(reason)), look.tone(Tone::Bad)));
        }
        if let Some(age) = upstream.age {
            let heartbeat = model.clock.now.saturating_duration_since(upstream.at);
            spans.push(Span::raw(format!(
                " (age {:.1} s; heartbeat {} s ago)",
                age.as_secs_f64(),
                heartbeat.as_secs()
            )));
        }
    }
    Line::from(spans)
}

/// Returns the number of objects by phase.
fn counts_line(model: &Model, look: Look) -> Line<'_> {
    let state = model.shown().state();
    if !state.is_complete() {
        return Line::styled("no state yet", look.tone(Tone::Quiet));
    }
    let instances = by_phase(state.instances().values().map(|instance| instance.phase.as_str()));
    let claims = by_phase(state.claims().values().map(|claim| claim.phase.as_str()));
    let mut spans = Vec::new();
    for (name, phases) in [("instances", instances), ("claims", claims)] {
        spans.push(Span::styled(format!("{name} {}", phases.values().sum::<usize>()), BOLD));
        for (number, (phase, count)) in phases.into_iter().enumerate() {
            let separator = if number == 0 { ":" } else { "," };
            spans.push(Span::raw(format!("{separator} {} {count}", escape(phase))));
        }
        spans.push(Span::raw("  "));
    }
    spans.push(Span::styled(format!("pools {}", model.shown().pools().len()), BOLD));
    Line::from(spans)
}

fn by_phase<'a>(phases: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    phases.for_each(|phase| *counts.entry(phase).or_default() += 1);
    counts
}

/// Returns the names of the views, and what the table shows.
fn tabs_line(model: &Model, shown: Option<usize>, width: u16, look: Look) -> Line<'_> {
    let mut spans = Vec::new();
    for (number, view) in (1..).zip(View::ALL) {
        let is_shown = view == model.view;
        let style = if is_shown { REVERSED } else { Style::new() };
        let has_name = is_shown || width >= ROOM_FOR_NAMES;
        let name = if has_name { format!(" {number} {} ", view.title()) } else { format!("{number}") };
        spans.extend([Span::styled(name, style), Span::raw(" ")]);
    }
    match (&model.mode, shown) {
        (Mode::Detail(Detail { is_gone: true, .. }), _) => {
            spans.push(Span::styled("gone: these are its last fields", look.tone(Tone::Warning)));
        }
        (Mode::Detail(_), _) => spans.push(Span::raw("one row")),
        (Mode::Help, _) => spans.push(Span::raw("help")),
        (_, Some(count)) => {
            let order = model.tab().order;
            let column = model.view.columns()[order.column].title.to_lowercase();
            let direction = if order.is_descending { "↓" } else { "↑" };
            let rows = if count == 1 { "row" } else { "rows" };
            spans.push(Span::raw(format!("{count} {rows}, by {column} {direction}")));
        }
        (_, None) => {}
    }
    if !model.filter.is_empty() {
        spans.push(Span::styled(format!("  /{}", escape(&model.filter)), look.tone(Tone::Warning)));
    }
    Line::from(spans)
}

fn hints_line(model: &Model, look: Look) -> Line<'_> {
    let text = match &model.mode {
        Mode::Filter(_) => {
            let filter = format!("/{}", escape(&model.filter));
            return Line::from_iter([
                Span::styled(filter, BOLD),
                Span::styled(" ", REVERSED),
                Span::styled("  Enter keeps it, Esc restores the previous filter", look.tone(Tone::Quiet)),
            ]);
        }
        Mode::Browse => "1-4 view  / filter  s S sort  p pause  Enter fields  ? help  q quit",
        Mode::Detail(_) => "↑↓ scroll  Esc back  Ctrl-C quit",
        Mode::Help => "Esc back  Ctrl-C quit",
    };
    Line::styled(text, look.tone(Tone::Quiet))
}

/// Draws the visible rows, and returns the number of all rows.
fn table(model: &mut Model, look: Look, area: Rect, buffer: &mut Buffer) -> usize {
    let shown: Vec<(usize, &Column)> =
        model.view.columns().iter().enumerate().filter(|(_, column)| area.width >= column.from).collect();
    let widths = shown.iter().map(|(_, column)| match column.width {
        Width::Fixed(width) => Constraint::Length(width),
        Width::Share(share) => Constraint::Fill(share),
    });
    let columns = Layout::horizontal(widths).spacing(1).split(area);
    if area.height > 0 {
        for ((_, column), at) in shown.iter().zip(columns.iter()) {
            text(buffer, at.x, area.y, at.width, column.title, BOLD);
        }
    }
    let clock = model.shown().clock;
    let (rows, selected, count) = model.visible_rows(usize::from(area.height.saturating_sub(1)));
    for ((number, row), y) in rows.iter().enumerate().zip(area.y + 1..area.bottom()) {
        let (toned, tone) = row.tone();
        for ((index, _), at) in shown.iter().zip(columns.iter()) {
            let style = if *index == toned { look.tone(tone) } else { Style::new() };
            text(buffer, at.x, y, at.width, &escape(&row.cell(*index, at.width, clock)), style);
        }
        if number == selected {
            buffer.set_style(Rect { y, height: 1, ..area }, REVERSED);
        }
    }
    count
}

/// Draws names and values.
fn pairs(pairs: &Lines, scroll: usize, look: Look, area: Rect, buffer: &mut Buffer) {
    let Lines { name_width, lines } = pairs;
    let rest = area.width.saturating_sub(name_width + 1);
    for ((name, value), y) in lines.iter().skip(scroll).zip(area.y..area.bottom()) {
        text(buffer, area.x, y, *name_width, name, look.tone(Tone::State));
        text(buffer, area.x + name_width + 1, y, rest, value, Style::new());
    }
}

/// Writes a text into the buffer. A text that is wider than `width` ends with `…`.
fn text(buffer: &mut Buffer, x: u16, y: u16, width: u16, text: &str, style: Style) {
    if width == 0 {
        return;
    }
    let (end, _) = buffer.set_stringn(x, y, text, usize::from(width), style);
    let is_cut = Span::raw(text).width() > usize::from(width);
    if is_cut {
        let last = end.min(x + width).saturating_sub(1).max(x);
        buffer.set_stringn(last, y, "…", 1, style);
    }
}

#[cfg(test)]
mod tests;
