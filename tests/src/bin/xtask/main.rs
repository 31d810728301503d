//! `cargo xtask`: the one entry point for the demo, the tests and the benches.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people: its results go to stdout, what it does meanwhile to stderr"
)]

mod bench;
mod cluster;
mod demo;
mod docs;
mod gpu;
mod images;
mod machine;
mod package;
mod picture;
mod test;

use std::process::ExitCode;

use cista_tests::case::chain;
use cista_tests::error::HarnessError;
use clap::Parser;

/// The tasks of this repository
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, clap::Subcommand)]
enum Task {
    Demo(demo::Args),
    Test(test::Args),
    Bench(bench::Args),
    Images(images::Args),
    Docs(docs::Args),
    Cluster(cluster::Args),
    Gpu(gpu::Args),
    Package(package::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Images(args) => images::run(&args),
        Task::Docs(args) => docs::run(&args),
        Task::Cluster(args) => cluster::run(&args),
        Task::Gpu(args) => gpu::run(&args),
        Task::Package(args) => package::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {}", chain(&error));
        ExitCode::FAILURE
    })
}

/// What a task returns: the exit status of the process.
type Outcome = Result<ExitCode, HarnessError>;

/// Tells what is being done, on stderr.
fn say(text: &str) {
    eprintln!("    {text}");
}
