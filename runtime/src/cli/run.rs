//! `cista run`: import an image into the store when it is not there, and start it

use std::process::ExitCode;

use super::{Context, Outcome};

/// import an image into the store when it is not there, and start it
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args, _context: &Context) -> Outcome {
    Ok(ExitCode::FAILURE)
}
