//! `cista version`: print the version.

use std::process::ExitCode;

use super::{Context, Outcome};
use crate::ui;

/// Print the version
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

#[expect(
    clippy::unnecessary_wraps,
    reason = "every command has the same signature"
)]
pub(super) fn run(_args: Args, _context: &Context) -> Outcome {
    ui::data(env!("CARGO_PKG_VERSION"));
    Ok(ExitCode::SUCCESS)
}
