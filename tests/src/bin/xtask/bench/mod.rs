//! `cargo xtask bench`: how fast, as ratios to others, measured side by side in one run.
//!
//! Absolute times say more about the machine than about the program. So every table sets what we do beside what it is
//! held against, and the contestants take turns (A B C, A B C, …) so that noise and a warming machine hit all alike.

mod chart;
mod import;
mod measure;
mod read;
mod serve;
mod srun;
mod start;
pub(crate) mod table;
mod transfer;

use std::process::ExitCode;

use cista_tests::artifacts::Profile;
use cista_tests::environment::Session;
use cista_tests::error::HarnessError;
use cista_tests::packages::{BENCHES, DEMO, SLURM};

use crate::{Outcome, machine, say};
use table::Table;

/// Measure import, start, read, transfer and steps of Slurm against other programs, side by side
///
/// Prints Markdown tables of medians and ratios. Holds the release build against tar2sqfs, bubblewrap, squashfuse, the
/// kernel's squashfs, curl, and enroot where it is on PATH.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to measure
    #[arg(value_enum, default_value = "all")]
    what: What,
    /// Measured rounds, after one that is not counted
    #[arg(long, short = 'n')]
    rounds: Option<usize>,
    /// Also put the tables into docs/benchmarks.md, and charts of them into docs/benchmarks/
    #[arg(long)]
    write: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// From a registry or a tar file to an image file
    Import,
    /// The time until a container's program runs
    Start,
    /// Reading files of an image through its mount
    Read,
    /// What the server of an image and a container cost
    Serve,
    /// The way from a registry that is far away
    Transfer,
    /// Nothing: draw the charts of docs/benchmarks.md anew
    Charts,
    /// Steps of Slurm, with and without a container
    Srun,
    /// All of them
    All,
}

/// A bench: from a session and a number of rounds to tables.
type Bench = fn(&Session, Option<usize>) -> Result<Vec<Table>, HarnessError>;

pub(crate) fn run(args: &Args) -> Outcome {
    if args.what == What::Charts {
        chart::draw_all()?;
        return Ok(ExitCode::SUCCESS);
    }
    machine::prepare(&[DEMO, BENCHES, SLURM]);
    machine::build(Profile::Release)?;
    let session = Session::start(Profile::Release, say)?;
    let benches: [(What, &str, Bench); 6] = [
        (What::Import, "import", import::run),
        (What::Start, "start", start::run),
        (What::Read, "read", read::run),
        (What::Serve, "serve", serve::run),
        (What::Transfer, "transfer", transfer::run),
        (What::Srun, "srun", srun::run),
    ];
    let machine = table::machine();
    println!("{machine}\n");
    for (what, name, bench) in benches {
        if args.what != What::All && args.what != what {
            continue;
        }
        let mut text = String::new();
        for table in bench(&session, args.rounds)? {
            let markdown = table.markdown();
            println!("{markdown}");
            text.push_str(&markdown);
            text.push('\n');
        }
        if args.write {
            table::write(name, &format!("{machine}\n\n{}", text.trim_end()))?;
            chart::draw_all()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
