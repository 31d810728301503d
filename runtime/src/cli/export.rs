//! `cista export`: export a container to an image

use std::process::ExitCode;

use super::{Context, Outcome};

/// export a container to an image
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args, _context: &Context) -> Outcome {
    Ok(ExitCode::FAILURE)
}
