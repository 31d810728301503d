//! Named containers on nodes, and what is saved of them.

use std::time::Duration;

use cista_tests::case::{Case, TestResult, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::HarnessError;
use cista_tests::program::Outcome;
use cista_tests::slurm::login::Login;

use super::slurm::{busybox, contained};

const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a script on the node n1.
fn run(login: &Login<'_>, options: &[&str], script: &str) -> Result<Outcome, HarnessError> {
    login
        .srun(["-w", "n1"])
        .args(options)
        .args(["sh", "-c", script])
        .run()
}

fn text(login: &Login<'_>, options: &[&str], script: &str) -> Result<String, HarnessError> {
    let outcome = run(login, options, script)?;
    assert_eq!(outcome.code(), Some(0), "{}", outcome.error_text());
    Ok(outcome.text())
}

/// Made of the image at first, and found again by its name alone: what was written is there.
fn a_named_container_stays(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    let name = "--container-name=stays";
    let write = "echo kept >/word";
    text(&login, &[&image, name, "--container-writable"], write)?;
    assert_eq!(text(&login, &[name], "cat /word")?, "kept");
    assert_eq!(text(&login, &[&image, name], "cat /word")?, "kept");
    let create = run(&login, &[&image, "--container-name=stays:create"], "true")?;
    assert_eq!(create.code(), Some(1));
    assert!(
        create.error_text().contains("stays"),
        "{}",
        create.error_text()
    );
    let exec = run(&login, &["--container-name=stays:exec"], "true")?;
    assert_eq!(exec.code(), Some(1));
    assert!(
        exec.error_text().contains("not running"),
        "{}",
        exec.error_text()
    );
    let listed = environment.cista(["list"]).text()?;
    assert!(listed.lines().any(|line| line == "pyxis_stays"), "{listed}");
    environment
        .cista(["remove", "-f", "pyxis_stays"])
        .check()
        .map(drop)
}

/// A second step joins the first's container: its processes, mounts and memory.
fn a_running_container_is_joined(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    let first = login
        .srun(["-w", "n1", &image, "--container-name=joined", "sh", "-c"])
        .arg("echo inside >/tmp/word; readlink /proc/self/ns/mnt; until [ -e /tmp/stop ]; do sleep 0.05; done")
        .spawn()?;
    let said = first.wait_for_stdout("]\n", PATIENCE)?;
    let script = "cat /tmp/word; readlink /proc/self/ns/mnt";
    for mode in ["", ":auto", ":exec"] {
        let name = format!("--container-name=joined{mode}");
        let joined = text(&login, &[&name], script)?;
        assert_eq!(joined, format!("inside\n{}", said.trim()), "{mode}");
    }
    let apart = text(
        &login,
        &["--container-name=joined:no_exec"],
        "test -e /tmp/word || echo apart",
    )?;
    assert_eq!(apart, "apart");
    text(&login, &["--container-name=joined:exec"], "touch /tmp/stop")?;
    assert_eq!(first.wait()?.code(), Some(0));
    environment
        .cista(["remove", "-f", "pyxis_joined"])
        .check()
        .map(drop)
}

/// With `container_scope=job` a name belongs to a job, and other jobs have their own.
fn names_may_belong_to_a_job(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::with_plugin(environment, &["container_scope=job"])?;
    let script = format!(
        "srun {image} --container-name=own --container-writable sh -c 'echo $SLURM_JOB_ID >/word'; \
         srun --container-name=own cat /word; echo $SLURM_JOB_ID"
    );
    let outcome = login
        .command("salloc", ["--quiet", "-w", "n1", "sh", "-c", &script])
        .run()?;
    let said = outcome.error_text();
    let printed = outcome.text();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 2, "{printed} {said}");
    assert_eq!(lines[0], lines[1], "{said}");
    let other = run(&login, &["--container-name=own"], "cat /word")?;
    assert_eq!(other.code(), Some(1), "{}", other.text());
    let kept = format!("pyxis_{}_own", lines[0]);
    let listed = environment.cista(["list"]).text()?;
    assert!(listed.lines().any(|line| line == kept), "{listed}");
    // As an epilog of the site does.
    environment
        .cista(["slurm", "epilog", lines[0]])
        .env("SLURM_JOB_ID", lines[0])
        .env("SLURM_JOB_UID", environment.user().uid.to_string())
        .check()?;
    assert_eq!(environment.cista(["list"]).text()?, "");
    Ok(())
}

/// Saved when the last task has ended, and started again from the file.
fn a_container_is_saved(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    text(
        &login,
        &[
            &image,
            "--container-writable",
            "--container-save=saved.sqsh",
            "-n2",
        ],
        "echo $SLURM_PROCID >/of-task-$SLURM_PROCID",
    )?;
    assert!(environment.path("saved.sqsh").is_file());
    let again = text(
        &login,
        &["--container-image=./saved.sqsh"],
        "cat /of-task-0 /of-task-1 /etc/issue",
    )?;
    assert_eq!(again, "0\n1\na test image of cista");
    let nowhere = run(
        &login,
        &[&image, "--container-save=/no/such/directory/x.sqsh"],
        "true",
    )?;
    let said = nowhere.error_text();
    assert!(said.contains("/no/such/directory"), "{said}");
    // That is said before the tasks begin.
    let directory = format!("--container-save={}", environment.path("").display());
    let directory = directory.trim_end_matches('/');
    for option in [directory, "--container-save=/no/such/x"] {
        let outcome = run(&login, &[&image, option], "echo ran")?;
        let said = outcome.error_text();
        assert_eq!(outcome.code(), Some(1), "{option}: {said}");
        assert_eq!(outcome.text(), "", "{option}: {said}");
        assert!(said.contains("cannot save the container"), "{said}");
    }
    Ok(())
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    contained(
        "slurm_containers::a_named_container_stays",
        Who::Both,
        a_named_container_stays,
    ),
    contained(
        "slurm_containers::a_running_container_is_joined",
        Who::Both,
        a_running_container_is_joined,
    ),
    contained(
        "slurm_containers::names_may_belong_to_a_job",
        Who::User,
        names_may_belong_to_a_job,
    ),
    contained(
        "slurm_containers::a_container_is_saved",
        Who::Both,
        a_container_is_saved,
    ),
];
