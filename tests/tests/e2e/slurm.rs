//! The cluster of the tests itself, without a container: what the tests of containers are held against.

use std::time::Duration;

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::HarnessError;
use cista_tests::image::Recipe;
use cista_tests::slurm::GPUS;
use cista_tests::slurm::login::Login;
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(30);

fn tasks_run_on_nodes_of_their_own(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let script = "echo $SLURM_PROCID $(hostname) $(id -un) $(pwd)";
    let text = login
        .srun(["-N4", "-n4", "--label", "sh", "-c", script])
        .text()?;
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    let user = &environment.user().name;
    let directory = environment.path("");
    let directory = directory.display().to_string();
    let directory = directory.trim_end_matches('/');
    let expected: Vec<String> = (0..4)
        .map(|task| format!("{task}: {task} n{} {user} {directory}", task + 1))
        .collect();
    assert_eq!(lines, expected);
    Ok(())
}

fn exit_codes_and_signals_arrive(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    assert_eq!(login.srun(["sh", "-c", "exit 7"]).run()?.code(), Some(7));
    let killed = login.srun(["sh", "-c", "kill -TERM $$"]).run()?;
    assert_eq!(killed.code(), Some(128 + Signal::TERM.as_raw()));
    Ok(())
}

fn batch_jobs_and_allocations_run(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let batch = login.sbatch(
        ["-N2"],
        "#!/bin/sh\nhostname\nsrun -n2 hostname | sort\nexit 3\n",
    )?;
    assert_eq!(batch.status, Some(3), "{}", batch.said);
    assert_eq!(batch.printed.lines().count(), 3, "{}", batch.printed);
    let script = "for step in 1 2 3; do srun sh -c 'echo $SLURM_STEP_ID'; done";
    let text = login
        .command("salloc", ["--quiet", "-N1", "sh", "-c", script])
        .text()?;
    assert_eq!(text.lines().collect::<Vec<_>>(), ["0", "1", "2"]);
    Ok(())
}

fn a_cancelled_job_ends(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let step = login
        .srun(["sh", "-c", "echo job $SLURM_JOB_ID; exec sleep 100"])
        .spawn()?;
    let said = step.wait_for_stdout("\n", PATIENCE)?;
    let job = said.trim().trim_start_matches("job ").to_owned();
    assert!(login.processes().len() > 1, "srun and the task");
    login.command("scancel", [job]).check()?;
    let outcome = step.wait()?;
    assert_ne!(outcome.code(), Some(0));
    assert!(
        outcome.error_text().contains("CANCELLED"),
        "{}",
        outcome.error_text()
    );
    Ok(())
}

/// Slurm's process management interfaces hand ranks and sizes to tasks on two nodes.
fn pmi2_and_pmix_serve_tasks(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    for (name, rank) in [("pmi2", "PMI_RANK"), ("pmix", "PMIX_RANK")] {
        let mpi = format!("--mpi={name}");
        let script = format!("echo ${rank}");
        let text = login
            .srun(["-N2", "-n4", &mpi, "sh", "-c", &script])
            .text()?;
        let mut ranks: Vec<&str> = text.lines().collect();
        ranks.sort_unstable();
        assert_eq!(ranks, ["0", "1", "2", "3"], "{name}");
    }
    Ok(())
}

/// The cgroup lets a job open the GPUs that it was granted. There is no driver behind the device node: ENXIO, not EPERM.
fn devices_are_kept_from_other_jobs(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let script = format!(
        "for n in $(seq 0 {}); do head -c1 /dev/nvidia$n 2>&1; done; echo $CUDA_VISIBLE_DEVICES",
        GPUS - 1
    );
    let text = login
        .srun(["--gres=gpu:1", "--exclusive", "sh", "-c", &script])
        .text()?;
    let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
    assert_eq!(count("No such device"), 1, "{text}");
    assert_eq!(count("Operation not permitted"), GPUS - 1, "{text}");
    assert!(text.ends_with('0'), "{text}");
    Ok(())
}

fn the_user_has_the_groups_of_the_cluster(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let text = login.srun(["id", "-Gn"]).text()?;
    let groups: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(groups, ["cista-test", "cista-lab", "cista-grid"]);
    Ok(())
}

fn one_node_has_no_user_namespaces(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let outcome = login
        .srun(["--partition=lacking", "unshare", "--user", "true"])
        .run()?;
    assert_eq!(outcome.code(), Some(1));
    assert!(
        outcome.error_text().contains("Operation not permitted"),
        "{}",
        outcome.error_text()
    );
    Ok(())
}

/// The tasks of a step outlive the daemon of their node, and it finds them again.
fn slurmd_can_be_restarted(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::alone(environment)?;
    let node = login.cluster().node("n2")?;
    let mut step = login
        .srun(["-w", "n2", "sh", "-c", "echo ready; read line; echo $line"])
        .stdin_pipe()
        .spawn()?;
    step.wait_for_stdout("ready", PATIENCE)?;
    for signal in [Signal::KILL, Signal::TERM] {
        node.stop_slurmd(signal)?;
        node.start_slurmd()?;
    }
    step.write(b"still here\n")?;
    assert_eq!(step.wait()?.text(), "ready\nstill here");
    login.cluster().wait_until_idle(PATIENCE)?;
    assert_eq!(node.leftovers(PATIENCE), Vec::<String>::new());
    Ok(())
}

/// What tests without a container need.
const CLUSTER: &[Need] = &[Need::Slurm];

/// What tests of containers need.
pub(crate) const CONTAINER: &[Need] = &[
    Need::Slurm,
    Need::Image(Recipe::Busybox),
    Need::UserNamespaces,
    Need::Fuse,
];

/// The option for the busybox image.
pub(crate) fn busybox(environment: &TestEnvironment<'_>) -> Result<String, HarnessError> {
    let image = environment.session().imported(Recipe::Busybox)?;
    Ok(format!("--container-image={}", image.display()))
}

/// A test of a container.
pub(crate) const fn contained(
    name: &'static str,
    who: Who,
    run: fn(&TestEnvironment<'_>) -> TestResult,
) -> Case {
    Case {
        name,
        tier: Tier::Slurm,
        who,
        needs: CONTAINER,
        run,
    }
}

const fn case(name: &'static str, who: Who, run: fn(&TestEnvironment<'_>) -> TestResult) -> Case {
    Case {
        name,
        tier: Tier::Slurm,
        who,
        needs: CLUSTER,
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "slurm::tasks_run_on_nodes_of_their_own",
        Who::Both,
        tasks_run_on_nodes_of_their_own,
    ),
    case(
        "slurm::exit_codes_and_signals_arrive",
        Who::Both,
        exit_codes_and_signals_arrive,
    ),
    case(
        "slurm::batch_jobs_and_allocations_run",
        Who::Both,
        batch_jobs_and_allocations_run,
    ),
    case(
        "slurm::a_cancelled_job_ends",
        Who::User,
        a_cancelled_job_ends,
    ),
    case(
        "slurm::pmi2_and_pmix_serve_tasks",
        Who::User,
        pmi2_and_pmix_serve_tasks,
    ),
    case(
        "slurm::devices_are_kept_from_other_jobs",
        Who::User,
        devices_are_kept_from_other_jobs,
    ),
    case(
        "slurm::the_user_has_the_groups_of_the_cluster",
        Who::User,
        the_user_has_the_groups_of_the_cluster,
    ),
    case(
        "slurm::one_node_has_no_user_namespaces",
        Who::User,
        one_node_has_no_user_namespaces,
    ),
    case(
        "slurm::slurmd_can_be_restarted",
        Who::User,
        slurmd_can_be_restarted,
    ),
];
