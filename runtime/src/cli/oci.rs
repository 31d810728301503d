//! `cista oci`: run bundles of the OCI runtime specification

use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::pipe::PipeFlags;
use rustix::process::Signal;

use super::start::program_status;
use super::{Context, Failure, Outcome, status};
use crate::container::program;
use crate::oci::bundle::Bundle;
use crate::oci::run::{self, Gate, RunError};
use crate::oci::state::{self, Entry, StateError};
use crate::{sys, ui};

/// Run bundles of the OCI runtime specification
///
/// The command line is that of other runtimes, as Slurm's oci.conf uses it. Options that have no meaning here are accepted: there is no daemon, no log
/// but standard error, and control groups are those of the caller.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory for the state of containers
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    rootless: Option<String>,
    #[arg(long, hide = true)]
    log: Option<PathBuf>,
    #[arg(long, hide = true)]
    log_format: Option<String>,
    #[arg(long, hide = true)]
    debug: bool,
    #[arg(long, hide = true)]
    systemd_cgroup: bool,
    #[arg(long, hide = true)]
    cgroup_manager: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Create a container and start it: this process becomes its program
    Run(CreateArgs),
    /// Create a container, which waits to be started
    Create(CreateArgs),
    /// Start a created container
    Start(Named),
    /// Print the state of a container as JSON
    State(Named),
    /// Send a signal to a container
    Kill(KillArgs),
    /// Forget a container that has ended
    Delete(DeleteArgs),
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// Directory of the bundle
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    bundle: PathBuf,
    /// Write the number of the container's process to a file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Leave this many open files from 3 on to the program
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(i32).range(0..=1 << 16))]
    preserve_fds: i32,
    #[arg(long, hide = true)]
    no_new_keyring: bool,
    #[arg(long, hide = true)]
    no_pivot: bool,
    #[command(flatten)]
    name: Named,
}

#[derive(Debug, clap::Args)]
struct Named {
    /// Name of the container
    #[arg(value_name = "ID")]
    id: String,
}

#[derive(Debug, clap::Args)]
struct KillArgs {
    /// Send it to every process of the container
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    name: Named,
    /// Name or number of the signal
    #[arg(default_value = "SIGTERM", value_parser = parse_signal)]
    signal: Signal,
}

#[derive(Debug, clap::Args)]
struct DeleteArgs {
    /// Kill it if it runs; a container that is not there is no error
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    name: Named,
}

fn parse_signal(text: &str) -> Result<Signal, String> {
    state::signal(text).ok_or_else(|| "there is no such signal".to_owned())
}

/// The pid file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write `{path}`")]
struct PidFile {
    path: PathBuf,
    source: io::Error,
}

/// The container's process cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the container's process")]
struct Spawn(#[source] io::Error);

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let root = args
        .root
        .unwrap_or_else(|| context.config.runtime_path.join(state::DIRECTORY));
    let entry = |name: &Named| Entry::new(&root, &name.id);
    match args.command {
        Command::Run(args) => {
            program::protect();
            let entry = entry(&args.name)?;
            become_program(&args, &entry).map_err(with_setup_status)
        }
        Command::Create(args) => {
            program::protect();
            let entry = entry(&args.name)?;
            create(&args, &entry)
        }
        Command::Start(name) => {
            entry(&name)?.start()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::State(name) => {
            let report = entry(&name)?.report()?;
            ui::data(serde_json::to_string_pretty(&report)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Kill(args) => {
            entry(&args.name)?.kill(args.signal, args.all)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Delete(args) => match entry(&args.name)?.delete(args.force) {
            Err(StateError::NotFound { .. }) if args.force => Ok(ExitCode::SUCCESS),
            result => {
                result?;
                Ok(ExitCode::SUCCESS)
            }
        },
    }
}

fn with_setup_status(failure: Failure) -> Failure {
    if failure.status().is_some() {
        failure
    } else {
        failure.with_status(status::SETUP)
    }
}

fn files(args: &CreateArgs) -> Vec<RawFd> {
    (3..3 + args.preserve_fds)
        .filter(|fd| sys::process::is_open(*fd))
        .collect()
}

fn write_pid(args: &CreateArgs, pid: u32) -> Result<(), PidFile> {
    match &args.pid_file {
        Some(path) => fs::write(path, pid.to_string()).map_err(|source| PidFile {
            path: path.clone(),
            source,
        }),
        None => Ok(()),
    }
}

fn failure(error: RunError) -> Failure {
    let status = match &error {
        RunError::Program(error) => program_status(error),
        _ => status::SETUP,
    };
    Failure::new(error).with_status(status)
}

/// `run`: returns only a failure, after which nothing of the container is left.
fn become_program(args: &CreateArgs, entry: &Entry) -> Outcome {
    let bundle = Bundle::open(&args.bundle)?;
    let files = files(args);
    entry.make(true)?;
    let held = entry.hold()?;
    let result = write_pid(args, std::process::id())
        .map_err(Failure::from)
        .and_then(
            |()| match run::run(&bundle, entry, None, &files, &|text| ui::warning(text)) {
                Ok(never) => match never {},
                Err(error) => Err(failure(error)),
            },
        );
    held.remove();
    result
}

/// `create`: the container's process is made, prepares everything and waits; this one tells what became of that.
fn create(args: &CreateArgs, entry: &Entry) -> Outcome {
    let bundle = Bundle::open(&args.bundle)?;
    let files = files(args);
    entry.make(true)?;
    let created = spawn(args, entry, &bundle, &files);
    if !matches!(&created, Ok(code) if *code == ExitCode::SUCCESS) {
        let _ = entry.remove();
    }
    created
}

fn spawn(args: &CreateArgs, entry: &Entry, bundle: &Bundle, files: &[RawFd]) -> Outcome {
    let mut pipe = Some(entry.gate()?);
    let (created, ready) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let mut ready = Some(ready);
    let helper = sys::process::spawn_helper(|| {
        // What the terminal of the creator sends is not for the container.
        let _ = rustix::process::setsid();
        let (Some(pipe), Some(ready)) = (pipe.take(), ready.take()) else {
            return i32::from(status::SETUP);
        };
        let gate = Gate { pipe, ready };
        match run::run(bundle, entry, Some(gate), files, &|text| ui::warning(text)) {
            Ok(never) => match never {},
            Err(error) => {
                let failure = failure(error);
                ui::failure(&failure);
                i32::from(failure.status().unwrap_or(status::SETUP))
            }
        }
    })
    .map_err(Spawn)?;
    drop((pipe.take(), ready.take()));
    let mut byte = [0];
    if let Ok(1) = rustix::io::retry_on_intr(|| rustix::io::read(&created, &mut byte)) {
        write_pid(args, helper.pid()).inspect_err(|_| helper.kill())?;
        return Ok(ExitCode::SUCCESS);
    }
    // It has said what is wrong.
    let status = helper.wait().map_err(Spawn)?;
    Ok(ExitCode::from(
        u8::try_from(status.max(1)).unwrap_or(status::SETUP),
    ))
}
