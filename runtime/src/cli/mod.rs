//! The command line: one file a command.
//!
//! Each command has an `Args` (clap) and a `run` that takes them and the [`Context`].

mod batch;
mod bundle;
mod bundled;
mod cache;
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
mod load;
mod login;
mod oci;
mod remove;
mod run;
mod script;
mod start;
mod stored;
mod version;

use std::process::ExitCode;

use clap::{Arg, ArgAction, Args as _, FromArgMatches as _, Parser};

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
    Load(load::Args),
    Start(start::Args),
    Batch(batch::Args),
    Run(run::Args),
    Exec(exec::Args),
    Export(export::Args),
    List(list::Args),
    Remove(remove::Args),
    Inspect(inspect::Args),
    Bundle(bundle::Args),
    Check(check::Args),
    Oci(oci::Args),
    Cache(cache::Args),
    Digest(digest::Args),
    Config(config::Args),
    Login(login::LoginArgs),
    Logout(login::LogoutArgs),
    Version(version::Args),
}

/// The description of `start` as a program of its own.
fn start_alone() -> clap::Command {
    let verbose = Arg::new("verbose")
        .short('V')
        .long("verbose")
        .action(ArgAction::SetTrue)
        .help("Say more about what is done");
    start::Args::augment_args(clap::Command::new("cista start"))
        .disable_version_flag(true)
        .arg(verbose)
}

/// Parses the command line. The description of all commands takes longer to build than a start has time for, so
/// `start` gets by with its own.
fn parse() -> Cli {
    let mut arguments = std::env::args_os();
    let program = arguments.next();
    if arguments.next().is_none_or(|first| first != "start") {
        return Cli::parse();
    }
    let dialect = Dialect::of_program(program.as_deref());
    let matches = start_alone()
        .no_binary_name(true)
        .bin_name(format!("{} start", dialect.name()))
        .get_matches_from(arguments);
    Cli {
        verbose: matches.get_flag("verbose"),
        command: Command::Start(
            start::Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()),
        ),
    }
}

/// Parses the command line, runs the command, shows its failure.
#[must_use]
pub fn main() -> ExitCode {
    if let Some((file, layout)) = crate::bundle::own() {
        return bundled::main(file, layout);
    }
    let cli = parse();
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
            Command::Load(args) => load::run(args, &context),
            Command::Start(args) => start::run(args, &context),
            Command::Batch(args) => batch::run(args, &context),
            Command::Run(args) => run::run(args, &context),
            Command::Exec(args) => exec::run(args, &context),
            Command::Export(args) => export::run(args, &context),
            Command::List(args) => list::run(args, &context),
            Command::Remove(args) => remove::run(args, &context),
            Command::Inspect(args) => inspect::run(args, &context),
            Command::Bundle(args) => bundle::run(args, &context),
            Command::Check(args) => check::run(args, &context),
            Command::Oci(args) => oci::run(args, &context),
            Command::Cache(args) => cache::run(args, &context),
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        start_alone().debug_assert();
    }

    #[test]
    fn start_is_described_alike() {
        let mut all = Cli::command();
        all.build();
        let usual = all.find_subcommand_mut("start").unwrap();
        let [usual, alone] = [usual, &mut start_alone()].map(|command| {
            let help = command.render_help().to_string();
            let mut lines: Vec<String> = help.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        });
        assert_eq!(usual, alone);
    }
}
