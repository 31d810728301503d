//! `cista version`: print the version.

use std::process::ExitCode;

use super::{Context, Outcome};
use crate::config::Dialect;
use crate::ui;

/// The version of enroot whose commands, options and settings this program has: scripts compare it.
const ENROOT_VERSION: &str = "4.0.1";

/// Print the version
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

#[expect(
    clippy::unnecessary_wraps,
    reason = "every command has the same signature"
)]
pub(super) fn run(_args: Args, context: &Context) -> Outcome {
    ui::data(match context.config.sources.dialect() {
        Dialect::Cista => env!("CARGO_PKG_VERSION"),
        Dialect::Enroot => ENROOT_VERSION,
    });
    Ok(ExitCode::SUCCESS)
}
