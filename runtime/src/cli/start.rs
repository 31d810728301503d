//! `cista start`: start a container or an image

use std::process::ExitCode;

use super::{Context, Outcome};

/// start a container or an image
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args, _context: &Context) -> Outcome {
    Ok(ExitCode::FAILURE)
}
