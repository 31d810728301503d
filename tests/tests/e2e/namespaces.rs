//! `--pid`, `--net`, `--ipc`, `--uts`: what is a container's own when asked for, and the process that stands for a program.

use std::time::Duration;

use cista_tests::case::{CONTAINER, Case, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::image::Recipe;
use cista_tests::process;
use cista_tests::pty::{ON_TERMINAL, Terminal};
use rustix::process::Signal;

use super::bad_input::assert_clear_error;
use super::start::{busybox, shell};

const PATIENCE: Duration = Duration::from_secs(20);

fn host_namespace(kind: &str) -> String {
    std::fs::read_link(format!("/proc/self/ns/{kind}"))
        .unwrap_or_default()
        .display()
        .to_string()
}

fn each_is_asked_for_alone(environment: &TestEnvironment<'_>) -> TestResult {
    const ALL: [&str; 4] = ["pid", "net", "ipc", "uts"];
    let script = "for n in pid net ipc uts; do readlink /proc/self/ns/$n; done";
    let host = ALL.map(host_namespace);
    let changed = |text: &str| -> Vec<&str> {
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), ALL.len(), "{text}");
        ALL.into_iter()
            .zip(lines.iter().zip(&host))
            .filter(|(_, (inside, host))| **inside != host.as_str())
            .map(|(name, _)| name)
            .collect()
    };
    assert!(changed(&shell(environment, &[], script)?).is_empty());
    for name in ALL {
        let option = format!("--{name}");
        assert_eq!(changed(&shell(environment, &[&option], script)?), [name]);
        let variable = format!("CISTA_UNSHARE_{}", name.to_uppercase());
        let by_setting = busybox(environment, &[], &["sh", "-c", script])?
            .env(&variable, "yes")
            .text()?;
        assert_eq!(changed(&by_setting), [name]);
        let bad = busybox(environment, &[], &["true"])?
            .env(&variable, "perhaps")
            .run()?;
        assert_clear_error(&bad, 125, &[&variable, "perhaps"]);
    }
    let all = shell(
        environment,
        &["--pid", "--net", "--ipc", "--uts", "-r"],
        script,
    )?;
    assert_eq!(changed(&all), ALL);
    Ok(())
}

/// The program has no duty and no privilege of an init: its signals do what they do elsewhere, and orphans are waited for.
fn the_program_is_no_init(environment: &TestEnvironment<'_>) -> TestResult {
    let text = shell(
        environment,
        &["--pid"],
        "echo $$; (sleep 0.05 & ) ; sleep 0.3; set -- /proc/[0-9]*; echo $#; kill -TERM 1; kill -KILL 1; cat /proc/1/comm; readlink /proc/1/exe; readlink /proc/1/root; cat /proc/1/environ 2>/dev/null; true",
    )?;
    // The shell and the init: no zombie.
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert_eq!(lines, ["2", "2", "cista-init"], "{text}");
    let root = shell(
        environment,
        &["--pid", "-r"],
        "readlink /proc/1/exe; readlink /proc/1/root; cat /proc/1/environ 2>/dev/null; kill -KILL 1; echo alive",
    )?;
    assert_eq!(root, "alive", "an init that can be looked into");
    for status in [0, 1, 3, 255] {
        let outcome = busybox(
            environment,
            &["--pid"],
            &["sh", "-c", &format!("exit {status}")],
        )?
        .run()?;
        assert_eq!(outcome.code(), Some(status), "{}", outcome.error_text());
    }
    let missing = busybox(environment, &["--pid"], &["no-such-program"])?.run()?;
    assert_clear_error(&missing, 127, &["no-such-program"]);
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT, Signal::USR1] {
        let running = busybox(environment, &["--pid"], &["sleep", "60"])?.spawn()?;
        assert!(wait_for_child(running.pid(), "sleep"));
        running.signal(signal)?;
        let outcome = running.wait()?;
        assert_eq!(outcome.signal(), Some(signal.as_raw()), "{outcome:?}");
    }
    Ok(())
}

/// Waits until a process has a child that executes a program of a name.
fn wait_for_child(pid: u32, name: &str) -> bool {
    let begin = std::time::Instant::now();
    while begin.elapsed() < PATIENCE {
        let found = process::children(pid)
            .into_iter()
            .any(|child| process::wait_until_it_executes(child, name, Duration::ZERO));
        if found {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

fn signals_are_passed_on(environment: &TestEnvironment<'_>) -> TestResult {
    for (signal, name) in [
        (Signal::TERM, "TERM"),
        (Signal::HUP, "HUP"),
        (Signal::USR1, "USR1"),
        (Signal::WINCH, "WINCH"),
    ] {
        let script = format!(
            "trap 'echo got {name}; exit 7' {name}; echo ready; while :; do sleep 0.02; done"
        );
        let running = busybox(environment, &["--pid"], &["sh", "-c", &script])?.spawn()?;
        running.wait_for_stdout("ready", PATIENCE)?;
        running.signal(signal)?;
        let outcome = running.wait()?;
        assert_eq!(outcome.code(), Some(7), "{name}");
        assert_eq!(outcome.text(), format!("ready\ngot {name}"));
    }
    Ok(())
}

/// Nothing of a pid namespace outlives its program, and none outlives the process that stands for it.
fn the_namespace_ends_with_its_program(environment: &TestEnvironment<'_>) -> TestResult {
    let daemon = "(trap '' TERM HUP; sleep 61) >/dev/null 2>&1 & echo started";
    let text = shell(environment, &["--pid"], daemon)?;
    assert_eq!(text, "started");
    let program = environment.program_path();
    let patience = Duration::from_secs(10);
    assert!(process::wait_until_none_executes(&program, patience).is_some());
    let running = busybox(
        environment,
        &["--pid"],
        &["sh", "-c", "echo ready; exec sleep 62"],
    )?
    .spawn()?;
    running.wait_for_stdout("ready", PATIENCE)?;
    let child = process::children(running.pid());
    running.signal(Signal::KILL)?;
    running.wait()?;
    assert!(process::wait_until_none_executes(&program, patience).is_some());
    let begin = std::time::Instant::now();
    while child.iter().any(|pid| process::is_alive(*pid)) {
        assert!(begin.elapsed() < patience, "a program without its parent");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Ctrl-C and Ctrl-Z of the shell that started it.
fn job_control_works(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let shell = environment
        .program(ON_TERMINAL[0])
        .args(&ON_TERMINAL[1..])
        .args(["bash", "--norc", "--noprofile", "-i"])
        .env("PS1", "prompt> ");
    let mut terminal = Terminal::start(shell, environment.user())?;
    terminal.expect("prompt> ", PATIENCE)?;
    let start = format!(
        "{} start --pid {} sh -c 'echo be''gun; exec sleep 1000'\n",
        environment.program_path().display(),
        image.display()
    );
    terminal.send(&start)?;
    terminal.expect("begun", PATIENCE)?;
    std::thread::sleep(Duration::from_millis(200));
    terminal.send("\u{1a}")?;
    terminal.expect("Stopped", PATIENCE)?;
    terminal.expect("prompt> ", PATIENCE)?;
    terminal.send("fg\n")?;
    terminal.expect("sleep 1000", PATIENCE)?;
    std::thread::sleep(Duration::from_millis(200));
    terminal.send("\u{3}")?;
    terminal.expect("prompt> ", PATIENCE)?;
    terminal.send("echo status $?\n")?;
    terminal.expect("status 130", PATIENCE)?;
    terminal.send("exit 5\n")?;
    assert_eq!(terminal.wait()?, Some(5));
    Ok(())
}

/// `exec` joins all of them, by the number that `list` and the table of processes of the host show.
fn exec_joins_them(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    environment
        .cista(["create", "-n", "own"])
        .arg(image)
        .check()?;
    let mut container = environment
        .cista([
            "start", "--pid", "--net", "--ipc", "--uts", "-r", "own", "sh", "-c",
        ])
        .arg("hostname inside; echo ready; exec cat")
        .stdin_pipe()
        .spawn()?;
    container.wait_for_stdout("ready", PATIENCE)?;
    let script =
        "hostname; readlink /proc/1/comm; cat /proc/1/comm /proc/2/comm; ls /sys/class/net; exit 9";
    let joined = environment
        .cista(["exec", "own", "sh", "-c", script])
        .run()?;
    assert_eq!(joined.code(), Some(9), "{}", joined.error_text());
    assert_eq!(joined.text(), "inside\ncista-init\ncat\nlo");
    let table = environment.cista(["list", "-f"]).text()?;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 2, "the helpers are no part of it: {table}");
    let pid = lines[1].split_whitespace().nth(1).unwrap_or_default();
    assert!(process::children(container.pid()).contains(&pid.parse().unwrap_or(0)));
    let by_number = environment.cista(["exec", pid, "hostname"]).text()?;
    assert_eq!(by_number, "inside");
    let helper = container.pid().to_string();
    let refused = environment.cista(["exec", &helper, "true"]).run()?;
    assert_clear_error(&refused, 125, &[&helper, "helper"]);
    // The program of exec is passed signals, and dies with the process that stands for it.
    let program = environment.cista(["exec", "own", "sleep", "63"]).spawn()?;
    assert!(wait_for_child(program.pid(), "sleep"));
    program.signal(Signal::TERM)?;
    assert_eq!(program.wait()?.signal(), Some(Signal::TERM.as_raw()));
    container.close_stdin();
    assert_eq!(container.wait()?.code(), Some(0));
    Ok(())
}

fn the_network_is_a_loopback_interface(environment: &TestEnvironment<'_>) -> TestResult {
    let text = shell(
        environment,
        &["--net"],
        "ls /sys/class/net; ip -o addr show lo | grep -c 127.0.0.1; (echo answer | nc -l -p 4711 >/dev/null) & sleep 0.3; nc 127.0.0.1 4711 </dev/null; touch /sys/x 2>/dev/null && echo written; true",
    )?;
    assert_eq!(text, "lo\n1\nanswer");
    // Control groups of either version are where they are without it.
    let groups = "ls /sys/fs/cgroup; grep -c ' /sys/fs/cgroup' /proc/self/mountinfo";
    assert_eq!(
        shell(environment, &["--net"], groups)?,
        shell(environment, &[], groups)?
    );
    Ok(())
}

fn shared_memory_is_private(environment: &TestEnvironment<'_>) -> TestResult {
    let name = format!("cista-test-{}", environment.user().uid);
    let path = std::path::Path::new("/dev/shm").join(&name);
    let touch = format!(
        "touch /dev/shm/{name}; ls /dev/shm; [ -d /dev/mqueue ] && touch /dev/mqueue/q && ls /dev/mqueue"
    );
    assert_eq!(
        shell(environment, &["--ipc"], &touch)?,
        format!("{name}\nq")
    );
    assert!(!path.exists());
    let shared = format!("touch /dev/shm/{name}");
    shell(environment, &[], &shared)?;
    assert!(path.exists(), "without --ipc it is the host's");
    let _ = std::fs::remove_file(&path);
    Ok(())
}

fn the_host_name_is_ones_own(environment: &TestEnvironment<'_>) -> TestResult {
    let before = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let text = shell(
        environment,
        &["--uts", "-r"],
        "hostname; hostname own; hostname",
    )?;
    assert_eq!(text, format!("{}\nown", before.trim()));
    let after = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    assert_eq!(before, after);
    Ok(())
}

const fn case(name: &'static str, run: fn(&TestEnvironment<'_>) -> TestResult) -> Case {
    Case {
        name,
        tier: Tier::Userns,
        who: Who::Both,
        needs: CONTAINER,
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "namespaces::each_is_asked_for_alone",
        each_is_asked_for_alone,
    ),
    case("namespaces::the_program_is_no_init", the_program_is_no_init),
    case("namespaces::signals_are_passed_on", signals_are_passed_on),
    case(
        "namespaces::the_namespace_ends_with_its_program",
        the_namespace_ends_with_its_program,
    ),
    case("namespaces::job_control_works", job_control_works),
    case("namespaces::exec_joins_them", exec_joins_them),
    case(
        "namespaces::the_network_is_a_loopback_interface",
        the_network_is_a_loopback_interface,
    ),
    case(
        "namespaces::shared_memory_is_private",
        shared_memory_is_private,
    ),
    case(
        "namespaces::the_host_name_is_ones_own",
        the_host_name_is_ones_own,
    ),
];
