//! Steps of Slurm in containers, against the same steps without: what `srun` takes, and what MPI in a container does.

use std::time::Duration;

use cista_tests::environment::Session;
use cista_tests::error::HarnessError;
use cista_tests::image::{Mpi, Recipe};
use cista_tests::slurm::login::Login;

use super::measure::{Contestant, Times, take_turns};
use super::table::{Table, seconds};

const ROUNDS: usize = 50;

/// How many times a ping-pong is repeated, and how many messages it is.
const PINGPONGS: usize = 5;
const MESSAGES: &str = "1000";

/// How long a container may run that others join.
const LONG: Duration = Duration::from_secs(600);

pub(super) fn run(session: &Session, rounds: Option<usize>) -> Result<Vec<Table>, HarnessError> {
    let rounds = rounds.unwrap_or(ROUNDS);
    let environment = session.environment("bench-srun", false)?;
    let login = Login::alone(&environment)?;
    let image = session.imported(Recipe::Busybox)?;
    let image = format!("--container-image={}", image.display());
    // Within one allocation, so that no scheduling is measured.
    let allocation = login
        .command("salloc", ["-w", "n1", "-n8", "sh", "-c"])
        .arg("echo $SLURM_JOB_ID; read line")
        .stdin_pipe()
        .timeout(LONG)
        .spawn()?;
    let said = allocation.wait_for_stdout("\n", Duration::from_secs(60))?;
    let job = format!("--jobid={}", said.trim());
    let step = |options: &[&str]| login.srun([job.as_str(), "--overlap"]).args(options);
    let running = step(&["-n1", &image, "--container-name=running", "sh", "-c"])
        .arg("echo ready; read line")
        .stdin_pipe()
        .timeout(LONG)
        .spawn()?;
    running.wait_for_stdout("ready", Duration::from_secs(60))?;
    let times = take_turns(
        rounds,
        vec![
            Contestant::new("srun true", || step(&["-n1", "true"]).time()),
            Contestant::new("in an image", || step(&["-n1", &image, "true"]).time()),
            Contestant::new("joining a named container", || {
                step(&["-n1", "--container-name=running", "true"]).time()
            }),
        ],
    )?;
    let eight = take_turns(
        rounds,
        vec![
            Contestant::new("srun -n8 true", || step(&["-n8", "true"]).time()),
            Contestant::new("in an image", || step(&["-n8", &image, "true"]).time()),
        ],
    )?;
    drop((running, allocation));
    login.command("scancel", [said.trim()]).run().map(drop)?;
    Ok(vec![
        differences("Steps of one task, in an allocation", &times),
        differences("Steps of eight tasks on one node", &eight),
        pingpong(session, &login, &environment.path(""))?,
    ])
}

/// A table of times with what each takes more than the first.
fn differences(title: &str, times: &[Times]) -> Table {
    let mut table = Table::of_times(title, times, 0);
    let more: Vec<String> = times[1..]
        .iter()
        .map(|these| {
            let difference = these.median().saturating_sub(times[0].median());
            format!("{}: {} more", these.name, seconds(difference))
        })
        .collect();
    table.note(&format!(
        "{} rounds. {}.",
        times[0].rounds(),
        more.join(", ")
    ));
    table
}

/// Two ranks on one node send messages to and fro.
fn pingpong(
    session: &Session,
    login: &Login<'_>,
    directory: &std::path::Path,
) -> Result<Table, HarnessError> {
    let image = session.imported(Recipe::Mpi)?;
    let image = format!("--container-image={}", image.display());
    let bare = Mpi::OpenMpi.compile(directory)?.display().to_string();
    let mut times = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    for round in 0..=PINGPONGS {
        let inside = Mpi::OpenMpi.program();
        let contestants = [vec![bare.as_str()], vec![image.as_str(), inside.as_str()]];
        for (words, times) in contestants.iter().zip(&mut times) {
            let text = login
                .srun(["-w", "n1", "-n2", "--mpi=pmix"])
                .args(words)
                .args(["pingpong", MESSAGES])
                .env("OMPI_MCA_pml", "ob1")
                .env("OMPI_MCA_btl", "self,vader")
                .timeout(LONG)
                .text()?;
            let numbers: Vec<f64> = text
                .split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect();
            let [small, large] = numbers[..] else {
                return Err(HarnessError::Malformed {
                    what: "the answer of the ping-pong".into(),
                    why: text,
                });
            };
            if round > 0 {
                times[0].push(small);
                times[1].push(large);
            }
        }
    }
    let median = |values: &[f64]| {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let mut table = Table::new(
        "Messages between two ranks of Open MPI on a node, one way",
        &["", "bare", "in a container", "ratio"],
    );
    for (at, name) in ["8 bytes", "1 MiB"].into_iter().enumerate() {
        let (bare, inside) = (median(&times[0][at]), median(&times[1][at]));
        table.row(vec![
            name.into(),
            format!("{:.2} µs", bare / 1e3),
            format!("{:.2} µs", inside / 1e3),
            format!("{:.2}", inside / bare),
        ]);
    }
    table.note(&format!(
        "The median of {PINGPONGS} runs in turns, each of {MESSAGES} messages of a size."
    ));
    Ok(table)
}
