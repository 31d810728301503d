//! The container's process is the one that was started: its pid, its parent, its signals, its terminal, its end.

use std::time::{Duration, Instant};

use cista_tests::case::{CONTAINER, Case, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::image::Recipe;
use cista_tests::process;
use cista_tests::pty::Terminal;
use rustix::process::Signal;

use super::start::busybox;

/// How long the server of a mount may outlive the last process that used it.
const SERVER_LIMIT: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(20);

fn the_process_is_the_one_that_was_started(environment: &TestEnvironment<'_>) -> TestResult {
    let running = busybox(
        environment,
        &[],
        &["sh", "-c", "echo $$ $PPID; exec sleep 60"],
    )?
    .spawn()?;
    let pid = running.pid();
    let told = running.wait_for_stdout("\n", PATIENCE)?;
    assert_eq!(told.trim(), format!("{pid} {}", std::process::id()));
    assert_eq!(process::parent(pid), Some(std::process::id()));
    assert_eq!(
        process::children(pid),
        Vec::<u32>::new(),
        "no surprise child"
    );
    running.signal(Signal::TERM)?;
    let outcome = running.wait()?;
    assert_eq!(outcome.signal(), Some(Signal::TERM.as_raw()));
    Ok(())
}

fn signals_arrive(environment: &TestEnvironment<'_>) -> TestResult {
    for (signal, name) in [
        (Signal::TERM, "TERM"),
        (Signal::INT, "INT"),
        (Signal::HUP, "HUP"),
        (Signal::USR1, "USR1"),
        (Signal::WINCH, "WINCH"),
    ] {
        let script = format!(
            "trap 'echo got {name}; exit 7' {name}; echo ready; while :; do sleep 0.02; done"
        );
        let running = busybox(environment, &[], &["sh", "-c", &script])?.spawn()?;
        running.wait_for_stdout("ready", PATIENCE)?;
        running.signal(signal)?;
        let outcome = running.wait()?;
        assert_eq!(outcome.code(), Some(7), "{name}");
        assert_eq!(outcome.text(), format!("ready\ngot {name}"));
    }
    Ok(())
}

fn a_signal_ends_the_program(environment: &TestEnvironment<'_>) -> TestResult {
    for signal in [Signal::INT, Signal::TERM, Signal::QUIT, Signal::KILL] {
        // No shell in between: busybox's takes a SIGQUIT for itself that comes just before its exec.
        let running = busybox(environment, &[], &["sleep", "60"])?.spawn()?;
        assert!(process::wait_until_it_executes(
            running.pid(),
            "sleep",
            PATIENCE
        ));
        running.signal(signal)?;
        let outcome = running.wait()?;
        assert_eq!(outcome.signal(), Some(signal.as_raw()), "{outcome:?}");
        assert_server_goes(environment);
    }
    Ok(())
}

#[track_caller]
fn assert_server_goes(environment: &TestEnvironment<'_>) {
    let program = environment.program_path();
    match process::wait_until_none_executes(&program, Duration::from_secs(2)) {
        Some(after) => assert!(
            after <= SERVER_LIMIT,
            "the server lived for another {after:?}"
        ),
        None => panic!("processes stayed: {:?}", process::executing(&program)),
    }
}

/// A server is there while the container lives, it is not the program's child, and it goes with the last process.
fn the_server_lives_as_long_as_the_container(environment: &TestEnvironment<'_>) -> TestResult {
    // The child outlives the program that was started, and still reads from the mount.
    let script = "(sleep 0.6; cat /etc/issue >/dev/null; echo child done) & echo parent done";
    let started = Instant::now();
    let running = busybox(environment, &[], &["sh", "-c", script])?.spawn()?;
    running.wait_for_stdout("parent done", PATIENCE)?;
    let servers = process::executing(&environment.program_path());
    for server in &servers {
        assert_ne!(
            process::parent(*server),
            Some(running.pid()),
            "the server is a child of the container"
        );
        assert_ne!(
            process::parent(*server),
            Some(std::process::id()),
            "the server is a child of the caller"
        );
    }
    // The output is only at its end when the child has ended too.
    let outcome = running.wait()?;
    assert_eq!(outcome.text(), "parent done\nchild done");
    assert!(started.elapsed() >= Duration::from_millis(600));
    assert_server_goes(environment);
    Ok(())
}

/// Ctrl-C on a terminal reaches every process of the foreground group. The server must not die of it while the
/// container's program lives on.
fn job_signals_spare_the_server(environment: &TestEnvironment<'_>) -> TestResult {
    let script = "trap 'echo caught' INT TERM HUP; echo ready; while ! [ -e /tmp/over ]; do sleep 0.02; done; cat /etc/issue";
    let mut running = busybox(environment, &[], &["sh", "-c", script])?
        .own_group()
        .spawn()?;
    running.wait_for_stdout("ready", PATIENCE)?;
    for signal in ["INT", "TERM", "HUP"] {
        environment
            .program("kill")
            .args(["-s", signal, "--", &format!("-{}", running.pid())])
            .check()?;
        running.wait_for_stdout("caught", PATIENCE)?;
    }
    assert!(running.is_running());
    running.signal(Signal::KILL)?;
    running.wait()?;
    assert_server_goes(environment);
    Ok(())
}

fn stdin_ends(environment: &TestEnvironment<'_>) -> TestResult {
    let mut running = busybox(environment, &[], &["cat"])?.stdin_pipe().spawn()?;
    running.write(b"one\n")?;
    running.wait_for_stdout("one", PATIENCE)?;
    running.write(b"two\n")?;
    running.wait_for_stdout("two", PATIENCE)?;
    assert!(running.is_running());
    running.close_stdin();
    let outcome = running.wait()?;
    assert_eq!(
        (outcome.code(), outcome.text().as_str()),
        (Some(0), "one\ntwo")
    );
    Ok(())
}

/// A closed stdout ends the writer by SIGPIPE, as in any pipeline.
fn a_broken_pipe_ends_the_writer(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let script = format!(
        "{{ '{}' start '{}' yes; echo $? >&2; }} | head -n 1",
        environment.program_path().display(),
        image.display()
    );
    let outcome = environment.program("bash").args(["-c", &script]).check()?;
    assert_eq!(outcome.text(), "y");
    assert_eq!(outcome.error_text(), "141\n", "128 + SIGPIPE");
    Ok(())
}

/// A shell on a terminal: echo, the size of the window, Ctrl-C, Ctrl-Z, fg and the end of file.
fn a_terminal_session_works(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let command = environment
        .cista_on_terminal(["start", "-e", "PS1=prompt> "])
        .arg(image)
        .args(["sh", "-i"]);
    let mut terminal = Terminal::start(command, environment.user())?;
    terminal.expect("prompt> ", PATIENCE)?;
    terminal.send("tty; stty size; echo $((6 * 7))\n")?;
    // The terminal shows what is typed before what it prints.
    let shown = terminal.expect("\n42", PATIENCE)?;
    assert!(shown.contains("40 100"), "{shown}");
    assert!(!shown.contains("not a tty"), "{shown}");
    terminal.send("sleep 1000\n")?;
    terminal.expect("sleep 1000", PATIENCE)?;
    std::thread::sleep(Duration::from_millis(200));
    terminal.send("\u{3}")?;
    terminal.expect("prompt> ", PATIENCE)?;
    terminal.send("echo status $?\n")?;
    terminal.expect("status 130", PATIENCE)?;
    terminal.send("sleep 1001\n")?;
    terminal.expect("sleep 1001", PATIENCE)?;
    std::thread::sleep(Duration::from_millis(200));
    terminal.send("\u{1a}")?;
    terminal.expect("Stopped", PATIENCE)?;
    terminal.send("fg\n")?;
    terminal.expect("sleep 1001", PATIENCE)?;
    std::thread::sleep(Duration::from_millis(200));
    terminal.send("\u{3}")?;
    terminal.expect("prompt> ", PATIENCE)?;
    terminal.send("cat /etc/issue\n")?;
    terminal.expect("a test image of cista", PATIENCE)?;
    terminal.send("exit 5\n")?;
    assert_eq!(terminal.wait()?, Some(5));
    assert_server_goes(environment);
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
        "signals::the_process_is_the_one_that_was_started",
        the_process_is_the_one_that_was_started,
    ),
    case("signals::signals_arrive", signals_arrive),
    case(
        "signals::a_signal_ends_the_program",
        a_signal_ends_the_program,
    ),
    case(
        "signals::the_server_lives_as_long_as_the_container",
        the_server_lives_as_long_as_the_container,
    ),
    case(
        "signals::job_signals_spare_the_server",
        job_signals_spare_the_server,
    ),
    case("signals::stdin_ends", stdin_ends),
    case(
        "signals::a_broken_pipe_ends_the_writer",
        a_broken_pipe_ends_the_writer,
    ),
    case(
        "signals::a_terminal_session_works",
        a_terminal_session_works,
    ),
];
