//! `cista completions`: what a shell reads to complete command lines of `cista`

use std::process::ExitCode;

use clap_complete::aot::Shell;

use super::{Outcome, command};
use crate::config::Dialect;
use crate::ui;

/// Print what a shell needs to complete command lines
///
/// For bash: `cista completions bash >~/.local/share/bash-completion/completions/cista`. For zsh, a file `_cista` in a directory of `$fpath`. For fish,
/// `~/.config/fish/completions/cista.fish`. Packages have them installed already.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Outcome {
    let name = Dialect::of_program(std::env::args_os().next().as_deref()).name();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), name, &mut script);
    ui::data(String::from_utf8_lossy(&script).trim_end());
    Ok(ExitCode::SUCCESS)
}
