//! The command line: one file a command.
//!
//! Each command has an `Args` (clap) and a `run` that takes them and the [`Context`].

mod batch;
mod check;
mod config;
mod create;
mod digest;
mod exec;
mod export;
mod failure;
mod import;
mod inspect;
mod list;
mod login;
mod remove;
mod run;
mod script;
mod start;
mod stored;
mod version;

use std::process::ExitCode;

use clap::Parser;

pub use failure::{Failure, status};

use crate::config::{Config, Dialect};
use crate::ui;

/// What a command returns: the exit status of the process.
pub type Outcome = Result<ExitCode, Failure>;

/// What every command gets.
#[derive(Debug)]
pub struct Context {
    /// The effective settings.
    pub config: Config,
    /// Say more about what is done.
    pub verbose: bool,
}

#[derive(Debug, Parser)]
#[command(
    name = "cista",
    about = "Container runtime for HPC and AI clusters, without a daemon",
    disable_version_flag = true
)]
struct Cli {
    /// Say more about what is done
    #[arg(long, short = 'V', global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Import(import::Args),
    Create(create::Args),
    Start(start::Args),
    Batch(batch::Args),
    Run(run::Args),
    Exec(exec::Args),
    Export(export::Args),
    List(list::Args),
    Remove(remove::Args),
    Inspect(inspect::Args),
    Check(check::Args),
    Digest(digest::Args),
    Config(config::Args),
    Login(login::LoginArgs),
    Logout(login::LogoutArgs),
    Version(version::Args),
}

/// Parses the command line, runs the command, shows its failure.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let name = std::env::args_os().next();
    let dialect = Dialect::of_program(name.as_deref());
    let load = || {
        Config::load(dialect).map_err(|error| match cli.command {
            Command::Start(_) | Command::Batch(_) | Command::Run(_) => {
                Failure::from(error).with_status(status::SETUP)
            }
            _ => Failure::from(error),
        })
    };
    let outcome = load().and_then(|config| {
        let context = Context {
            config,
            verbose: cli.verbose,
        };
        match cli.command {
            Command::Import(args) => import::run(args, &context),
            Command::Create(args) => create::run(args, &context),
            Command::Start(args) => start::run(args, &context),
            Command::Batch(args) => batch::run(args, &context),
            Command::Run(args) => run::run(args, &context),
            Command::Exec(args) => exec::run(args, &context),
            Command::Export(args) => export::run(args, &context),
            Command::List(args) => list::run(args, &context),
            Command::Remove(args) => remove::run(args, &context),
            Command::Inspect(args) => inspect::run(args, &context),
            Command::Check(args) => check::run(args, &context),
            Command::Digest(args) => digest::run(args, &context),
            Command::Config(args) => config::run(args, &context),
            Command::Login(args) => login::login(args, &context),
            Command::Logout(args) => login::logout(args, &context),
            Command::Version(args) => version::run(args, &context),
        }
    });
    outcome.unwrap_or_else(|failure| {
        ui::failure(&failure);
        ExitCode::from(failure.status().unwrap_or(status::FAILURE))
    })
}
