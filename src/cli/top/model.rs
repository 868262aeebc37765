//! What the screen shows: a function of the client's reports, the keys and the times that are passed in.

use super::{
    columns::View,
    data::{Clock, Data},
    detail::{Fields, Lines, fields},
    link::{Links, Update},
    rows::{Key, Order, Row},
};
use crate::client::Error;

/// What the keys act on.
#[derive(Debug)]
pub(super) enum Mode {
    Browse,
    /// The filter is being edited. It was this before.
    Filter(String),
    Detail(Detail),
    Help,
}

/// One object.
#[derive(Debug)]
pub(super) struct Detail {
    key: Key,
    /// The fields, or the last ones if the object does not exist any more.
    fields: Fields,
    pub(super) lines: Lines,
    pub(super) is_gone: bool,
    pub(super) scroll: usize,
}

/// What a view remembers.
#[derive(Clone, Debug)]
pub(super) struct Tab {
    pub(super) order: Order,
    /// The selected object. Without one, the first row is selected, whatever it is.
    pub(super) selected: Option<Key>,
    /// The place of the selected row, for when its object disappears.
    index: usize,
    /// The first visible row.
    pub(super) top: usize,
}

/// Everything on the screen.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) url: String,
    pub(super) links: Links,
    pub(super) clock: Clock,
    live: Data,
    frozen: Option<Data>,
    pub(super) view: View,
    tabs: [Tab; View::ALL.len()],
    pub(super) mode: Mode,
    pub(super) filter: String,
    /// The rows that fit on the screen.
    pub(super) page: usize,
}

impl Model {
    pub(super) fn new(url: String, clock: Clock) -> Model {
        let tabs = View::ALL.map(|view| Tab { order: view.first_order(), selected: None, index: 0, top: 0 });
        Model {
            url,
            links: Links::new(),
            clock,
            live: Data::new(clock),
            frozen: None,
            view: View::Instances,
            tabs,
            mode: Mode::Browse,
            filter: String::new(),
            page: 1,
        }
    }

    /// Applies what the client has reported.
    pub(super) fn update(&mut self, update: &Update, clock: Clock) {
        self.links.apply(update);
        match &update.item {
            Ok(event) => self.live.apply(event, clock),
            Err(Error::Malformed { .. }) => {}
            Err(_) => self.live.connection_ended(),
        }
    }

    /// Moves the time on.
    pub(super) fn tick(&mut self, clock: Clock) {
        self.clock = clock;
        self.live.tick(clock);
    }

    /// Returns the data of the tables. They stand still during a pause.
    pub(super) fn shown(&self) -> &Data {
        self.frozen.as_ref().unwrap_or(&self.live)
    }

    /// Returns the data of the stream.
    pub(super) fn live(&self) -> &Data {
        &self.live
    }

    pub(super) fn is_paused(&self) -> bool {
        self.frozen.is_some()
    }

    pub(super) fn toggle_pause(&mut self) {
        self.frozen = if self.is_paused() { None } else { Some(self.live.clone()) };
    }

    pub(super) fn tab(&self) -> &Tab {
        &self.tabs[self.view as usize]
    }

    pub(super) fn tab_mut(&mut self) -> &mut Tab {
        &mut self.tabs[self.view as usize]
    }

    /// Returns the rows of the view, in order.
    pub(super) fn rows(&self) -> Vec<Row<'_>> {
        self.view.rows(self.shown(), &self.filter, self.tab().order)
    }

    /// Returns the place of the selected row among these rows: that of its object, or where the object was.
    pub(super) fn selected_index(&self, rows: &[Row<'_>]) -> usize {
        let tab = self.tab();
        let found = match &tab.selected {
            None => Some(0),
            Some(key) => rows.iter().position(|row| row.is(key)),
        };
        found.unwrap_or(tab.index).min(rows.len().saturating_sub(1))
    }

    /// Selects the row that `choose` returns for the place of the selected row and the number of rows. The first row
    /// stands for whatever is first.
    pub(super) fn select(&mut self, choose: impl FnOnce(usize, usize) -> usize) {
        let rows = self.rows();
        let index = choose(self.selected_index(&rows), rows.len()).min(rows.len().saturating_sub(1));
        let selected = rows.get(index).filter(|_| index > 0).map(Row::key);
        let tab = self.tab_mut();
        (tab.selected, tab.index) = (selected, index);
    }

    /// Makes the selected row visible, and returns the visible rows, the place of the selected one among them, and the
    /// number of all rows.
    pub(super) fn visible_rows(&mut self, height: usize) -> (Vec<Row<'_>>, usize, usize) {
        let tab = &mut self.tabs[self.view as usize];
        let data = self.frozen.as_ref().unwrap_or(&self.live);
        let mut rows = self.view.filtered(data, &self.filter);
        let count = rows.len();
        let found = match &tab.selected {
            None => Some(0),
            Some(key) => rows
                .iter()
                .find(|row| row.is(key))
                .map(|selected| rows.iter().filter(|row| tab.order.compare(row, selected).is_lt()).count()),
        };
        // A table without room for a row keeps its place.
        let height = height.max(1);
        let index = found.unwrap_or(tab.index).min(count.saturating_sub(1));
        let lowest = (index + 1).saturating_sub(height);
        tab.top = tab.top.min(index).max(lowest).min(count.saturating_sub(height));
        tab.index = index;
        self.page = height;
        tab.order.window(&mut rows, tab.top, height);
        let visible_index = index - tab.top;
        if found.is_none() {
            // The row in the place of an object that has disappeared is selected.
            tab.selected = rows.get(visible_index).filter(|_| index > 0).map(Row::key);
        }
        (rows, visible_index, count)
    }

    /// Shows all fields of the selected row.
    pub(super) fn open_detail(&mut self) {
        let rows = self.rows();
        let Some(row) = rows.get(self.selected_index(&rows)) else { return };
        let detail = Detail { key: row.key(), fields: Vec::new(), lines: Lines::default(), is_gone: false, scroll: 0 };
        self.mode = Mode::Detail(detail);
    }

    /// Reads the fields of the object of the detail again, for a screen of this size, and limits its scrolling.
    pub(super) fn refresh_detail(&mut self, width: u16, height: usize) {
        let data = self.frozen.as_ref().unwrap_or(&self.live);
        let Mode::Detail(detail) = &mut self.mode else { return };
        let row = self.view.all(data).find(|row| row.is(&detail.key));
        detail.is_gone = row.is_none();
        if let Some(row) = row {
            detail.fields = fields(&row, width / 2, data.clock);
        }
        detail.lines = Lines::new(&detail.fields, width);
        self.page = height.max(1);
        detail.scroll = detail.scroll.min(detail.lines.lines.len().saturating_sub(height));
    }
}
