//! `cargo xtask test`: run the tests, tier by tier, and say what passed, failed and was skipped.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use cista_tests::artifacts::{Profile, target};
use cista_tests::case::{Record, Tier, Verdict};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::packages::{DEMO, SLURM, TESTS};

use crate::{Outcome, machine};

/// Install what the tests need, build, and run every tier
///
/// Tiers: unit (cargo's own tests), cli (the program and files), registry (a real registry and images made of Debian
/// packages), userns (containers), slurm (jobs on a cluster). What this machine cannot run is reported as skipped, by name; with
/// `CISTA_TEST_REQUIRE=1` it fails.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only the end-to-end tests whose name contains this, and no unit tests
    filter: Option<String>,
    /// Also write the line with the sums to this file
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
}

/// Counts of one tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// What became of all tests.
#[derive(Debug, Default)]
struct Tally {
    tiers: BTreeMap<Tier, Counts>,
    /// Names in libtest's list of failures, while it lasts.
    listed: Option<Vec<String>>,
    /// Unit tests that said that they skipped, since libtest's last result.
    unit_skips: usize,
    /// `NAME: why`, of tests that were skipped.
    skips: Vec<String>,
    /// Names of tests that failed.
    failures: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Outcome {
    machine::prepare(&[DEMO, TESTS, SLURM]);
    machine::build(Profile::Debug)?;
    let mut tally = Tally::default();
    if args.filter.is_none() {
        run_unit_tests(&mut tally)?;
    }
    run_end_to_end_tests(args.filter.as_deref(), &mut tally)?;
    let sum = tally.show();
    if let Some(path) = &args.summary {
        std::fs::write(
            path,
            format!("{} {} {}\n", sum.passed, sum.failed, sum.skipped),
        )
        .context("write", path)?;
    }
    Ok(if sum.failed == 0 && sum.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs what libtest runs. Such tests say `skipped: NAME: why` where they lack something, and libtest counts them as passed.
fn run_unit_tests(tally: &mut Tally) -> Result<(), HarnessError> {
    println!("unit tests");
    let everything_else = ["--exclude", "cista-tests"];
    let ours = ["--lib", "--bins"];
    for arguments in [
        ["test", "--quiet", "--no-fail-fast", "--workspace"]
            .iter()
            .chain(&everything_else)
            .collect::<Vec<_>>(),
        [
            "test",
            "--quiet",
            "--no-fail-fast",
            "--package",
            "cista-tests",
        ]
        .iter()
        .chain(&ours)
        .collect(),
    ] {
        let spawn_error = |source| HarnessError::Spawn {
            program: "cargo test".into(),
            source,
        };
        let mut child = machine::cargo()
            .args(arguments)
            .args(["--", "--show-output"])
            // A failed assertion says where it is; the rest of the stack is the harness.
            .env("RUST_BACKTRACE", "0")
            .stdout(Stdio::piped())
            .spawn()
            .map_err(spawn_error)?;
        let mut output = String::new();
        for line in BufReader::new(
            child
                .stdout
                .take()
                .ok_or_else(|| spawn_error(std::io::Error::other("its stdout is not there")))?,
        )
        .lines()
        {
            let line = line.map_err(spawn_error)?;
            tally.unit_line(&line);
            output.push_str(&line);
            output.push('\n');
        }
        let status = child.wait().map_err(spawn_error)?;
        if !status.success() {
            print!("{output}");
            let counts = tally.tiers.entry(Tier::Unit).or_default();
            if counts.failed == 0 {
                // It did not even compile, or a test ended the whole process.
                counts.failed = 1;
                tally
                    .failures
                    .push(format!("cargo test ended with {status}"));
            }
        }
    }
    Ok(())
}

fn run_end_to_end_tests(filter: Option<&str>, tally: &mut Tally) -> Result<(), HarnessError> {
    println!("end-to-end tests");
    let report = target().join("test-report.jsonl");
    let _ = std::fs::remove_file(&report);
    let status = machine::cargo()
        .args([
            "test",
            "--quiet",
            "--package",
            "cista-tests",
            "--test",
            "e2e",
            "--",
        ])
        .args(filter)
        .env("CISTA_TEST_REPORT", &report)
        .env("RUST_BACKTRACE", "0")
        .status()
        .map_err(|source| HarnessError::Spawn {
            program: "cargo test --test e2e".into(),
            source,
        })?;
    let records = read_report(&report).unwrap_or_default();
    if records.is_empty() && !status.success() {
        tally.tiers.entry(Tier::Cli).or_default().failed += 1;
        tally.failures.push(format!(
            "the end-to-end tests ended with {status}, without a report"
        ));
    }
    for record in records {
        tally.record(record);
    }
    Ok(())
}

fn read_report(path: &Path) -> Result<Vec<Record>, HarnessError> {
    let text = std::fs::read_to_string(path).context("read", path)?;
    text.lines()
        .map(|line| {
            serde_json::from_str(line).map_err(|source| HarnessError::Json {
                what: path.display().to_string(),
                source,
            })
        })
        .collect()
}

impl Tally {
    /// Takes a line that libtest or one of its tests printed.
    fn unit_line(&mut self, line: &str) {
        let counts = self.tiers.entry(Tier::Unit).or_default();
        if let Some(skip) = line.strip_prefix("skipped: ") {
            self.unit_skips += 1;
            self.skips.push(skip.to_owned());
        } else if let Some(result) = line.strip_prefix("test result: ") {
            let count = |word: &str| -> usize {
                let mut words = result
                    .split([' ', ';', '.'])
                    .filter(|word| !word.is_empty());
                let mut before = "";
                words
                    .find_map(|current| {
                        let found = (current == word).then(|| before.parse().ok()).flatten();
                        before = current;
                        found
                    })
                    .unwrap_or(0)
            };
            // What the tests print comes before the result that counts those which skipped as passed.
            let skipped = std::mem::take(&mut self.unit_skips);
            counts.passed += count("passed").saturating_sub(skipped);
            counts.failed += count("failed");
            counts.skipped += count("ignored") + skipped;
            self.failures.extend(self.listed.take().unwrap_or_default());
        } else if line == "failures:" {
            // It stands above what the failed tests printed, and again above the list of their names.
            self.listed = Some(Vec::new());
        } else if let (Some(listed), Some(name)) = (&mut self.listed, line.strip_prefix("    ")) {
            listed.push(name.to_owned());
        }
    }

    fn record(&mut self, record: Record) {
        let counts = self.tiers.entry(record.tier).or_default();
        match record.verdict {
            Verdict::Passed => counts.passed += 1,
            Verdict::Failed => {
                counts.failed += 1;
                self.failures.push(record.name);
            }
            Verdict::Skipped => {
                counts.skipped += 1;
                self.skips.push(format!("{}: {}", record.name, record.why));
            }
        }
    }

    fn show(&self) -> Counts {
        for skip in &self.skips {
            println!("skipped: {skip}");
        }
        for failure in &self.failures {
            println!("failed: {failure}");
        }
        println!();
        println!(
            "{:<10} {:>7} {:>7} {:>8}",
            "tier", "passed", "failed", "skipped"
        );
        let mut sum = Counts::default();
        for (tier, counts) in &self.tiers {
            let Counts {
                passed,
                failed,
                skipped,
            } = *counts;
            println!("{:<10} {passed:>7} {failed:>7} {skipped:>8}", tier.name());
            sum.passed += passed;
            sum.failed += failed;
            sum.skipped += skipped;
        }
        println!();
        let skipped = match sum.skipped {
            0 => String::new(),
            count => format!(", {count} skipped"),
        };
        println!("{} passed, {} failed{skipped}", sum.passed, sum.failed);
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libtest_prints_is_counted() {
        let mut tally = Tally::default();
        for line in [
            "skipped: kernel_mount: not root",
            "failures:",
            "    some text that a failed test printed",
            "failures:",
            "    a::b",
            "",
            "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.01s",
        ] {
            tally.unit_line(line);
        }
        let counts = tally.tiers[&Tier::Unit];
        assert_eq!((counts.passed, counts.failed, counts.skipped), (11, 2, 2));
        assert_eq!(tally.failures, ["a::b"]);
    }
}
