//! The views, and the columns of their tables.

/// A view, in the order of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    Instances,
    Tenants,
    Pools,
    Events,
}

/// A column of a view.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) title: &'static str,
    pub(super) width: Width,
    /// The screen width from which the column is shown.
    pub(super) from: u16,
}

/// The width of a column.
#[derive(Clone, Copy, Debug)]
pub(super) enum Width {
    /// In characters.
    Fixed(u16),
    /// A share of what the others leave.
    Share(u16),
}

const fn column(title: &'static str, width: Width, from: u16) -> Column {
    Column { title, width, from }
}

const INSTANCES: &[Column] = &[
    column("NAME", Width::Share(4), 0),
    column("PHASE", Width::Fixed(11), 30),
    column("WORKLOAD", Width::Share(3), 60),
    column("TENANT", Width::Share(2), 50),
    column("POOL", Width::Fixed(8), 70),
    column("AGE", Width::Fixed(6), 40),
    column("IP", Width::Fixed(15), 100),
];
const TENANTS: &[Column] = &[
    column("TENANT", Width::Share(2), 0),
    column("CLAIM", Width::Share(3), 50),
    column("PHASE", Width::Fixed(13), 30),
    column("WORKLOAD", Width::Share(2), 90),
    column("INSTANCE", Width::Share(3), 60),
    column("SOURCE", Width::Fixed(9), 70),
    column("CLAIMED", Width::Fixed(7), 40),
];
const POOLS: &[Column] = &[
    column("WORKLOAD", Width::Share(2), 0),
    column("WARMING", Width::Fixed(7), 50),
    column("READY", Width::Fixed(6), 20),
    column("ACQUIRED", Width::Fixed(8), 40),
    column("READY IN THE LAST 120 s", Width::Share(3), 60),
];
const EVENTS: &[Column] =
    &[column("TIME", Width::Fixed(12), 0), column("TYPE", Width::Fixed(19), 50), column("EVENT", Width::Share(1), 0)];

impl View {
    pub(super) const ALL: [View; 4] = [View::Instances, View::Tenants, View::Pools, View::Events];

    pub(super) fn title(self) -> &'static str {
        match self {
            View::Instances => "Instances",
            View::Tenants => "Tenants",
            View::Pools => "Pools",
            View::Events => "Events",
        }
    }

    pub(super) fn columns(self) -> &'static [Column] {
        match self {
            View::Instances => INSTANCES,
            View::Tenants => TENANTS,
            View::Pools => POOLS,
            View::Events => EVENTS,
        }
    }
}
