//! Running containers: `list` shows their processes, `exec` joins them.

use std::os::unix::fs::symlink;
use std::time::Duration;

use cista_tests::case::{CONTAINER, Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::Recipe;
use cista_tests::process;
use cista_tests::program::{Program, Running};
use cista_tests::pty::Terminal;
use rustix::process::Signal;

use super::bad_input::assert_clear_error;

const PATIENCE: Duration = Duration::from_secs(20);

/// `cista create -n NAME` of the busybox image.
fn create(environment: &TestEnvironment<'_>, name: &str, options: &[&str]) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    environment
        .cista(["create", "-n", name])
        .args(options)
        .arg(image)
        .check()
        .map(drop)
}

/// A container that runs until its stdin ends.
pub(crate) fn running(
    environment: &TestEnvironment<'_>,
    options: &[&str],
    name: &str,
) -> Result<Running, HarnessError> {
    let running = environment
        .cista(["start"])
        .args(options)
        .args([name, "sh", "-c", "cd /tmp; echo ready; exec cat"])
        .stdin_pipe()
        .spawn()?;
    running.wait_for_stdout("ready", PATIENCE)?;
    assert!(process::wait_until_it_executes(
        running.pid(),
        "cat",
        PATIENCE
    ));
    Ok(running)
}

fn end(mut running: Running) -> TestResult {
    running.close_stdin();
    assert_eq!(running.wait()?.code(), Some(0));
    Ok(())
}

/// The second column of the first line of a name, as pyxis reads it.
fn pid_in_table(
    environment: &TestEnvironment<'_>,
    name: &str,
) -> Result<Option<u32>, HarnessError> {
    let table = environment.cista(["list", "-f"]).text()?;
    let line = table
        .lines()
        .find(|line| line.split(' ').next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no line of {name}: {table}"));
    Ok(line
        .split_whitespace()
        .nth(1)
        .map(|pid| pid.parse().unwrap_or_else(|_| panic!("{table}"))))
}

fn the_table_is_what_pyxis_reads(environment: &TestEnvironment<'_>) -> TestResult {
    create(environment, "one", &[])?;
    create(environment, "two", &["--unpack"])?;
    assert_eq!(pid_in_table(environment, "one")?, None);
    let first = running(environment, &[], "one")?;
    let tree = running(environment, &["-w"], "two")?;
    let second = running(environment, &["-r"], "one")?;
    let table = environment.cista(["list", "-f"]).text()?;
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[0],
        [
            "NAME", "PID", "COMM", "STATE", "STARTED", "TIME", "MNTNS", "USERNS", "COMMAND"
        ]
    );
    let found: Vec<(&str, &str, &str, &str)> = lines[1..]
        .iter()
        .map(|fields| (fields[0], fields[1], fields[2], fields[8]))
        .collect();
    let [first_pid, second_pid, tree_pid] = [&first, &second, &tree].map(|it| it.pid().to_string());
    assert_eq!(
        found,
        [
            ("one", first_pid.as_str(), "cat", "cat"),
            ("one", second_pid.as_str(), "cat", "cat"),
            ("two", tree_pid.as_str(), "cat", "cat"),
        ],
        "{table}"
    );
    assert_ne!(
        lines[1][6], lines[2][6],
        "two starts have two mount namespaces"
    );
    for container in [first, second, tree] {
        end(container)?;
    }
    assert_eq!(pid_in_table(environment, "one")?, None);
    Ok(())
}

fn json_tells_the_same(environment: &TestEnvironment<'_>) -> TestResult {
    create(environment, "one", &[])?;
    create(environment, "idle", &["--unpack"])?;
    let container = running(environment, &[], "one")?;
    let text = environment.cista(["list", "--json"]).text()?;
    let list: serde_json::Value =
        serde_json::from_str(&text).map_err(|source| HarnessError::Json {
            what: "the list".into(),
            source,
        })?;
    assert_eq!(list[0]["name"], "idle");
    assert_eq!(list[0]["unpacked"], true);
    assert_eq!(list[0]["processes"], serde_json::json!([]));
    assert_eq!(list[1]["name"], "one");
    let processes = list[1]["processes"].as_array().map_or(0, Vec::len);
    assert_eq!(processes, 1, "{text}");
    let process = &list[1]["processes"][0];
    assert_eq!(process["pid"], container.pid());
    assert_eq!(process["name"], "cat");
    assert_eq!(process["command"], serde_json::json!(["cat"]));
    for number in ["started", "mount_namespace", "user_namespace"] {
        assert!(process[number].as_u64() > Some(0), "{number}: {text}");
    }
    end(container)?;
    let both = environment.cista(["list", "--json", "-f"]).run()?;
    assert_clear_error(&both, 2, &["--json", "--fancy"]);
    Ok(())
}

/// A fault of enroot: with a data path that is a link, running containers were not seen, and a second one started silently.
fn a_linked_data_path_hides_nothing(environment: &TestEnvironment<'_>) -> TestResult {
    let real = environment.directory("real")?;
    let link = environment.path("link");
    symlink(&real, &link).context("link", &link)?;
    let through = |path: &std::path::Path, args: &[&str]| {
        environment.cista(args).env("CISTA_DATA_PATH", path)
    };
    let image = environment.session().imported(Recipe::Busybox)?;
    for (name, options) in [("layered", &[][..]), ("tree", &["--unpack"])] {
        through(&link, &["create", "-n", name])
            .args(options)
            .arg(&image)
            .check()?;
        let container = through(
            &link,
            &["start", "-w", name, "sh", "-c", "echo ready; exec cat"],
        )
        .stdin_pipe()
        .spawn()?;
        container.wait_for_stdout("ready", PATIENCE)?;
        for path in [&link, &real] {
            let table = through(path, &["list", "-f"]).text()?;
            let pid = container.pid().to_string();
            let line = table.lines().find(|line| line.starts_with(name));
            assert_eq!(
                line.and_then(|line| line.split_whitespace().nth(1)),
                Some(pid.as_str()),
                "{table}"
            );
            let joined = through(path, &["exec", name, "cat", "/etc/issue"]).text()?;
            assert_eq!(joined, "a test image of cista");
        }
        end(container)?;
    }
    Ok(())
}

fn exec_joins_by_number_and_by_name(environment: &TestEnvironment<'_>) -> TestResult {
    create(environment, "box", &[])?;
    let container = running(environment, &["-w", "-e", "MARK=a b"], "box")?;
    let pid = container.pid().to_string();
    let script = "echo in >/home/x; echo $MARK $PWD; readlink /proc/self/ns/mnt";
    let mount_namespace = std::fs::read_link(format!("/proc/{pid}/ns/mnt"))
        .context("read", "/proc")?
        .display()
        .to_string();
    for target in [pid.as_str(), "box"] {
        let text = environment
            .cista(["exec", target, "sh", "-c", script])
            .text()?;
        assert_eq!(text, format!("a b /tmp\n{mount_namespace}"));
    }
    let text = environment
        .cista(["exec", "-e", "MARK=other", "-e", "HOME", "box", "sh", "-c"])
        .arg("echo $MARK $HOME; cat /home/x")
        .text()?;
    assert_eq!(text, format!("other {}\nin", environment.home().display()));
    // What the program of `start` has, that of `exec` has too: nothing more, nothing less.
    let state = "grep -E '^(Cap|NoNewPrivs|Seccomp|Uid|Gid|Groups)' /proc/self/status; touch /tmp/c; chown 1:1 /tmp/c && echo owned; ls /proc/self/fd";
    let started = environment
        .cista(["start", "box", "sh", "-c", state])
        .text()?;
    let joined = environment
        .cista(["exec", "box", "sh", "-c", state])
        .text()?;
    assert_eq!(started, joined);
    end(container)
}

/// Root inside keeps what root inside has, and an image file names its containers too.
fn exec_joins_root_and_images(environment: &TestEnvironment<'_>) -> TestResult {
    // A copy of one's own: other tests start the shared one.
    let shared = environment.session().imported(Recipe::Busybox)?;
    let copy = environment.path("own.sqsh");
    std::fs::copy(&shared, &copy).context("copy", &shared)?;
    let image = copy.display().to_string();
    let container = running(environment, &["-r"], &image)?;
    let state = "id -u; grep -E '^Cap' /proc/self/status";
    let started = environment
        .cista(["start", "-r", &image, "sh", "-c", state])
        .text()?;
    let joined = environment
        .cista(["exec", &image, "sh", "-c", state])
        .text()?;
    assert!(joined.starts_with("0\n"), "{joined}");
    assert_eq!(started, joined);
    end(container)
}

fn exec_is_the_program(environment: &TestEnvironment<'_>) -> TestResult {
    create(environment, "box", &[])?;
    let container = running(environment, &[], "box")?;
    for status in [0, 3, 255] {
        let outcome = environment
            .cista(["exec", "box", "sh", "-c", &format!("exit {status}")])
            .run()?;
        assert_eq!(outcome.code(), Some(status));
    }
    let program = environment
        .cista(["exec", "box", "sh", "-c", "echo $$ $PPID; exec sleep 60"])
        .spawn()?;
    let told = program.wait_for_stdout("\n", PATIENCE)?;
    let expected = format!("{} {}", program.pid(), std::process::id());
    assert_eq!(told.trim(), expected);
    program.signal(Signal::TERM)?;
    assert_eq!(program.wait()?.signal(), Some(Signal::TERM.as_raw()));
    let mut pipe = environment
        .cista(["exec", "box", "cat"])
        .stdin_pipe()
        .spawn()?;
    pipe.write(b"one\n")?;
    pipe.wait_for_stdout("one", PATIENCE)?;
    pipe.close_stdin();
    assert_eq!(pipe.wait()?.code(), Some(0));
    let missing = environment
        .cista(["exec", "box", "no-such-program"])
        .run()?;
    assert_clear_error(&missing, 127, &["no-such-program"]);
    let plain = environment.cista(["exec", "box", "/etc/passwd"]).run()?;
    assert_clear_error(&plain, 126, &["/etc/passwd"]);
    end(container)
}

fn exec_on_a_terminal(environment: &TestEnvironment<'_>) -> TestResult {
    create(environment, "box", &[])?;
    let container = running(environment, &[], "box")?;
    let command = environment.cista_on_terminal(["exec", "-e", "PS1=prompt> ", "box", "sh", "-i"]);
    let mut terminal = Terminal::start(command, environment.user())?;
    terminal.expect("prompt> ", PATIENCE)?;
    terminal.send("stty size; echo $((6 * 7))\n")?;
    let shown = terminal.expect("\n42", PATIENCE)?;
    assert!(shown.contains("40 100"), "{shown}");
    terminal.send("sleep 1000\n")?;
    terminal.expect("sleep 1000", PATIENCE)?;
    std::thread::sleep(Duration::from_millis(200));
    terminal.send("\u{3}")?;
    terminal.expect("prompt> ", PATIENCE)?;
    terminal.send("exit 5\n")?;
    assert_eq!(terminal.wait()?, Some(5));
    end(container)
}

fn what_cannot_be_joined(environment: &TestEnvironment<'_>) -> TestResult {
    create(environment, "idle", &[])?;
    let exec = |target: &str| environment.cista(["exec", target, "true"]).run();
    let host = environment.program("sleep").arg("60").spawn()?;
    assert!(process::wait_until_it_executes(
        host.pid(),
        "sleep",
        PATIENCE
    ));
    let host_pid = host.pid().to_string();
    assert_clear_error(&exec(&host_pid)?, 125, &[&host_pid, "not in a container"]);
    host.signal(Signal::KILL)?;
    host.wait()?;
    assert_clear_error(&exec(&host_pid)?, 125, &[&host_pid, "no process"]);
    for number in ["0", "4194305", "99999999999999999999"] {
        assert_clear_error(&exec(number)?, 125, &["no process"]);
    }
    if !environment.user().is_root() {
        assert_clear_error(&exec("1")?, 125, &["process 1 ", "not to you"]);
    }
    assert_clear_error(&exec("idle")?, 125, &["idle", "not running", "hint:"]);
    assert_clear_error(&exec("none")?, 125, &["none"]);
    assert_clear_error(&exec("./none.sqsh")?, 125, &["./none.sqsh"]);
    let nothing = environment.cista(["exec", "idle"]).run()?;
    assert_eq!(nothing.code(), Some(2));
    Ok(())
}

/// The container of somebody else is not joined: not by root either, who has no number in it.
fn a_foreign_container_is_not_joined(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let container = environment
        .cista(["start"])
        .arg(image)
        .args(["sh", "-c", "echo ready; exec cat"])
        .stdin_pipe()
        .spawn()?;
    container.wait_for_stdout("ready", PATIENCE)?;
    let pid = container.pid().to_string();
    let as_root = Program::new(environment.program_path())
        .args(["exec", &pid, "true"])
        .run()?;
    let uid = environment.user().uid.to_string();
    assert_clear_error(&as_root, 125, &[&pid, &uid, "not to you"]);
    end(container)
}

const fn case(
    name: &'static str,
    who: Who,
    needs: &'static [Need],
    run: fn(&TestEnvironment<'_>) -> TestResult,
) -> Case {
    Case {
        name,
        tier: Tier::Userns,
        who,
        needs,
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "join::the_table_is_what_pyxis_reads",
        Who::Both,
        CONTAINER,
        the_table_is_what_pyxis_reads,
    ),
    case(
        "join::json_tells_the_same",
        Who::User,
        CONTAINER,
        json_tells_the_same,
    ),
    case(
        "join::a_linked_data_path_hides_nothing",
        Who::Both,
        CONTAINER,
        a_linked_data_path_hides_nothing,
    ),
    case(
        "join::exec_joins_by_number_and_by_name",
        Who::Both,
        CONTAINER,
        exec_joins_by_number_and_by_name,
    ),
    case(
        "join::exec_joins_root_and_images",
        Who::Both,
        CONTAINER,
        exec_joins_root_and_images,
    ),
    case(
        "join::exec_is_the_program",
        Who::Both,
        CONTAINER,
        exec_is_the_program,
    ),
    case(
        "join::exec_on_a_terminal",
        Who::Both,
        CONTAINER,
        exec_on_a_terminal,
    ),
    case(
        "join::what_cannot_be_joined",
        Who::Both,
        CONTAINER,
        what_cannot_be_joined,
    ),
    case(
        "join::a_foreign_container_is_not_joined",
        Who::User,
        &[
            Need::Image(Recipe::Busybox),
            Need::UserNamespaces,
            Need::Fuse,
            Need::Root,
        ],
        a_foreign_container_is_not_joined,
    ),
];
