//! Steps whose tasks run in a container, in all the ways that Slurm starts and ends them: as without one.

use std::time::{Duration, Instant};

use cista_tests::case::{Case, TestResult, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::HarnessError;
use cista_tests::image::{LayoutWriter, Recipe, RunConfig};
use cista_tests::pty::Terminal;
use cista_tests::slurm::login::Login;
use rustix::process::Signal;

use super::progress::slow_busybox;
use super::slurm::{busybox, contained};

const PATIENCE: Duration = Duration::from_secs(40);

/// One container a node and step, whose tasks are slurmstepd's own children and share memory.
fn tasks_of_a_node_share_a_container(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    let script = "for n in user mnt; do readlink /proc/self/ns/$n; done | tr '\\n' ' '; \
                  tr '\\0' ' ' </proc/$PPID/cmdline; echo";
    let text = login
        .srun([&image, "-N2", "--ntasks-per-node=4", "sh", "-c", script])
        .text()?;
    let mut lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.sort_unstable();
    assert_eq!(lines.len(), 8, "{text}");
    assert!(
        lines.iter().all(|line| line.contains("slurmstepd: [")),
        "{text}"
    );
    lines.dedup();
    assert_eq!(lines.len(), 2, "two nodes, two containers: {text}");
    // The node's own, so that of other jobs too.
    let shared = "word=/dev/shm/word-$SLURM_JOB_ID; if [ $SLURM_PROCID = 0 ]; then echo hello >$word; fi; \
                  until [ -e $word ]; do sleep 0.02; done; cat $word; test -w $word && sleep 0.3; rm -f $word";
    let text = login.srun([&image, "-n3", "sh", "-c", shared]).text()?;
    assert_eq!(text.lines().collect::<Vec<_>>(), ["hello"; 3]);
    Ok(())
}

fn input_output_and_exit_codes_pass(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    let outcome = login
        .srun([image.as_str(), "sh", "-c", "cat; echo error >&2; exit 7"])
        .stdin_bytes("from stdin\n")
        .run()?;
    assert_eq!(outcome.code(), Some(7), "{}", outcome.error_text());
    assert_eq!(outcome.text(), "from stdin");
    let said = outcome.error_text();
    assert!(said.lines().any(|line| line == "error"), "{said}");
    // The highest exit code of the tasks.
    let script = "exit $SLURM_PROCID";
    let outcome = login.srun([&image, "-n4", "sh", "-c", script]).run()?;
    assert_eq!(outcome.code(), Some(3));
    let killed = login.srun([&image, "sh", "-c", "kill -SEGV $$"]).run()?;
    assert_eq!(killed.code(), Some(128 + Signal::SEGV.as_raw()));
    let missing = login.srun([&image, "no-such-program"]).run()?;
    assert_eq!(missing.code(), Some(2), "{}", missing.error_text());
    assert!(missing.error_text().contains("no-such-program"));
    Ok(())
}

fn signals_arrive(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    let script =
        "trap 'echo got USR1; exit 5' USR1; echo job $SLURM_JOB_ID; while :; do sleep 0.05; done";
    let step = login.srun([&image, "sh", "-c", script]).spawn()?;
    let said = step.wait_for_stdout("\n", PATIENCE)?;
    let job = said.trim().trim_start_matches("job ").to_owned();
    login
        .command("scancel", ["--signal=USR1", job.as_str()])
        .check()?;
    let outcome = step.wait()?;
    assert!(outcome.text().ends_with("got USR1"), "{}", outcome.text());
    assert_eq!(outcome.code(), Some(5));
    // To srun, as Ctrl-C of a script would.
    let step = login
        .srun([&image, "sh", "-c", "echo ready; exec sleep 100"])
        .spawn()?;
    step.wait_for_stdout("ready", PATIENCE)?;
    step.signal(Signal::TERM)?;
    let outcome = step.wait()?;
    assert_ne!(outcome.code(), Some(0));
    Ok(())
}

/// A program that ignores SIGTERM is killed; so are the processes that it has started. What srun makes of it is what it makes of it
/// without a container.
fn a_cancelled_step_is_gone(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    let script = "trap '' TERM; setsid sleep 100 & (sleep 100 &) ; echo job $SLURM_JOB_ID; while :; do sleep 1; done";
    let cancel = |options: &[&str]| {
        let step = login
            .srun(options)
            .args(["-n2", "sh", "-c", script])
            .spawn()?;
        let said = step.wait_for_stdout("\n", PATIENCE)?;
        let first = said.lines().next().unwrap_or_default();
        let job = first.trim_start_matches("job ").to_owned();
        let begin = Instant::now();
        login.command("scancel", [job]).check()?;
        let outcome = step.wait()?;
        // KillWait is 2 seconds.
        assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
        let said = outcome.error_text();
        assert!(said.contains("CANCELLED"), "{said}");
        Ok::<_, HarnessError>(outcome.code())
    };
    assert_eq!(cancel(&[&image])?, cancel(&[])?);
    Ok(())
}

/// `--signal` tells a step before its time is up, and the time limit ends it, with all that it has started.
fn a_time_limit_is_announced_and_kept(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    let script = "trap 'echo soon' USR2; trap '' TERM; setsid sleep 300 & \
                  while :; do sleep 0.1; done";
    let begin = Instant::now();
    let step = login
        .srun(["--time=1", "--signal=USR2@55", &image, "sh", "-c", script])
        .timeout(Duration::from_secs(200))
        .spawn()?;
    step.wait_for_stdout("soon", Duration::from_secs(58))?;
    let outcome = step.wait()?;
    let said = outcome.error_text();
    // Slurm looks at the clock every half minute.
    assert!(begin.elapsed() > Duration::from_secs(55), "{said}");
    assert!(said.contains("DUE TO TIME LIMIT"), "{said}");
    // The harness sees that nothing is left of the test.
    Ok(())
}

/// PyTorch is told of the tasks of a step, each of its own number.
fn pytorch_is_told_of_its_tasks(environment: &TestEnvironment<'_>) -> TestResult {
    let root = environment.path("layout");
    let borrowed = environment.session().images().get(Recipe::Busybox)?;
    let mut layout = LayoutWriter::create(&root)?;
    layout.borrow(&borrowed.layout, &borrowed.layout.manifest.layers[0])?;
    let config = RunConfig {
        env: vec!["PATH=/bin".into(), "PYTORCH_VERSION=2.6".into()],
        ..RunConfig::default()
    };
    layout.finish("1", &config)?;
    let image = format!("--container-image=oci:{}:1", root.display());
    let login = Login::new(environment)?;
    let script = "echo $RANK $LOCAL_RANK $WORLD_SIZE $OMP_NUM_THREADS $MASTER_ADDR \
                  $((MASTER_PORT == SLURM_JOB_ID % 4536 + 61000))";
    let step = |image: &str| {
        login
            .srun(["-w", "n1,n2", "--ntasks-per-node=2", image])
            .args(["sh", "-c", script])
    };
    let sorted = |text: String| {
        let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(
        sorted(step(&image).text()?),
        [
            "0 0 4 1 n1 1",
            "1 1 4 1 n1 1",
            "2 0 4 1 n1 1",
            "3 1 4 1 n1 1"
        ]
    );
    // What the job says itself stays.
    let own = step(&image)
        .env("MASTER_ADDR", "own")
        .env("OMP_NUM_THREADS", "3")
        .env("RANK", "9");
    assert_eq!(
        sorted(own.text()?),
        [
            "9 0 4 3 own 1",
            "9 0 4 3 own 1",
            "9 1 4 3 own 1",
            "9 1 4 3 own 1"
        ]
    );
    // An image without PyTorch has none of it.
    let without = step(&busybox(environment)?).text()?;
    assert!(without.lines().all(|line| line == "0"), "{without}");
    Ok(())
}

/// A step of one task shows how its image comes, while it comes; steps of several would show it several times.
fn an_import_is_told_to_one_task(environment: &TestEnvironment<'_>) -> TestResult {
    let (_proxy, uri) = slow_busybox(environment)?;
    let image = format!("--container-image={uri}");
    let login = Login::new(environment)?;
    let program = login.on_terminal("srun", ["-n1", &image, "cat", "/etc/issue"]);
    let mut terminal = Terminal::start(program, environment.user())?;
    let limit = Duration::from_secs(30);
    let shown = terminal.expect("importing docker image: docker://", limit)?;
    assert!(!shown.contains("a test image"), "{shown}");
    // A line now and then.
    let shown = terminal.expect(" of ", limit)?;
    assert!(!shown.contains("a test image"), "{shown}");
    terminal.expect("imported docker image: docker://", limit)?;
    terminal.expect("a test image of cista", limit)?;
    assert_eq!(terminal.wait()?, Some(0));
    let several = login
        .srun(["-n2", &image, "true"])
        .env("XDG_CACHE_HOME", environment.directory("other-cache")?)
        .check()?;
    let said = several.error_text();
    assert!(!said.contains("docker image"), "{said}");
    Ok(())
}

fn a_requeued_job_starts_again(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    let output = environment.path("requeued.out");
    let script = "#!/bin/sh\necho $(cat /etc/issue) ${SLURM_RESTART_COUNT-first}\n[ -n \"$SLURM_RESTART_COUNT\" ] || sleep 100\n";
    let script = environment.write("requeued", script, 0o755)?;
    let job = login
        .command("sbatch", ["--parsable", "--requeue", &image])
        .arg(format!("--output={}", output.display()))
        .arg("--open-mode=append")
        .arg(script)
        .text()?;
    let printed = || std::fs::read_to_string(&output).unwrap_or_default();
    let wait = |text: &str, meanwhile: &dyn Fn() -> TestResult| {
        let begin = Instant::now();
        while !printed().contains(text) {
            assert!(begin.elapsed() < PATIENCE * 2, "{text}: {}", printed());
            meanwhile()?;
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok::<_, HarnessError>(())
    };
    wait("first", &|| Ok(()))?;
    login.command("scontrol", ["requeue", &job]).check()?;
    // Slurm lets a requeued job wait for two minutes. Its user may shorten that, once the job has ended.
    let job = format!("JobId={job}");
    wait("cista 1", &|| {
        let update = login.command("scontrol", ["update", &job, "StartTime=now"]);
        update.run().map(drop)
    })
}

fn a_terminal_session_works(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    let program = login
        .on_terminal("srun", ["--pty", &image, "sh", "-i"])
        .env("PS1", "prompt> ");
    let mut terminal = Terminal::start(program, environment.user())?;
    terminal.expect("prompt> ", PATIENCE)?;
    terminal.send("tty; stty size; cat /etc/issue; echo $((6 * 7))\n")?;
    let shown = terminal.expect("\n42", PATIENCE)?;

    assert!(!shown.contains("not a tty"), "{shown}");
    assert!(shown.contains("40 100"), "{shown}");
    assert!(shown.contains("a test image"), "{shown}");
    terminal.send("sleep 1000\n")?;
    terminal.expect("sleep 1000", PATIENCE)?;
    std::thread::sleep(Duration::from_millis(300));
    terminal.send("\u{3}")?;
    terminal.expect("prompt> ", PATIENCE)?;
    terminal.send("exit 9\n")?;
    assert_eq!(terminal.wait()?, Some(9));
    Ok(())
}

fn steps_of_every_kind(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    let sorted = |text: String| {
        let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    // No process management interface at all.
    let none = login
        .srun(["--mpi=none", &image, "cat", "/etc/issue"])
        .text()?;
    assert_eq!(none, "a test image of cista");
    // Several programs in one step.
    let programs = environment.write(
        "programs",
        "0 sh -c 'read -r a b </etc/issue; echo first $a'\n1-2 echo other %t\n",
        0o644,
    )?;
    let multiple = login
        .srun([image.as_str(), "-n3", "--multi-prog"])
        .arg(programs)
        .text()?;
    assert_eq!(sorted(multiple), ["first a", "other 1", "other 2"]);
    // A step of two components.
    let components = login
        .srun(["-w", "n1", &image, "cat", "/etc/issue", ":", "-w", "n2"])
        .args([image.as_str(), "sh", "-c", "echo second; cat /etc/issue"])
        .text()?;
    let issue = "a test image of cista";
    assert_eq!(sorted(components), [issue, issue, "second"]);
    Ok(())
}

fn an_allocation_has_many_steps(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    let script = format!(
        "for step in 1 2 3 4 5; do srun {image} sh -c 'echo $SLURM_STEP_ID; cat /etc/issue' || exit; done"
    );
    let text = login
        .command("salloc", ["--quiet", "-N1", "sh", "-c", &script])
        .text()?;
    let expected: Vec<String> = (0..5)
        .flat_map(|step| [step.to_string(), "a test image of cista".into()])
        .collect();
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    // Beside each other on the same processors.
    let script = format!(
        "srun {image} -n1 sleep 2 & srun --overlap {image} -n1 cat /etc/issue; status=$?; kill %1; wait; exit $status"
    );
    let outcome = login
        .command("salloc", ["--quiet", "-n1", "bash", "-c", &script])
        .run()?;
    assert_eq!(outcome.code(), Some(0), "{}", outcome.error_text());
    assert_eq!(outcome.text(), "a test image of cista");
    Ok(())
}

/// The batch script itself runs in the container, and its steps as they say. Arguments and arrays are those of Slurm.
fn a_batch_script_runs_inside(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    let batch = login.sbatch([&image], "#!/bin/sh\ncat /etc/issue\nexit 4\n")?;
    assert_eq!(batch.printed, "a test image of cista");
    assert_eq!(batch.status, Some(4), "{}", batch.said);
    let directive = format!("#!/bin/sh\n#SBATCH {image}\ncat /etc/issue\n");
    let batch = login.sbatch::<&str>([], &directive)?;
    assert_eq!(batch.printed, "a test image of cista", "{}", batch.said);
    let script = format!("#!/bin/sh\nhostname >/dev/null\nsrun {image} cat /etc/issue\n");
    let batch = login.sbatch::<&str>([], &script)?;
    assert_eq!(batch.printed, "a test image of cista", "{}", batch.said);
    let place = environment.directory("array")?;
    let mounts = format!("--container-mounts={}:/out", place.display());
    let batch = login.sbatch(
        ["--array=1-3", &image, &mounts],
        "#!/bin/sh\ncat /etc/issue >/out/$SLURM_ARRAY_TASK_ID\n",
    )?;
    assert_eq!(batch.status, Some(0), "{}", batch.said);
    for task in ["1", "2", "3"] {
        let text = std::fs::read_to_string(place.join(task)).unwrap_or_default();
        assert_eq!(text, "a test image of cista\n", "{task}");
    }
    Ok(())
}

/// What slurmstepd tells of a start, to who may ask for it.
fn a_verbose_step_tells_how_long_it_took(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    let outcome = login
        .srun([image.as_str(), "--slurmd-debug=verbose", "true"])
        .check()?;
    let said = outcome.error_text();
    assert!(said.contains("container ready in "), "{said}");
    Ok(())
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    contained(
        "slurm_steps::tasks_of_a_node_share_a_container",
        Who::Both,
        tasks_of_a_node_share_a_container,
    ),
    contained(
        "slurm_steps::input_output_and_exit_codes_pass",
        Who::Both,
        input_output_and_exit_codes_pass,
    ),
    contained("slurm_steps::signals_arrive", Who::Both, signals_arrive),
    contained(
        "slurm_steps::a_cancelled_step_is_gone",
        Who::Both,
        a_cancelled_step_is_gone,
    ),
    contained(
        "slurm_steps::a_time_limit_is_announced_and_kept",
        Who::User,
        a_time_limit_is_announced_and_kept,
    ),
    contained(
        "slurm_steps::pytorch_is_told_of_its_tasks",
        Who::User,
        pytorch_is_told_of_its_tasks,
    ),
    contained(
        "slurm_steps::an_import_is_told_to_one_task",
        Who::User,
        an_import_is_told_to_one_task,
    ),
    contained(
        "slurm_steps::a_requeued_job_starts_again",
        Who::User,
        a_requeued_job_starts_again,
    ),
    contained(
        "slurm_steps::a_terminal_session_works",
        Who::User,
        a_terminal_session_works,
    ),
    contained(
        "slurm_steps::steps_of_every_kind",
        Who::User,
        steps_of_every_kind,
    ),
    contained(
        "slurm_steps::an_allocation_has_many_steps",
        Who::User,
        an_allocation_has_many_steps,
    ),
    contained(
        "slurm_steps::a_batch_script_runs_inside",
        Who::Both,
        a_batch_script_runs_inside,
    ),
    contained(
        "slurm_steps::a_verbose_step_tells_how_long_it_took",
        Who::Root,
        a_verbose_step_tells_how_long_it_took,
    ),
];
