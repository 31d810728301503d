//! Hooks that come with devices of CDI, as the OCI runtime specification has them: those before the container's program are in `devices_described`; here are
//! the one in the container, and those that come when its program has started and has ended.

use std::path::Path;
use std::time::{Duration, Instant};

use cista_tests::case::{CONTAINER, Case, TestResult, Who};
use cista_tests::environment::{TestEnvironment, set_mode};
use cista_tests::error::HarnessError;
use cista_tests::image::Recipe;
use cista_tests::program::Program;

use super::bad_input::assert_clear_error;
use super::config::put;

const PATIENCE: Duration = Duration::from_secs(20);

/// Says when it is run, by its first argument, and what it was told.
const HOOK: &str = "#!/bin/sh\nstate=$(cat)\nfield() { echo \"$state\" | sed -n \"s/.*\\\"$1\\\":\\\"\\{0,1\\}\\([^\\\",}]*\\).*/\\1/p\"; }\n\
    pid=$(field pid)\nalive=no; [ -n \"$pid\" ] && [ -d /proc/$pid ] && alive=yes\n\
    echo \"$1 $(field status) $alive $([ -f $(field bundle)/config.json ] && echo bundle) ${HOME-none}\" >>\"$LOG\"\nexit ${2-0}\n";

/// A description of a device with hooks: stage, path, arguments.
fn describe(
    environment: &TestEnvironment<'_>,
    hooks: &[(&str, &str, &[&str])],
) -> Result<std::path::PathBuf, HarnessError> {
    let log = environment.write("log", "", 0o666)?;
    let hook = put(environment, "host/usr/bin/hook", HOOK)?;
    set_mode(&hook, 0o755)?;
    let hooks: Vec<String> = hooks
        .iter()
        .map(|(stage, path, arguments)| {
            let words: Vec<String> = arguments.iter().map(|word| format!("{word:?}")).collect();
            format!(
                r#"{{"hookName":"{stage}","path":"{path}","args":[{}],"env":["LOG={}","PATH=/usr/bin:/bin"]}}"#,
                words.join(","),
                log.display()
            )
        })
        .collect();
    let text = format!(
        r#"{{"cdiVersion":"1.1.0","kind":"vendor.com/board","devices":[{{"name":"0","containerEdits":{{"hooks":[{}]}}}}]}}"#,
        hooks.join(",")
    );
    put(environment, "host/etc/cdi/vendor.json", &text)?;
    Ok(log)
}

fn start(
    environment: &TestEnvironment<'_>,
    options: &[&str],
    command: &[&str],
) -> Result<Program, HarnessError> {
    let image = environment.session().imported(Recipe::Busybox)?;
    Ok(environment
        .cista(["start", "--device", "vendor.com/board=0"])
        .args(options)
        .arg(image)
        .args(command)
        .env("CISTA_HOST_ROOT", environment.path("host")))
}

/// Waits until a file has so many lines.
fn lines(path: &Path, count: usize) -> Vec<String> {
    let begin = Instant::now();
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        if lines.len() >= count || begin.elapsed() > PATIENCE {
            return lines;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Each at its time, with the state of that time; those after the program is executed see it, and it does not see them.
fn hooks_run_at_their_stage(environment: &TestEnvironment<'_>) -> TestResult {
    let script = "cat >/tmp/state; echo \"$0 $GIVEN $(id -u) $(grep -c NoNewPrivs:.1 /proc/self/status)\" >>/tmp/state";
    let hook = "/usr/bin/hook";
    let stages: &[(&str, &str, &[&str])] = &[
        ("poststop", hook, &["hook", "stop"]),
        ("startContainer", "/bin/sh", &["sh", "-c", script, "inside"]),
        ("poststart", hook, &["hook", "start"]),
        ("createContainer", hook, &["hook", "create"]),
        ("prestart", hook, &["hook", "before"]),
    ];
    for options in [&[][..], &["--pid"], &["-r"]] {
        let log = describe(environment, stages)?;
        let script = "cat /tmp/state; id -u; read line; exit 7";
        let mut running = start(environment, options, &["sh", "-c", script])?
            .stdin_pipe()
            .spawn()?;
        let before = [
            "before creating yes bundle none",
            "create creating yes bundle none",
        ];
        let expected = [&before[..], &["start running yes bundle none"]].concat();
        assert_eq!(lines(&log, 3), expected, "{options:?}");
        running.write(b"\n")?;
        let outcome = running.wait()?;
        assert_eq!(
            outcome.code(),
            Some(7),
            "{options:?}: {}",
            outcome.error_text()
        );
        let expected = [&expected[..], &["stop stopped no bundle none"]].concat();
        assert_eq!(lines(&log, 4), expected, "{options:?}");
        let text = outcome.text();
        let (told, id) = text.rsplit_once('\n').unwrap_or_default();
        assert!(told.contains(r#""status":"created""#), "{text}");
        // It has the rights of the program.
        assert!(told.contains(&format!("inside  {id} ")), "{text}");
        if !(environment.user().is_root() || options == ["-r"]) {
            assert!(told.ends_with('1'), "{text}");
        }
    }
    Ok(())
}

/// A hook that fails before the program stops the start; one that fails afterwards is a warning. What has not started has no hooks after it.
fn hooks_that_fail(environment: &TestEnvironment<'_>) -> TestResult {
    let hook = "/usr/bin/hook";
    describe(environment, &[("startContainer", "/bin/false", &["false"])])?;
    let outcome = start(environment, &[], &["echo", "started"])?.run()?;
    assert_clear_error(&outcome, 125, &["/bin/false", "exit status: 1"]);
    describe(environment, &[("startContainer", "/usr/bin/absent", &[])])?;
    let outcome = start(environment, &[], &["echo", "started"])?.run()?;
    assert_clear_error(&outcome, 125, &["/usr/bin/absent"]);

    let stages: &[(&str, &str, &[&str])] = &[
        ("poststart", hook, &["hook", "start", "3"]),
        ("poststart", hook, &["hook", "again"]),
        ("poststop", hook, &["hook", "stop", "4"]),
    ];
    let log = describe(environment, stages)?;
    let outcome = start(environment, &[], &["sleep", "0.5"])?.run()?;
    assert_eq!(outcome.code(), Some(0));
    let begun: Vec<String> = lines(&log, 3)
        .iter()
        .filter_map(|line| line.split(' ').next().map(str::to_owned))
        .collect();
    assert_eq!(begun, ["start", "again", "stop"]);
    let told = outcome.error_text();
    for part in [
        "warning: ",
        "/usr/bin/hook",
        "exit status: 3",
        "exit status: 4",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }

    let log = describe(environment, stages)?;
    let outcome = start(environment, &[], &["/absent/program"])?.run()?;
    assert_eq!(outcome.code(), Some(127), "{}", outcome.error_text());
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(lines(&log, 0), Vec::<String>::new());
    Ok(())
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case::container(
        "device_hooks::hooks_run_at_their_stage",
        Who::Both,
        hooks_run_at_their_stage,
    )
    .needing(CONTAINER),
    Case::container("device_hooks::hooks_that_fail", Who::Both, hooks_that_fail).needing(CONTAINER),
];
