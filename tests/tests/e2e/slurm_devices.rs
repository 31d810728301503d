//! The GPUs of jobs: a container has those of its step, and no others. The cluster's GPUs are nodes without a driver; a tree
//! (`CISTA_HOST_ROOT`) shows them as GPUs of AMD, with the same numbers, so that the control groups of the jobs say which may be opened.

use std::time::Duration;

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::HarnessError;
use cista_tests::image::Recipe;
use cista_tests::program::Program;
use cista_tests::slurm::GPUS;
use cista_tests::slurm::login::Login;

use super::config::put;

const PATIENCE: Duration = Duration::from_secs(40);

/// Lists the GPUs of a container, and tells what opening each does.
const LOOK: &str =
    "for node in /dev/dri/renderD*; do echo $node $(head -c1 $node 2>&1 | sed 's/.*: //'); done";

/// The major number of the cluster's GPUs.
const MAJOR: &str = "195";

/// Shows the cluster's GPUs as GPUs of AMD.
fn tree(environment: &TestEnvironment<'_>) -> Result<(), HarnessError> {
    let node = |path: &str, major: &str, minor: usize| {
        let place = put(environment, &format!("host{path}"), "")?;
        Program::new("rm").arg(&place).check()?;
        Program::new("mknod")
            .args(["-m", "0666"])
            .arg(&place)
            .args(["c", major, &minor.to_string()])
            .check()
    };
    node("/dev/kfd", "1", 5)?;
    for number in 0..GPUS {
        let render = 128 + number;
        node(&format!("/dev/dri/renderD{render}"), MAJOR, number)?;
        put(
            environment,
            &format!("host/sys/class/kfd/kfd/topology/nodes/{number}/properties"),
            &format!("simd_count 304\ngfx_target_version 90402\ndrm_render_minor {render}\n"),
        )?;
    }
    Ok(())
}

/// Two jobs of one GPU each, at the same time on one node: each has its own, also where it asks for all.
fn jobs_have_their_own_gpus(environment: &TestEnvironment<'_>) -> TestResult {
    tree(environment)?;
    let image = environment.session().imported(Recipe::Busybox)?;
    let image = format!("--container-image={}", image.display());
    let login = Login::new(environment)?;
    let job = |script: &str| {
        login
            .srun([
                "-w",
                "n3",
                "--gres=gpu:1",
                "-n1",
                &image,
                "sh",
                "-c",
                script,
            ])
            .env("CISTA_HOST_ROOT", environment.path("host"))
    };
    let mut first = job(&format!("{LOOK}; echo up; read line"))
        .stdin_pipe()
        .spawn()?;
    let seen = first.wait_for_stdout("up", PATIENCE)?;
    let second = job(LOOK).text()?;
    first.write(b"\n")?;
    first.wait()?;
    let mut nodes: Vec<&str> = Vec::new();
    for text in [&seen, &second] {
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("/dev"))
            .collect();
        assert_eq!(lines.len(), 1, "one GPU each: {text}");
        // The node is there and may be opened; behind it is no driver.
        let (node, answer) = lines[0].split_once(' ').unwrap_or_default();
        assert_eq!(answer, "No such device or address", "{text}");
        nodes.push(node);
    }
    assert_ne!(nodes[0], nodes[1]);
    // A job without GPUs has none.
    let none = login
        .srun([
            "-n1",
            &image,
            "sh",
            "-c",
            "ls /dev/dri 2>&1 | grep -c renderD",
        ])
        .env("CISTA_HOST_ROOT", environment.path("host"))
        .run()?;
    assert_eq!(none.text(), "0", "{}", none.error_text());
    Ok(())
}

/// The tasks of a step share one container, which has the GPUs of all of them. Slurm says which of them is a task's own, as it does without a
/// container: by the control group of the task, and by variables that count what that allows.
fn tasks_open_their_own_gpus(environment: &TestEnvironment<'_>) -> TestResult {
    tree(environment)?;
    let image = environment.session().imported(Recipe::Busybox)?;
    let image = format!("--container-image={}", image.display());
    let login = Login::new(environment)?;
    let step = |container: &[&str], look: &str| {
        login
            .srun([&format!("-n{GPUS}"), "--gpus-per-task=1", "-N1"])
            .args(container)
            .args(["sh", "-c", look])
            .env("CISTA_HOST_ROOT", environment.path("host"))
            .text()
    };
    let mine = |directory: &str| {
        format!(
            "echo $CUDA_VISIBLE_DEVICES $(ls {directory} | wc -l) $(for node in {directory}; do \
             head -c1 $node 2>&1 | grep -q 'No such device' && echo ${{node##*[a-zA-Z]}}; done)"
        )
    };
    let lines = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let bare = lines(&step(&[], &mine("/dev/nvidia[0-9]"))?);
    let expected: Vec<String> = (0..GPUS).map(|gpu| format!("0 {GPUS} {gpu}")).collect();
    assert_eq!(bare, expected, "what Slurm does without a container");
    let contained = lines(&step(&[&image], &mine("/dev/dri/renderD*"))?);
    let expected: Vec<String> = (0..GPUS)
        .map(|gpu| format!("0 {GPUS} {}", 128 + gpu))
        .collect();
    assert_eq!(contained, expected);
    Ok(())
}

/// `--container-gpus` takes from the GPUs of the step, `--container-device` adds what CDI describes, and variables stand for both.
fn devices_are_chosen_by_options(environment: &TestEnvironment<'_>) -> TestResult {
    tree(environment)?;
    put(
        environment,
        "host/etc/cdi/vendor.json",
        r#"{"cdiVersion":"0.6.0","kind":"vendor.com/board","devices":[
            {"name":"one","containerEdits":{"env":["BOARD=one"]}},
            {"name":"two","containerEdits":{"env":["SECOND_BOARD=two"]}}]}"#,
    )?;
    let image = environment.session().imported(Recipe::Busybox)?;
    let image = format!("--container-image={}", image.display());
    let login = Login::new(environment)?;
    let step = |options: &[&str], variables: &[(&str, &str)]| {
        let look = "echo $(ls /dev/dri 2>/dev/null | grep -c renderD) $BOARD $SECOND_BOARD";
        let step = login
            .srun(["--gres=gpu:2", "-n1", &image])
            .args(options)
            .args(["sh", "-c", look])
            .env("CISTA_HOST_ROOT", environment.path("host"));
        let all = variables.iter();
        all.fold(step, |step, (name, value)| step.env(name, value))
    };
    for (options, expected) in [
        (&[][..], "2"),
        (&["--container-gpus=all"], "2"),
        (&["--container-gpus=none"], "0"),
        (&["--container-device=vendor.com/board=one"], "2 one"),
        (
            &[
                "--container-gpus=none",
                "--container-device=vendor.com/board=one,vendor.com/board=two",
            ],
            "0 one two",
        ),
    ] {
        assert_eq!(step(options, &[]).text()?, expected, "{options:?}");
    }
    let variables = [
        ("CISTA_CONTAINER_GPUS", "none"),
        ("PYXIS_CONTAINER_GPUS", "all"),
        ("PYXIS_CONTAINER_DEVICE", "vendor.com/board=one"),
    ];
    assert_eq!(step(&[], &variables).text()?, "0 one");
    let given = step(&["--container-gpus=all"], &variables);
    assert_eq!(given.text()?, "2 one");
    for (option, expected) in [
        ("--container-gpus=99", "99"),
        ("--container-device=vendor.com/board=three", "three"),
        ("--container-device=nobody.com/board=one", "nobody.com"),
        ("--container-device=vendor.com/board=-", "`-` is no name"),
    ] {
        let outcome = step(&[option], &[]).run()?;
        let said = outcome.error_text();
        assert_eq!(outcome.code(), Some(1), "{option}: {said}");
        assert_eq!(outcome.text(), "", "{option}: {said}");
        assert!(said.contains(expected), "{option}: {said}");
    }
    Ok(())
}

/// Without `ConstrainDevices` Slurm gives the host's numbers, and nothing but the container keeps a job from the GPUs of others: it has those of its step alone,
/// also where the tasks have their own, and each task has its own by the container's numbers.
fn gpus_of_a_site_that_restricts_none(environment: &TestEnvironment<'_>) -> TestResult {
    tree(environment)?;
    let image = environment.session().imported(Recipe::Busybox)?;
    let image = format!("--container-image={}", image.display());
    let login = Login::new(environment)?;
    let job = |options: &[&str], script: &str| {
        login
            .srun(["-p", "open", "-N1"])
            .args(options)
            .args(["sh", "-c", script])
            .env("CISTA_HOST_ROOT", environment.path("host"))
    };
    let nodes = "echo $(ls /dev/dri) $ROCR_VISIBLE_DEVICES";
    let mut first = job(
        &["--gres=gpu:2", "-n1", &image],
        &format!("{nodes}; echo up; read line"),
    )
    .stdin_pipe()
    .spawn()?;
    let seen = first.wait_for_stdout("up", PATIENCE)?;
    assert_eq!(seen.lines().next(), Some("renderD128 renderD129 0,1"));
    let numbers = "echo $ROCR_VISIBLE_DEVICES";
    assert_eq!(job(&["--gres=gpu:2", "-n1"], numbers).text()?, "2,3");
    let second = job(&["--gres=gpu:2", "-n1", &image], nodes);
    assert_eq!(second.text()?, "renderD130 renderD131 0,1");
    let tasks = |options: &[&str], script: &str| {
        let mut all = vec!["-n2", "--gpus-per-task=1"];
        all.extend_from_slice(options);
        let text = job(&all, script).text()?;
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        Ok::<_, HarnessError>(lines)
    };
    assert_eq!(
        tasks(&[], numbers)?,
        ["2", "3"],
        "what Slurm does without a container"
    );
    assert_eq!(
        tasks(&[&image], nodes)?,
        ["renderD130 renderD131 0", "renderD130 renderD131 1"]
    );
    // A variable that is kept is translated too.
    let kept = tasks(&[&image, "--container-env=ROCR_VISIBLE_DEVICES"], numbers)?;
    assert_eq!(kept, ["0", "1"]);
    first.write(b"\n")?;
    first.wait()?;
    Ok(())
}

/// A step ends with all its processes, so a hook that comes after it is refused.
fn hooks_after_a_step_are_refused(environment: &TestEnvironment<'_>) -> TestResult {
    let text = r#"{"cdiVersion":"0.6.0","kind":"vendor.com/board","devices":[{"name":"0","containerEdits":{
        "hooks":[{"hookName":"STAGE","path":"PATH","args":["PATH"]}]}}]}"#;
    put(environment, "host/bin/true", "")?;
    let image = environment.session().imported(Recipe::Busybox)?;
    let image = format!("--container-image={}", image.display());
    let login = Login::new(environment)?;
    let step = |stage: &str, path: &str| {
        let text = text.replace("STAGE", stage).replace("PATH", path);
        put(environment, "host/etc/cdi/vendor.json", &text)?;
        login
            .srun(["-n2", &image, "--container-env=NVIDIA_VISIBLE_DEVICES"])
            .args(["echo", "up"])
            .env("NVIDIA_VISIBLE_DEVICES", "vendor.com/board=0")
            .env("CISTA_HOST_ROOT", environment.path("host"))
            .run()
    };
    let refused = step("poststop", "/bin/true")?;
    assert_ne!(refused.code(), Some(0));
    for word in ["/bin/true", "poststop", "a step of Slurm ends"] {
        assert!(
            refused.error_text().contains(word),
            "{word}: {}",
            refused.error_text()
        );
    }
    assert!(!refused.text().contains("up"));
    // One in the container is run for the step.
    assert_eq!(step("startContainer", "/bin/true")?.text(), "up\nup");
    let failing = step("startContainer", "/bin/false")?;
    assert_ne!(failing.code(), Some(0));
    assert!(
        failing.error_text().contains("/bin/false"),
        "{}",
        failing.error_text()
    );
    Ok(())
}

const fn case(name: &'static str, run: fn(&TestEnvironment<'_>) -> TestResult) -> Case {
    Case {
        name,
        tier: Tier::Slurm,
        who: Who::User,
        needs: &[Need::Slurm, Need::Image(Recipe::Busybox)],
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "slurm_devices::devices_are_chosen_by_options",
        devices_are_chosen_by_options,
    ),
    case(
        "slurm_devices::jobs_have_their_own_gpus",
        jobs_have_their_own_gpus,
    ),
    case(
        "slurm_devices::tasks_open_their_own_gpus",
        tasks_open_their_own_gpus,
    ),
    case(
        "slurm_devices::gpus_of_a_site_that_restricts_none",
        gpus_of_a_site_that_restricts_none,
    ),
    case(
        "slurm_devices::hooks_after_a_step_are_refused",
        hooks_after_a_step_are_refused,
    ),
];
