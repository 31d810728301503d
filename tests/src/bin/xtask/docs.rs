//! `cargo xtask docs`: write what the documentation takes from the code.

use std::path::Path;
use std::process::{Command, ExitCode};

use cista_tests::artifacts::workspace;
use cista_tests::error::HarnessError;

use crate::{Outcome, machine};

/// Write the reference of commands and settings, docs/reference, from the code
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args) -> Outcome {
    describe("reference", &workspace().join("docs/reference"))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the example of the runtime that writes what is made from descriptions in the code.
pub(crate) fn describe(what: &str, directory: &Path) -> Result<(), HarnessError> {
    let mut command: Command = machine::cargo();
    command
        .args([
            "run",
            "--quiet",
            "--package",
            "cista",
            "--example",
            "describe",
            "--",
            what,
        ])
        .arg(directory);
    machine::must_succeed("cargo run --example describe", &mut command)
}
