//! `cista remove`: remove containers

use std::process::ExitCode;

use super::{Context, Outcome};

/// remove containers
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args, _context: &Context) -> Outcome {
    Ok(ExitCode::FAILURE)
}
