//! What steps leave behind on a node: nothing, however many there were, and however they ended.

use std::time::Duration;

use cista_tests::case::{Case, TestResult, Who};
use cista_tests::environment::{TestEnvironment, names_in};
use cista_tests::error::HarnessError;
use cista_tests::listing::files_below;
use cista_tests::process;
use cista_tests::slurm::login::Login;
use rustix::process::Signal;

use super::slurm::{busybox, contained};

const PATIENCE: Duration = Duration::from_secs(40);

/// What a node has: mounts, files in `/run` and `/dev/shm`, loop devices.
fn state(
    login: &Login<'_>,
    environment: &TestEnvironment<'_>,
) -> Result<Vec<String>, HarnessError> {
    let mut found = Vec::new();
    for node in login.cluster().nodes() {
        let name = node.name();
        found.extend(
            node.mounts()?
                .into_iter()
                .map(|mount| format!("{name} mount {mount}")),
        );
        for directory in ["/run", "/dev/shm"] {
            for file in files_below(&node.path(directory))? {
                let text = file.display().to_string();
                // Slurm's own: credentials of past jobs, and what a slurmstepd that was killed could not remove.
                if !text.contains("/run/slurm/spool/") {
                    found.push(format!("{name} file {text}"));
                }
            }
        }
    }
    let loops = names_in("/sys/block".as_ref())?;
    let used = |name: &String| std::path::Path::new(&format!("/sys/block/{name}/loop")).exists();
    found.extend(
        loops
            .into_iter()
            .filter(used)
            .map(|name| format!("loop {name}")),
    );
    for directory in ["runtime", "data"] {
        let path = environment.home().with_file_name(directory);
        for file in files_below(&path)? {
            found.push(format!("file {}", file.display()));
        }
    }
    Ok(found)
}

/// Nothing more than before, on no node.
fn assert_nothing_new(
    login: &Login<'_>,
    environment: &TestEnvironment<'_>,
    before: &[String],
) -> TestResult {
    login.cluster().wait_until_idle(PATIENCE)?;
    for node in login.cluster().nodes() {
        assert_eq!(node.leftovers(PATIENCE), Vec::<String>::new());
    }
    let after = state(login, environment)?;
    let new: Vec<&String> = after.iter().filter(|item| !before.contains(item)).collect();
    assert_eq!(new, Vec::<&String>::new());
    Ok(())
}

fn many_steps_leave_nothing(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::alone(environment)?;
    // What the first step makes for all that follow stays.
    login.srun(["-w", "n1", &image, "true"]).check()?;
    let before = state(&login, environment)?;
    let script = format!(
        "set -e
        for step in $(seq 200); do srun --quiet {image} true; done
        pids=
        for step in $(seq 50); do srun --quiet --overlap -n1 {image} sh -c 'exit 0' & pids=\"$pids $!\"; done
        for pid in $pids; do wait $pid; done
        echo all ended well"
    );
    let outcome = login
        .command(
            "salloc",
            ["--quiet", "-w", "n1", "-n1", "sh", "-c", &script],
        )
        .timeout(Duration::from_secs(240))
        .run()?;
    assert_eq!(outcome.text(), "all ended well", "{}", outcome.error_text());
    assert_nothing_new(&login, environment, &before)
}

/// Slurm removes a step's control groups once, when the last task has ended: nothing of the container may be in them any more.
fn jobs_leave_no_control_groups(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::alone(environment)?;
    let node = login.cluster().node("n4")?;
    let before = node.job_cgroups()?;
    for _ in 0..20 {
        login.srun(["-w", "n4", "-n2", &image, "true"]).check()?;
    }
    login.cluster().wait_until_idle(PATIENCE)?;
    assert_eq!(node.leftovers(PATIENCE), Vec::<String>::new());
    let after = node.job_cgroups()?;
    let new: Vec<&String> = after.iter().filter(|path| !before.contains(path)).collect();
    assert_eq!(new, Vec::<&String>::new());
    Ok(())
}

/// Which process is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Srun,
    Task,
    /// Any process of `cista`: the holder of the container, what makes it, the file server.
    Holder,
    Slurmstepd,
}

/// Thirty times a process is killed at another moment, from before the container is made until it runs.
fn a_killed_step_leaves_nothing(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::alone(environment)?;
    login.srun(["-w", "n1", &image, "true"]).check()?;
    let before = state(&login, environment)?;
    let node = login.cluster().node("n1")?;
    let program = login.cluster().program_path();
    let victims = [
        Victim::Srun,
        Victim::Task,
        Victim::Holder,
        Victim::Slurmstepd,
    ];
    for round in 0..30_u64 {
        let victim = victims[round as usize % victims.len()];
        let mut step = login
            .srun(["-w", "n1", &image, "sh", "-c", "sleep 0.4; sleep 0.4"])
            .spawn()?;
        // Spread over the first fifth of a second, in no order.
        std::thread::sleep(Duration::from_millis(round * 7919 % 200));
        let named = |text: &str| {
            node.processes()
                .into_iter()
                .filter(|(_, line)| line.starts_with(text))
                .map(|(pid, _)| pid)
                .collect::<Vec<u32>>()
        };
        let pids = match victim {
            Victim::Srun => vec![step.pid()],
            Victim::Task => named("sh -c sleep"),
            Victim::Holder => process::executing(&program),
            Victim::Slurmstepd => named("slurmstepd"),
        };
        for pid in &pids {
            process::send(*pid, Signal::KILL)?;
        }
        if matches!(victim, Victim::Slurmstepd) {
            // Slurm itself notices late that nobody is there; its user need not wait.
            login
                .command("scancel", ["--user", environment.user().name.as_str()])
                .run()?;
            std::thread::sleep(Duration::from_millis(100));
            if step.is_running() {
                step.signal(Signal::KILL)?;
            }
        }
        drop(step.wait()?);
    }
    login
        .command("scancel", ["--user", environment.user().name.as_str()])
        .run()?;
    assert_nothing_new(&login, environment, &before)
}

/// A container that is to be saved is on disk while the step runs. It is removed whoever is killed, and by the site's epilog where nobody is left to do it.
fn a_killed_step_leaves_no_container_that_was_to_be_saved(
    environment: &TestEnvironment<'_>,
) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::alone(environment)?;
    login.srun(["-w", "n1", &image, "true"]).check()?;
    let before = state(&login, environment)?;
    let node = login.cluster().node("n1")?;
    let program = login.cluster().program_path();
    let data = environment.home().with_file_name("data");
    let on_disk = || -> Result<usize, HarnessError> {
        let files = files_below(&data)?;
        let of_step = |path: &std::path::PathBuf| path.display().to_string().contains("/.tmp-");
        Ok(files.into_iter().filter(of_step).count())
    };
    let named = |text: &str| {
        let all = node.processes().into_iter();
        let wanted = all.filter(|(_, line)| line.starts_with(text));
        wanted.map(|(pid, _)| pid).collect::<Vec<u32>>()
    };
    let mut was_on_disk = 0;
    for round in 0..6 {
        let mut step = login
            .srun([
                "-w",
                "n1",
                &image,
                "--container-save=saved.sqsh",
                "--container-writable",
            ])
            .args([
                "sh",
                "-c",
                "trap '' TERM; echo x >/new; echo job $SLURM_JOB_ID; exec sleep 30",
            ])
            .spawn()?;
        let said = step.wait_for_stdout("\n", PATIENCE)?;
        let job = said.trim().trim_start_matches("job ").to_owned();
        was_on_disk += usize::from(on_disk()? > 0);
        let pids = match round {
            0 | 1 => process::executing(&program),
            2 => named("slurmstepd"),
            3 => [process::executing(&program), named("slurmstepd")].concat(),
            4 => named("sleep 30"),
            _ => Vec::new(),
        };
        for pid in &pids {
            process::send(*pid, Signal::KILL)?;
        }
        // The others end what is left of their steps.
        if round != 4 {
            let how = ["--signal=KILL", job.as_str()];
            login.command("scancel", how).run()?;
            std::thread::sleep(Duration::from_millis(300));
            if step.is_running() {
                login.command("scancel", [job.as_str()]).run()?;
                step.signal(Signal::KILL)?;
            }
        }
        let said = step.wait()?.error_text();
        assert_eq!(node.leftovers(PATIENCE), Vec::<String>::new());
        if round == 3 {
            // Nobody of the step was left; other jobs' containers are none of an epilog's business.
            environment.cista(["slurm", "epilog", "99999"]).check()?;
            assert!(on_disk()? > 0);
            environment.cista(["slurm", "epilog", &job]).check()?;
        }
        assert_eq!(on_disk()?, 0, "round {round}");
        let is_saved = environment.path("saved.sqsh").exists();
        assert!(!is_saved, "round {round}: {said}");
    }
    assert_eq!(was_on_disk, 6);
    assert_nothing_new(&login, environment, &before)
}

/// The container of a step outlives the daemon of its node, and is gone with the step.
fn a_restarted_slurmd_leaves_nothing(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::alone(environment)?;
    login.srun(["-w", "n2", &image, "true"]).check()?;
    let before = state(&login, environment)?;
    let node = login.cluster().node("n2")?;
    let mut step = login
        .srun([
            "-w",
            "n2",
            &image,
            "sh",
            "-c",
            "echo ready; read line; cat /etc/issue",
        ])
        .stdin_pipe()
        .spawn()?;
    step.wait_for_stdout("ready", PATIENCE)?;
    node.stop_slurmd(Signal::KILL)?;
    node.start_slurmd()?;
    step.write(b"go on\n")?;
    assert_eq!(step.wait()?.text(), "ready\na test image of cista");
    assert_nothing_new(&login, environment, &before)
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    contained(
        "slurm_leftovers::many_steps_leave_nothing",
        Who::User,
        many_steps_leave_nothing,
    ),
    contained(
        "slurm_leftovers::jobs_leave_no_control_groups",
        Who::User,
        jobs_leave_no_control_groups,
    ),
    contained(
        "slurm_leftovers::a_killed_step_leaves_nothing",
        Who::User,
        a_killed_step_leaves_nothing,
    ),
    contained(
        "slurm_leftovers::a_killed_step_leaves_no_container_that_was_to_be_saved",
        Who::User,
        a_killed_step_leaves_no_container_that_was_to_be_saved,
    ),
    contained(
        "slurm_leftovers::a_restarted_slurmd_leaves_nothing",
        Who::User,
        a_restarted_slurmd_leaves_nothing,
    ),
];
