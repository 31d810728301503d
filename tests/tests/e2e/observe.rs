//! What starts and imports tell of themselves: lines of JSON, and the file for node_exporter's textfile collector.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::{TestEnvironment, set_mode};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::Recipe;
use cista_tests::program::{Outcome, Program};
use cista_tests::slurm::login::Login;
use serde_json::Value;

/// The lines of JSON on standard error: all of it.
fn lines(outcome: &Outcome) -> Vec<Value> {
    let text = outcome.error_text();
    let parse = |line: &str| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line} in\n{text}"))
    };
    text.lines().map(parse).collect()
}

/// Seconds by phase, and the order that they were told in.
fn phases(lines: &[Value]) -> (Vec<String>, BTreeMap<String, f64>) {
    let told = lines.iter().filter(|line| line["event"] == "phase");
    let all: Vec<(String, f64)> = told
        .map(|line| {
            assert!(
                line["offset"].as_f64().is_some_and(|it| it >= 0.0),
                "{line}"
            );
            (
                line["phase"].as_str().unwrap_or_default().to_owned(),
                line["seconds"].as_f64().unwrap_or(-1.0),
            )
        })
        .collect();
    let names = all.iter().map(|(name, _)| name.clone()).collect();
    (names, all.into_iter().collect())
}

fn event<'a>(lines: &'a [Value], name: &str) -> &'a Value {
    let mut found = lines.iter().filter(|line| line["event"] == name);
    let one = found
        .next()
        .unwrap_or_else(|| panic!("no {name}: {lines:?}"));
    assert!(found.next().is_none(), "several {name}: {lines:?}");
    one
}

fn a_start_tells_its_phases(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let start = |args: &[&str]| {
        environment
            .cista(args)
            .arg(&image)
            .args(["echo", "hello"])
            .env("SLURM_JOB_ID", "4537")
            .env("SLURM_STEP_ID", "2")
            .env("SLURM_PROCID", "5")
            .env("SLURMD_NODENAME", "n7")
    };
    let outcome = start(&["start", "--log-format", "json"]).check()?;
    assert_eq!(outcome.text(), "hello");
    let told = lines(&outcome);
    let (names, seconds) = phases(&told);
    assert_eq!(names, ["resolve", "mount", "devices", "exec"]);
    let ready = event(&told, "ready");
    let sum: f64 = seconds.values().sum();
    let total = ready["seconds"].as_f64().unwrap_or_default();
    assert!((sum - total).abs() < 0.001, "{sum} of {total}");
    for line in &told {
        assert_eq!(line["level"], "info");
        assert_eq!(line["command"], "start");
        assert_eq!(line["image"], image.display().to_string());
        for (field, value) in [
            ("job", "4537"),
            ("step", "2"),
            ("task", "5"),
            ("node", "n7"),
        ] {
            assert_eq!(line[field], value, "{line}");
        }
        let time = line["time"].as_str().unwrap_or_default();
        assert!(time.starts_with("20") && time.ends_with('Z') && time.len() == 27);
    }
    // However it is asked for; and nothing where it is not.
    let by_variable = start(&["start"]).env("CISTA_LOG_FORMAT", "json").check()?;
    assert_eq!(phases(&lines(&by_variable)).0, names);
    let before_the_command = start(&["--log-format=json", "start"]).check()?;
    assert_eq!(phases(&lines(&before_the_command)).0, names);
    environment.configure("cista/cista.toml", "[observe]\nlog_format = \"json\"\n")?;
    assert_eq!(phases(&lines(&start(&["start"]).check()?)).0, names);
    let text = start(&["start", "--log-format", "text"]).check()?;
    assert_eq!(text.error_text(), "");
    Ok(())
}

fn hooks_have_a_phase_and_failures_name_it(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let directory = environment.directory("hooks")?;
    let script = environment.write("job.sh", "hooks() { sleep 0.2; return $STATUS; }\n", 0o755)?;
    let start = |status: &str, word: &str| {
        environment
            .cista(["start", "--log-format=json", "--conf"])
            .args([&script, &image])
            .arg(word)
            .env("STATUS", status)
            .env("CISTA_METRICS_DIRECTORY", &directory)
            .run()
    };
    let outcome = start("0", "true")?;
    assert_eq!(outcome.code(), Some(0), "{}", outcome.error_text());
    let (names, seconds) = phases(&lines(&outcome));
    assert_eq!(names, ["resolve", "mount", "devices", "hooks", "exec"]);
    assert!(
        seconds["hooks"] >= 0.2 && seconds["mount"] < 0.2,
        "{seconds:?}"
    );

    let failed = start("3", "true")?;
    let told = lines(&failed);
    let failure = event(&told, "failure");
    assert_eq!(failed.code(), Some(125));
    assert_eq!(failure["phase"], "hooks");
    assert_eq!(failure["level"], "error");
    assert_eq!(failure["status"], 125);
    assert!(told.iter().all(|line| line["event"] != "ready"));
    let missing = start("0", "no-such-program")?;
    assert_eq!(missing.code(), Some(127));
    assert_eq!(event(&lines(&missing), "failure")["phase"], "exec");
    let none = environment
        .cista(["--log-format", "json", "start", "none"])
        .run()?;
    let told = lines(&none);
    let failure = event(&told, "failure");
    assert_eq!(failure["phase"], "resolve");
    assert!(
        failure["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("list"))
    );

    let metrics = metrics(environment, "hooks")?;
    for (name, expected) in [
        ("cista_starts_total{}", 3.0),
        ("cista_start_failures_total{phase=\"hooks\"}", 1.0),
        ("cista_start_failures_total{phase=\"exec\"}", 1.0),
        ("cista_start_failures_total{phase=\"mount\"}", 0.0),
    ] {
        assert_eq!(metrics[name], expected, "{name}: {metrics:?}");
    }
    assert!(metrics["cista_phase_seconds_total{phase=\"hooks\"}"] >= 0.4);
    Ok(())
}

/// The metrics of this test's user in a directory, without the label that names him.
fn metrics(
    environment: &TestEnvironment<'_>,
    directory: &str,
) -> Result<BTreeMap<String, f64>, HarnessError> {
    let uid = environment.user().uid;
    let path = environment
        .path(directory)
        .join(format!("cista-{uid}.prom"));
    let text = std::fs::read_to_string(&path).context("read", &path)?;
    let owner = format!("{{uid=\"{uid}\"");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    Ok(samples
        .map(|line| {
            assert!(line.contains(&owner), "{line}");
            let key = line.replace(&format!("{owner},"), "{").replace(&owner, "{");
            let (key, value) = key.rsplit_once(' ').unwrap_or_default();
            (key.to_owned(), value.parse().unwrap_or(-1.0))
        })
        .collect())
}

fn runs_and_imports_are_told_and_counted(environment: &TestEnvironment<'_>) -> TestResult {
    let session = environment.session();
    let uri = session.uri(Recipe::Busybox)?;
    let directory = environment.directory("metrics")?;
    let run = |args: &[&str]| {
        environment
            .cista(["--log-format", "json"])
            .args(args)
            .env("CISTA_METRICS_DIRECTORY", &directory)
    };
    let first = run(&["run", &uri, "echo", "hello"]).check()?;
    assert_eq!(first.text(), "hello");
    let told = lines(&first);
    let (names, seconds) = phases(&told);
    assert_eq!(names.iter().filter(|name| *name != "resolve").count(), 5);
    let import = event(&told, "imported");
    assert!(import["fetched"].as_u64() > Some(0), "{import}");
    let ready = event(&told, "ready")["seconds"]
        .as_f64()
        .unwrap_or_default();
    // From the first command on, not from the second half of it.
    assert!(ready > seconds["build"], "{ready}: {seconds:?}");

    let second = run(&["run", &uri, "true"]).check()?;
    assert_eq!(
        phases(&lines(&second)).0,
        ["resolve", "mount", "devices", "exec"]
    );
    run(&["import", "-o", "again.sqsh", &uri]).check()?;
    let host = session.registry()?.host();
    let none = run(&["import", &format!("docker://{host}/no/such:1")]).run()?;
    assert_eq!(event(&lines(&none), "failure")["phase"], "resolve");

    let path = directory.join(format!("cista-{}.prom", environment.user().uid));
    let mode = std::fs::metadata(&path).context("look at", &path)?.mode();
    assert_eq!(mode & 0o777, 0o644, "the collector is another user");
    let metrics = metrics(environment, "metrics")?;
    let image = std::fs::metadata(environment.path("again.sqsh"))
        .context("look at", &path)?
        .len() as f64;
    for (name, expected) in [
        ("cista_starts_total{}", 2.0),
        ("cista_start_ready_seconds_count{}", 2.0),
        ("cista_start_ready_seconds_bucket{le=\"+Inf\"}", 2.0),
        ("cista_imports_total{}", 2.0),
        ("cista_import_failures_total{phase=\"resolve\"}", 1.0),
        (
            "cista_import_fetched_bytes_total{}",
            import["fetched"].as_f64().unwrap_or(-1.0),
        ),
        ("cista_cache_hits_total{kind=\"image\"}", 1.0),
        ("cista_cache_misses_total{kind=\"image\"}", 1.0),
    ] {
        assert_eq!(metrics[name], expected, "{name}: {metrics:?}");
    }
    assert!(metrics["cista_import_written_bytes_total{}"] > image);
    assert!(metrics["cista_cache_hits_total{kind=\"layer\"}"] >= 1.0);
    assert!(metrics["cista_start_ready_seconds_sum{}"] >= ready);
    Ok(())
}

fn starts_at_once_are_all_counted(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let directory = environment.directory("metrics")?;
    let start = |program: &str| -> Program {
        environment
            .cista(["start"])
            .arg(&image)
            .arg(program)
            .env("CISTA_METRICS_DIRECTORY", &directory)
    };
    let mut running = Vec::new();
    for index in 0..24 {
        running.push(start(if index % 4 == 0 { "no-such" } else { "true" }).spawn()?);
    }
    for program in running {
        program.wait()?;
    }
    let counted = metrics(environment, "metrics")?;
    assert_eq!(counted["cista_starts_total{}"], 24.0);
    assert_eq!(counted["cista_start_failures_total{phase=\"exec\"}"], 6.0);
    // A directory that cannot be used is told, and stops nothing.
    set_mode(&directory, 0o500)?;
    let elsewhere = start("true")
        .env("CISTA_METRICS_DIRECTORY", "no/such")
        .run()?;
    assert_eq!(elsewhere.code(), Some(0));
    assert!(elsewhere.error_text().starts_with("warning: cannot count"));
    assert_eq!(elsewhere.error_text().lines().count(), 1);
    set_mode(&directory, 0o755)
}

/// The plugin starts the container of a step: its phases are among the messages of srun, with job and step, and it is counted once a node.
fn steps_of_slurm_are_told_and_counted(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let image = environment.session().imported(Recipe::Busybox)?;
    let directory = environment.directory("metrics")?;
    let variables = format!(
        "--export=ALL,CISTA_LOG_FORMAT=json,CISTA_METRICS_DIRECTORY={}",
        directory.display()
    );
    let outcome = login
        .srun(["-N1", "-n1", &variables])
        .arg(format!("--container-image={}", image.display()))
        .args(["sh", "-c", "echo $SLURM_JOB_ID"])
        .run()?;
    let told = outcome.error_text();
    assert_eq!(outcome.code(), Some(0), "{told}");
    let events: Vec<Value> = told
        .lines()
        .filter_map(|line| serde_json::from_str(&line[line.find('{')?..]).ok())
        .collect();
    let (names, _) = phases(&events);
    assert_eq!(names, ["resolve", "mount", "devices", "exec"], "{told}");
    let text = outcome.text();
    let job = text.lines().next().unwrap_or_default();
    for line in &events {
        assert_eq!(line["job"], job, "{line}");
        assert_eq!(line["step"], "0");
        assert!(line["node"].is_string(), "{line}");
    }
    assert!(event(&events, "ready")["seconds"].as_f64() > Some(0.0));
    let counted = metrics(environment, "metrics")?;
    assert_eq!(counted["cista_starts_total{}"], 1.0, "{counted:?}");
    assert_eq!(counted["cista_start_ready_seconds_count{}"], 1.0);
    Ok(())
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case::container(
        "observe::a_start_tells_its_phases",
        Who::Both,
        a_start_tells_its_phases,
    ),
    Case::container(
        "observe::hooks_have_a_phase_and_failures_name_it",
        Who::Both,
        hooks_have_a_phase_and_failures_name_it,
    ),
    Case::container(
        "observe::runs_and_imports_are_told_and_counted",
        Who::Both,
        runs_and_imports_are_told_and_counted,
    ),
    Case {
        tier: Tier::Slurm,
        ..Case::container(
            "observe::steps_of_slurm_are_told_and_counted",
            Who::User,
            steps_of_slurm_are_told_and_counted,
        )
        .needing(&[
            Need::Slurm,
            Need::Image(Recipe::Busybox),
            Need::UserNamespaces,
            Need::Fuse,
        ])
    },
    Case::container(
        "observe::starts_at_once_are_all_counted",
        Who::Both,
        starts_at_once_are_all_counted,
    ),
];
