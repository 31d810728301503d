//! `cista import`: import an image into a squashfs file

use std::process::ExitCode;

use super::{Context, Outcome};

/// import an image into a squashfs file
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args, _context: &Context) -> Outcome {
    Ok(ExitCode::FAILURE)
}
