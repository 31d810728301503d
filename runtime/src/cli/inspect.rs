//! `cista inspect`: show what an image file contains

use std::process::ExitCode;

use super::{Context, Outcome};

/// show what an image file contains
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args, _context: &Context) -> Outcome {
    Ok(ExitCode::FAILURE)
}
