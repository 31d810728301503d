//! `cista digest`: print the digest of an image's manifest

use std::process::ExitCode;

use super::{Context, Outcome};

/// print the digest of an image's manifest
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args, _context: &Context) -> Outcome {
    Ok(ExitCode::FAILURE)
}
