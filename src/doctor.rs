//! `doctor`: checks of a configuration, a cluster and a running bridge, and the report about them (docs/protocol.md#doctor).
//!
//! Guarantees:
//! - Each check has a time limit. A check whose precondition failed is skipped: it never counts as passed.
//! - Nothing in a cluster is changed. Repairs in the cluster are commands in the report.
//! - No report contains a credential.
//!
//! Must not import: `cli`, which evaluates the flags and passes the result as values and functions.

mod check;
mod checks;
mod command;
mod fix;
mod get;
mod report;

pub use self::{
    check::{Check, Listener, LocalCheck, LocalChecks, Outcome, Subject, Target, run, select},
    checks::CHECKS,
    command::{CommandLine, Flag, shell_path, shell_word},
    fix::{LocalFiles, cluster_repairs, create_missing_files},
    report::{CheckResult, Repair, Report, Severity, Status, schema},
};
