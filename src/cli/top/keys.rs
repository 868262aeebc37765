//! What each key does.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{
    columns::View,
    model::{Mode, Model},
};

/// Characters of the filter.
pub(super) const MAX_FILTER: usize = 100;

/// The keys, for the help (docs/protocol.md#top).
pub(super) const HELP: &[(&str, &str)] = &[
    ("1 2 3 4, Tab", "view: instances, tenants, pools, events"),
    ("↑ ↓ k j", "move the selection, or scroll"),
    ("PgUp PgDn", "move it by one page"),
    ("Home End g G", "move it to the first or the last row"),
    ("Enter", "all fields and labels of the selected row"),
    ("Esc", "back; in a table: remove the filter"),
    ("/", "filter: name, tenant, workload, phase, label KEY=VALUE; !TEXT: not"),
    ("s, S", "sort by the next column; reverse the order"),
    ("p, Space", "pause the tables; the stream goes on"),
    ("?", "this help"),
    ("Ctrl-Z", "suspend; fg continues"),
    ("q, Ctrl-C", "quit"),
];

/// What follows a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Continue,
    Quit,
    Interrupt,
    Suspend,
}

impl Model {
    /// Handles a key.
    pub(super) fn key(&mut self, key: KeyEvent) -> Next {
        if key.kind == KeyEventKind::Release {
            return Next::Continue;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            match key.code {
                KeyCode::Char('c') => return Next::Interrupt,
                KeyCode::Char('z') => return Next::Suspend,
                KeyCode::Char('u') if matches!(self.mode, Mode::Filter(_)) => self.filter.clear(),
                _ => {}
            }
            return Next::Continue;
        }
        match &mut self.mode {
            Mode::Browse => return self.browse_key(key.code),
            Mode::Filter(_) => self.filter_key(key.code),
            // Another view is one key away.
            Mode::Help | Mode::Detail(_)
                if matches!(key.code, KeyCode::Char('1'..='4') | KeyCode::Tab | KeyCode::BackTab) =>
            {
                self.mode = Mode::Browse;
                return self.browse_key(key.code);
            }
            Mode::Help => match key.code {
                KeyCode::Char('q' | '?') | KeyCode::Esc | KeyCode::Enter => self.mode = Mode::Browse,
                _ => {}
            },
            Mode::Detail(_) if matches!(key.code, KeyCode::Char('q') | KeyCode::Esc | KeyCode::Enter) => {
                self.mode = Mode::Browse;
            }
            Mode::Detail(detail) => match key.code {
                KeyCode::Char('?') => self.mode = Mode::Help,
                KeyCode::Char('p' | ' ') => self.toggle_pause(),
                code => {
                    if let Some(scroll) = moved(code, self.page) {
                        // The scrolling is limited before it is shown.
                        detail.scroll = scroll(detail.scroll, usize::MAX);
                    }
                }
            },
        }
        Next::Continue
    }

    fn browse_key(&mut self, code: KeyCode) -> Next {
        match code {
            KeyCode::Char('q') => return Next::Quit,
            KeyCode::Char(digit @ '1'..='4') => self.view = View::ALL[usize::from(digit as u8 - b'1')],
            KeyCode::Tab => self.view = View::ALL[(self.view as usize + 1) % View::ALL.len()],
            KeyCode::BackTab => self.view = View::ALL[(self.view as usize + View::ALL.len() - 1) % View::ALL.len()],
            KeyCode::Char('/') => self.mode = Mode::Filter(self.filter.clone()),
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('s') => {
                let columns = self.view.columns().len();
                let order = &mut self.tab_mut().order;
                order.column = (order.column + 1) % columns;
            }
            KeyCode::Char('S') => {
                let order = &mut self.tab_mut().order;
                order.is_descending = !order.is_descending;
            }
            KeyCode::Char('p' | ' ') => self.toggle_pause(),
            KeyCode::Char('?') => self.mode = Mode::Help,
            KeyCode::Enter => self.open_detail(),
            code => {
                if let Some(choose) = moved(code, self.page) {
                    self.select(choose);
                }
            }
        }
        Next::Continue
    }

    fn filter_key(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.mode = Mode::Browse,
            KeyCode::Esc => {
                if let Mode::Filter(before) = std::mem::replace(&mut self.mode, Mode::Browse) {
                    self.filter = before;
                }
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(c) if self.filter.chars().count() < MAX_FILTER => self.filter.push(c),
            _ => {}
        }
    }
}

/// Returns how a key changes a position among a number of rows. The result may be behind the last row.
fn moved(code: KeyCode, page: usize) -> Option<impl FnOnce(usize, usize) -> usize> {
    enum Move {
        Up(usize),
        Down(usize),
        First,
        Last,
    }
    let movement = match code {
        KeyCode::Up | KeyCode::Char('k') => Move::Up(1),
        KeyCode::Down | KeyCode::Char('j') => Move::Down(1),
        KeyCode::PageUp => Move::Up(page),
        KeyCode::PageDown => Move::Down(page),
        KeyCode::Home | KeyCode::Char('g') => Move::First,
        KeyCode::End | KeyCode::Char('G') => Move::Last,
        _ => return None,
    };
    Some(move |at: usize, count: usize| match movement {
        Move::Up(rows) => at.saturating_sub(rows),
        Move::Down(rows) => at.saturating_add(rows),
        Move::First => 0,
        Move::Last => count,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::top::{data::Clock, link::Update},
        client::Event,
    };

    fn press(model: &mut Model, codes: &[KeyCode]) -> Next {
        let mut next = Next::Continue;
        for code in codes {
            next = model.key(KeyEvent::new(*code, KeyModifiers::NONE));
        }
        next
    }

    fn text(text: &str) -> Vec<KeyCode> {
        text.chars().map(KeyCode::Char).collect()
    }

    fn apply(model: &mut Model, json: &str) {
        let item = Ok(Event::from_json(json).unwrap());
        model.update(&Update { item, connections: 1, retry_at: None }, Clock::read());
    }

    fn pod(model: &mut Model, name: &str, phase: &str) {
        let instance = format!(r#"{{"uid":"{name}","name":"{name}","phase":"{phase}","labels":{{"team":"a"}}}}"#);
        apply(
            model,
            &format!(r#"{{"type":"instance.state","name":"{name}","phase":"{phase}","instance":{instance}}}"#),
        );
    }

    fn model(names: &[&str]) -> Model {
        let mut model = Model::new("http://bridge".to_owned(), Clock::read());
        names.iter().for_each(|name| pod(&mut model, name, "Running"));
        model
    }

    /// The visible names, with the selected one in brackets.
    fn shown(model: &mut Model, height: usize) -> String {
        let clock = model.clock;
        let (rows, selected, _) = model.visible_rows(height);
        let names = rows.iter().enumerate().map(|(at, row)| {
            let name = row.cell(0, 10, clock);
            if at == selected { format!("[{name}]") } else { name.into_owned() }
        });
        names.collect()
    }

    #[test]
    fn the_selection_stays_on_its_object() {
        let mut model = model(&["b", "d", "f"]);
        assert_eq!(shown(&mut model, 9), "[b]df");
        press(&mut model, &[KeyCode::Down]);
        pod(&mut model, "a", "Running");
        pod(&mut model, "c", "Running");
        assert_eq!(shown(&mut model, 9), "abc[d]f");
        assert_eq!(shown(&mut model, 2), "c[d]", "it is scrolled into view");
        pod(&mut model, "d", "Deleted");
        assert_eq!(shown(&mut model, 9), "abc[f]", "the next one takes its place");
        press(&mut model, &[KeyCode::Home]);
        pod(&mut model, "0", "Running");
        assert_eq!(shown(&mut model, 9), "[0]abcf", "the first row is no object of its own");
        press(&mut model, &[KeyCode::End]);
        assert_eq!(shown(&mut model, 2), "c[f]");
        press(&mut model, &[KeyCode::PageUp, KeyCode::Char('k'), KeyCode::Char('j')]);
        assert_eq!(shown(&mut model, 2), "[b]c");
        press(&mut model, &[KeyCode::PageDown, KeyCode::PageDown]);
        assert_eq!(shown(&mut model, 2), "c[f]");
    }

    #[test]
    fn sort_and_filter_keys_change_the_rows() {
        let mut model = model(&["a", "b"]);
        pod(&mut model, "c", "Failed");
        press(&mut model, &text("S"));
        assert_eq!(shown(&mut model, 9), "[c]ba");
        press(&mut model, &text("Ss"));
        assert_eq!(shown(&mut model, 9), "[c]ab", "by phase");
        press(&mut model, &text("/failq"));
        assert_eq!(shown(&mut model, 9), "");
        press(&mut model, &[KeyCode::Backspace, KeyCode::Enter]);
        assert_eq!((shown(&mut model, 9).as_str(), model.filter.as_str()), ("[c]", "fail"));
        press(&mut model, &[text("/x"), vec![KeyCode::Esc]].concat());
        assert_eq!(model.filter, "fail", "Esc keeps the filter from before");
        press(&mut model, &[KeyCode::Esc]);
        assert_eq!(shown(&mut model, 9), "[c]ab");
        press(&mut model, &text(&format!("/{}", "x".repeat(MAX_FILTER + 1))));
        assert_eq!(model.filter.len(), MAX_FILTER);
    }

    #[test]
    fn a_pause_freezes_the_tables_while_the_stream_goes_on() {
        let mut model = model(&["a"]);
        press(&mut model, &text("p"));
        pod(&mut model, "b", "Running");
        assert!(model.is_paused());
        assert_eq!(shown(&mut model, 9), "[a]");
        assert_eq!(model.live().state().instances().len(), 2);
        press(&mut model, &text(" "));
        assert_eq!(shown(&mut model, 9), "[a]b");
    }

    #[test]
    fn the_detail_stays_on_its_object_and_keeps_the_last_fields() {
        let mut model = model(&["a", "b"]);
        press(&mut model, &[KeyCode::Down, KeyCode::Enter]);
        pod(&mut model, "0", "Running");
        let fields = |model: &mut Model| {
            model.refresh_detail(80, 20);
            let Mode::Detail(detail) = &model.mode else { panic!("{:?}", model.mode) };
            (format!("{:?}", detail.lines.lines), detail.is_gone)
        };
        let (shown, is_gone) = fields(&mut model);
        assert!(shown.contains(r#"("name", "b")"#) && shown.contains(r#"("label team", "a")"#), "{shown}");
        assert!(!is_gone);
        pod(&mut model, "b", "Deleted");
        let (shown, is_gone) = fields(&mut model);
        assert!(shown.contains(r#"("name", "b")"#) && is_gone, "{shown}");
        // It scrolls to its end, not further.
        press(&mut model, &[KeyCode::End]);
        model.refresh_detail(80, 4);
        let Mode::Detail(detail) = &model.mode else { panic!("{:?}", model.mode) };
        assert_eq!(detail.scroll, detail.lines.lines.len() - 4);
        press(&mut model, &[KeyCode::Esc]);
        assert!(matches!(model.mode, Mode::Browse));
    }

    #[test]
    fn keys_switch_views_and_quit() {
        let mut model = model(&[]);
        press(&mut model, &text("4"));
        assert_eq!(model.view, View::Events);
        press(&mut model, &[KeyCode::Tab]);
        assert_eq!(model.view, View::Instances);
        press(&mut model, &[KeyCode::BackTab, KeyCode::BackTab]);
        assert_eq!(model.view, View::Pools);
        // Nothing is selected in an empty view.
        press(&mut model, &[KeyCode::Enter, KeyCode::Down, KeyCode::End]);
        assert!(matches!(model.mode, Mode::Browse));
        press(&mut model, &text("?2"));
        assert!(model.view == View::Tenants && matches!(model.mode, Mode::Browse), "{model:?}");
        assert_eq!(press(&mut model, &text("?q")), Next::Continue, "q leaves the help");
        assert_eq!(press(&mut model, &text("q")), Next::Quit);
        assert_eq!(press(&mut model, &text("/q")), Next::Continue, "q is text");
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        assert_eq!(model.key(control('c')), Next::Interrupt);
        assert_eq!(model.key(control('z')), Next::Suspend);
    }
}
