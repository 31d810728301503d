//! `cargo xtask cluster`: the Slurm cluster of the tests, to try things by hand.

use std::process::{Command, ExitCode};

use cista_tests::artifacts::Profile;
use cista_tests::environment::Session;
use cista_tests::error::HarnessError;
use cista_tests::packages::{DEMO, SLURM};

use crate::{Outcome, machine, say};

/// Start the Slurm cluster of the tests, and run a command on it: a shell, unless one is given
///
/// The partition `main` has the nodes n1 to n4, the last two with GPUs in Slurm's eyes; `lacking` has n5, without user namespaces, and
/// n6, without `cista`; `open` has n7, with GPUs that Slurm keeps from nobody. It ends with the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Arguments of the plugin in plugstack.conf
    #[arg(long, short, value_name = "NAME=VALUE")]
    plugin: Vec<String>,
    /// The command and its arguments
    #[arg(trailing_var_arg = true)]
    command: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Outcome {
    machine::prepare(&[DEMO, SLURM]);
    machine::build(Profile::Debug)?;
    let session = Session::start(Profile::Debug, say)?;
    let cluster = session.cluster()?;
    cluster.set_plugin_arguments(&args.plugin)?;
    let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into());
    let (program, arguments) = match args.command.split_first() {
        Some((program, arguments)) => (program.clone(), arguments),
        None => (shell, [].as_slice()),
    };
    say(&format!(
        "logs, and what the nodes share: {}",
        cluster.root().display()
    ));
    let status = Command::new(&program)
        .args(arguments)
        .env("SLURM_CONF", cluster.conf())
        .status()
        .map_err(|source| HarnessError::Spawn { program, source })?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
