//! `cargo xtask package`: the packages of Debian and Red Hat, from one description of what goes where.
//!
//! dpkg-deb and rpmbuild are the systems' own tools: present where packages are made, and nothing has to be compiled to use them.
//! The programs are built by `portable`, so that one build serves every distribution from glibc 2.28 on.

mod contents;
mod deb;
mod portable;
mod rpm;
mod trial;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use cista_tests::artifacts::target;
use cista_tests::error::IoContext as _;
use cista_tests::packages::PACKAGING;

use crate::{Outcome, machine};

/// Build .deb and .rpm packages that run with glibc 2.28 and later
///
/// They are written to `target/package`, and the program alone to `target/package/cista`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also install the packages in clean Debian roots, do the main job there, and run steps of Slurm with them (as root)
    #[arg(long)]
    test: bool,
    /// Directory to write the packages to
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Outcome {
    machine::prepare(&[PACKAGING]);
    let output = args
        .output
        .clone()
        .unwrap_or_else(|| target().join("package"));
    std::fs::create_dir_all(&output).context("create", &output)?;
    let begin = Instant::now();
    let built = portable::build(&output.join("tools"))?;
    println!(
        "built for glibc {} in {:.0} s; the newest symbol is of {}",
        portable::GLIBC,
        begin.elapsed().as_secs_f64(),
        built.newest
    );
    let alone = output.join("cista");
    std::fs::copy(&built.program, &alone).context("copy", &built.program)?;
    let work = output.join("work");
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work).context("create", &work)?;
    contents::generate(&work.join("made"))?;
    let mut debs = Vec::new();
    for package in contents::packages(&built, &work.join("made"), contents::Family::Debian)? {
        debs.push(deb::build(&package, &work, &output)?);
    }
    let mut rpms = Vec::new();
    for package in contents::packages(&built, &work.join("made"), contents::Family::RedHat)? {
        rpms.push(rpm::build(&package, &work, &output)?);
    }
    std::fs::remove_dir_all(&work).context("remove", &work)?;
    for file in debs.iter().chain(&rpms) {
        let size = file.metadata().context("look at", file)?.len();
        println!("{:>6.1} MB  {}", size as f64 / 1e6, file.display());
    }
    if args.test {
        trial::run(&debs, &rpms)?;
    }
    Ok(ExitCode::SUCCESS)
}
