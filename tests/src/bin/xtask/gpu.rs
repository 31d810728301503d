//! `cargo xtask gpu`: proves the GPUs of this machine in containers, and keeps a report of it.

use std::process::ExitCode;

use cista_tests::artifacts::{Profile, workspace};
use cista_tests::driver;
use cista_tests::environment::Session;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::gpu::{Trial, WITHIN};
use cista_tests::packages::DEMO;

use crate::bench::table;
use crate::{Outcome, machine, say};

/// Where the report goes.
const REPORT: &str = "docs/gpu-report.md";

/// Run nvidia-smi and programs for GPUs in containers on a machine with an NVIDIA GPU
///
/// An image without any CUDA library runs nvidia-smi, a sum of vectors, and products of matrices, whose time is compared with that of the same program without a
/// container: 1 % more at most. Without a GPU it says so and does nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Keep the report in docs/gpu-report.md
    #[arg(long)]
    write: bool,
}

pub(crate) fn run(args: &Args) -> Outcome {
    if let Some(why) = driver::unmet() {
        println!("skipped: gpu: {why}");
        return Ok(ExitCode::SUCCESS);
    }
    machine::prepare(&[DEMO]);
    machine::build(Profile::Release)?;
    let session = Session::start(Profile::Release, say)?;
    let environment = session.environment("gpu", false)?;
    let trial = Trial::new(&environment)?;
    let (inside, bare) = (trial.smi_inside()?, trial.smi_bare()?);
    let overview = trial.smi_overview()?;
    let sums = [trial.add()?, trial.add_on("0")?];
    let (bare_time, inside_time) = trial.products()?;
    let ratio = inside_time.as_secs_f64() / bare_time.as_secs_f64();
    let is_good = inside == bare && ratio < WITHIN;
    let report = format!(
        "# A GPU in a container\n\nWritten by `cargo xtask gpu --write`. The image is Debian's, without any library of CUDA; the program is \
         `tests/guest/cuda.rs`, which knows the driver's `libcuda.so.1` alone.\n\n{}\n\n\
         | | |\n|---|---|\n| `nvidia-smi --list-gpus` | {} |\n| all GPUs granted | {} |\n| the first one granted | {} |\n\
         | products of matrices, bare | {:.2} ms |\n| the same in a container | {:.2} ms |\n| ratio | {ratio:.4} |\n\n```\n{overview}\n```\n",
        table::machine(),
        if inside == bare {
            "the same inside and outside"
        } else {
            "NOT the same inside and outside"
        },
        sums[0],
        sums[1],
        bare_time.as_secs_f64() * 1e3,
        inside_time.as_secs_f64() * 1e3,
    );
    println!("{report}");
    if args.write {
        let path = workspace().join(REPORT);
        std::fs::write(&path, &report).context("write", &path)?;
    }
    if is_good {
        Ok(ExitCode::SUCCESS)
    } else {
        Err(HarnessError::Malformed {
            what: "what a container has of the GPUs".into(),
            why: "see the report".into(),
        })
    }
}
