//! The command line: one file a command.
//!
//! Each command has an `Args` (clap) and a `run` that takes them and the [`Context`].

mod batch;
mod bundle;
mod bundled;
mod cache;
mod cdi;
mod check;
mod check_gpu;
mod completions;
mod config;
mod create;
mod digest;
mod exec;
mod export;
mod failure;
mod help;
mod hints;
mod import;
mod inspect;
mod list;
mod load;
mod login;
mod migrate;
mod oci;
mod remove;
mod run;
mod script;
mod slurm;
mod slurm_epilog;
mod start;
mod stored;
mod version;

use std::process::ExitCode;

use clap::{Arg, ArgAction, Args as _, CommandFactory as _, FromArgMatches as _, Parser};

pub use failure::{Failure, status};

use crate::config::{Config, Dialect};
use crate::observe::{self, Activity};
use crate::ui;
use crate::ui::log::LogFormat;

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

/// The name of the program.
const NAME: &str = "cista";

#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about = "Container runtime for HPC and AI clusters, without a daemon",
    after_help = help::topics(),
    disable_version_flag = true,
    disable_help_subcommand = true
)]
struct Cli {
    /// Say more about what is done
    #[arg(long, short = 'V', global = true)]
    verbose: bool,
    /// How messages look: `text`, or `json` for one object a line (`cista help observability`)
    #[arg(long, global = true, value_name = "FORMAT", value_parser = parse_log_format)]
    log_format: Option<LogFormat>,
    /// Print name and version
    #[arg(long, action = ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    command: Command,
}

fn parse_log_format(word: &str) -> Result<LogFormat, String> {
    LogFormat::parse(word).ok_or_else(|| "expected `text` or `json`".to_owned())
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
    Cdi(cdi::Args),
    Digest(digest::Args),
    Config(config::Args),
    Login(login::LoginArgs),
    Logout(login::LogoutArgs),
    Migrate(migrate::Args),
    Completions(completions::Args),
    Help(help::Args),
    Version(version::Args),
    #[command(hide = true)]
    Slurm(slurm::Args),
}

impl Command {
    /// Its name, and what it is counted as.
    fn activity(&self) -> (&'static str, Activity) {
        match self {
            Self::Import(_) => ("import", Activity::Import),
            Self::Create(_) => ("create", Activity::Other),
            Self::Load(_) => ("load", Activity::Import),
            Self::Start(_) => ("start", Activity::Start),
            Self::Batch(_) => ("batch", Activity::Start),
            Self::Run(_) => ("run", Activity::Start),
            Self::Exec(_) => ("exec", Activity::Other),
            Self::Export(_) => ("export", Activity::Other),
            Self::List(_) => ("list", Activity::Other),
            Self::Remove(_) => ("remove", Activity::Other),
            Self::Inspect(_) => ("inspect", Activity::Other),
            Self::Bundle(_) => ("bundle", Activity::Other),
            Self::Check(_) => ("check", Activity::Other),
            Self::Oci(_) => ("oci", Activity::Other),
            Self::Cache(_) => ("cache", Activity::Other),
            Self::Cdi(_) => ("cdi", Activity::Other),
            Self::Digest(_) => ("digest", Activity::Other),
            Self::Config(_) => ("config", Activity::Other),
            Self::Login(_) => ("login", Activity::Other),
            Self::Logout(_) => ("logout", Activity::Other),
            Self::Migrate(_) => ("migrate", Activity::Other),
            Self::Completions(_) => ("completions", Activity::Other),
            Self::Help(_) => ("help", Activity::Other),
            Self::Version(_) => ("version", Activity::Other),
            Self::Slurm(args) => ("slurm", args.activity()),
        }
    }
}

/// The description of the whole command line, for completions, manual pages and the reference.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// The description of `start` as a program of its own.
fn start_alone() -> clap::Command {
    let verbose = Arg::new("verbose")
        .short('V')
        .long("verbose")
        .action(ArgAction::SetTrue)
        .help("Say more about what is done");
    let log_format = Arg::new("log_format")
        .long("log-format")
        .value_name("FORMAT")
        .value_parser(parse_log_format)
        .help(
            "How messages look: `text`, or `json` for one object a line (`cista help observability`)",
        );
    start::Args::augment_args(clap::Command::new("cista start"))
        .disable_version_flag(true)
        .args([verbose, log_format])
}

/// Parses the command line. The description of all commands takes longer to build than a start has time for, so
/// `start` gets by with its own.
fn parse() -> Cli {
    let mut arguments = std::env::args_os();
    let program = arguments.next();
    let first = arguments.next();
    if first.as_deref().is_some_and(|first| first == "slurm") {
        let words: Vec<_> = first.into_iter().chain(arguments).collect();
        return match slurm::Args::of_step(&words) {
            Some(args) => Cli {
                verbose: false,
                log_format: None,
                version: None,
                command: Command::Slurm(args),
            },
            None => Cli::parse(),
        };
    }
    if first.is_none_or(|first| first != "start") {
        return Cli::parse();
    }
    let dialect = Dialect::of_program(program.as_deref());
    let matches = start_alone()
        .no_binary_name(true)
        .bin_name(format!("{} start", dialect.name()))
        .get_matches_from(arguments);
    Cli {
        verbose: matches.get_flag("verbose"),
        log_format: matches.get_one("log_format").copied(),
        version: None,
        command: Command::Start(
            start::Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()),
        ),
    }
}

/// Parses the command line, runs the command, shows its failure.
#[must_use]
pub fn main() -> ExitCode {
    let began = observe::now();
    match crate::bundle::own() {
        Ok(None) => {}
        Ok(Some((file, layout))) => return bundled::main(file, layout, began),
        Err(error) => {
            ui::failure(&Failure::new(error).with_hint("copy it again"));
            return ExitCode::from(status::SETUP);
        }
    }
    let cli = parse();
    // What explains the program works whatever its settings are.
    match &cli.command {
        Command::Help(args) => return finish(help::run(args)),
        Command::Completions(args) => return finish(completions::run(args)),
        _ => {}
    }
    let name = std::env::args_os().next();
    let dialect = Dialect::of_program(name.as_deref());
    let (command, activity) = cli.command.activity();
    let identity = || crate::config::log_identity(command);
    // Its messages go to the plugin, which knows them as text.
    let is_for_plugin = matches!(cli.command, Command::Slurm(_));
    let set_format = |format| match is_for_plugin {
        true => ui::log::set_for_events(format, identity),
        false => ui::log::set(format, identity),
    };
    set_format(
        cli.log_format
            .unwrap_or_else(crate::config::early_log_format),
    );
    let load = || {
        Config::load(dialect).map_err(|error| match cli.command {
            Command::Start(_) | Command::Batch(_) | Command::Run(_) => {
                Failure::from(error).with_status(status::SETUP)
            }
            _ => Failure::from(error),
        })
    };
    let outcome = load().and_then(|mut config| {
        config.log_format = cli.log_format.unwrap_or(config.log_format);
        set_format(config.log_format);
        observe::start(activity, began, &config);
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
            Command::Cdi(args) => cdi::run(args, &context),
            Command::Digest(args) => digest::run(args, &context),
            Command::Config(args) => config::run(args, &context),
            Command::Login(args) => login::login(args, &context),
            Command::Logout(args) => login::logout(args, &context),
            Command::Migrate(args) => migrate::run(args, &context),
            Command::Completions(args) => completions::run(&args),
            Command::Help(args) => help::run(&args),
            Command::Version(args) => version::run(args, &context),
            Command::Slurm(args) => slurm::run(args, &context),
        }
    });
    if outcome.is_ok() {
        observe::done();
    }
    finish(outcome)
}

/// Shows a failure; the exit status of the process.
fn finish(outcome: Outcome) -> ExitCode {
    outcome.unwrap_or_else(|failure| {
        let status = failure.status().unwrap_or(status::FAILURE);
        // Who was interrupted has not failed.
        if status <= status::NOT_FOUND {
            observe::failed();
        }
        ui::failure(&failure);
        ExitCode::from(status)
    })
}

#[cfg(test)]
mod tests {
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
