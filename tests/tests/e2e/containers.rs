//! Named containers: `create`, `start`, `list`, `export`, `remove`.

use std::path::Path;
use std::time::Duration;

use cista_tests::case::{CONTAINER, Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::{Packing, Recipe};
use cista_tests::listing::{Listing, files_below, hash_of_file};
use cista_tests::program::Program;
use rustix::process::Signal;

use super::bad_input::assert_clear_error;

/// How long to wait for what should happen at once.
const LIMIT: Duration = Duration::from_secs(30);

/// `cista create -n NAME` of an image, which has to succeed.
fn create(
    environment: &TestEnvironment<'_>,
    name: &str,
    recipe: Recipe,
    options: &[&str],
) -> TestResult {
    let image = environment.session().imported(recipe)?;
    environment
        .cista(["create", "-n", name])
        .args(options)
        .arg(image)
        .check()
        .map(drop)
}

fn sh(
    environment: &TestEnvironment<'_>,
    options: &[&str],
    name: &str,
    script: &str,
) -> Result<String, HarnessError> {
    environment
        .cista(["start"])
        .args(options)
        .args([name, "sh", "-c", script])
        .text()
}

/// The journey of the issue: create, write, export, start what was exported.
fn what_is_written_is_kept_and_exported(environment: &TestEnvironment<'_>) -> TestResult {
    for (name, options) in [("layered", &[][..]), ("unpacked", &["--unpack"])] {
        create(environment, name, Recipe::Busybox, options)?;
        assert_eq!(environment.cista(["list"]).text()?, name);
        let script = "echo hi >/home/x && rm /bin/vi && mkdir -p /home/d/e && echo more >>/etc/issue && rm -r /usr && mkdir /usr && echo new >/usr/n";
        sh(environment, &["-w"], name, script)?;
        let seen =
            "cat /home/x /etc/issue /usr/n; ls -d /bin/vi /usr/bin /home/d/e 2>/dev/null; true";
        let expected = "hi\na test image of cista\nmore\nnew\n/home/d/e";
        assert_eq!(sh(environment, &[], name, seen)?, expected, "{name}");
        let file = format!("./{name}.sqsh");
        environment.cista(["export", "-o", &file, name]).check()?;
        assert_eq!(
            sh(environment, &[], &file, seen)?,
            expected,
            "exported {name}"
        );
        environment.cista(["remove", "-f", name]).check()?;
        assert_eq!(environment.cista(["list"]).text()?, "");
        let left = files_below(&environment.path("../data"))?;
        assert!(left.is_empty(), "{left:?}");
    }
    Ok(())
}

/// An export of an untouched container is the image: entry by entry.
fn an_untouched_container_exports_its_image(environment: &TestEnvironment<'_>) -> TestResult {
    let recipe = Recipe::Odd(Packing::Gzip);
    create(environment, "odd", recipe, &[])?;
    environment.cista(["start", "odd", "true"]).check()?;
    environment
        .cista(["export", "-o", "out.sqsh", "odd"])
        .check()?;
    let extract = |file: &str, to: &str| -> Result<Listing, HarnessError> {
        Program::new("unsquashfs")
            .args(["-quiet", "-no-progress", "-dest"])
            .arg(environment.path(to))
            .arg(file)
            .check()?;
        Listing::of_directory(&environment.path(to))
    };
    let image = environment.session().imported(recipe)?;
    let before = extract(&image.display().to_string(), "before")?;
    let after = extract(&environment.path("out.sqsh").display().to_string(), "after")?;
    // The root directory is that of the overlayfs' upper layer, which is as old as the container.
    let differences = before.differences(&after.without_times_of(&[""]));
    assert!(differences.is_empty(), "{differences:#?}");
    Ok(())
}

fn names_come_from_the_image_unless_given(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let copy = environment.path("some+image+1.sqsh");
    std::fs::copy(&image, &copy).context("copy", &image)?;
    environment.cista(["create"]).arg(&copy).check()?;
    assert_eq!(environment.cista(["list"]).text()?, "some+image+1");
    let again = environment.cista(["create"]).arg(&copy).run()?;
    assert_clear_error(&again, 1, &["some+image+1", "hint:"]);
    sh(environment, &["-w"], "some+image+1", "echo x >/home/x")?;
    environment.cista(["create", "-f"]).arg(&copy).check()?;
    assert_eq!(
        sh(environment, &[], "some+image+1", "ls /home")?,
        "",
        "a forced create begins anew"
    );
    // A container does not need the file that it was made from.
    std::fs::remove_file(&copy).context("remove", &copy)?;
    assert_eq!(
        sh(environment, &[], "some+image+1", "cat /etc/issue")?,
        "a test image of cista"
    );
    Ok(())
}

fn create_takes_no_time(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment
        .session()
        .imported(Recipe::Python(Packing::Gzip))?;
    let copy = environment.path("x.sqsh");
    // A file of the user on the file system of the containers: it need not be copied.
    std::fs::copy(&image, &copy).context("copy", &image)?;
    environment.give(&copy)?;
    let outcome = environment
        .cista(["create", "-n", "x"])
        .arg(&copy)
        .check()?;
    assert!(
        outcome.wall < Duration::from_millis(500),
        "{:?}",
        outcome.wall
    );
    Ok(())
}

fn removal_asks_and_is_thorough(environment: &TestEnvironment<'_>) -> TestResult {
    create(environment, "a", Recipe::Busybox, &[])?;
    create(environment, "b", Recipe::Busybox, &[])?;
    let asked = environment
        .cista(["remove", "a"])
        .stdin_bytes("n\n")
        .run()?;
    assert!(asked.error_text().contains('a'), "{}", asked.error_text());
    // A script that is not answered must not take this for done.
    let unanswered = environment.cista(["remove", "a"]).run()?;
    assert_eq!(unanswered.code(), Some(1));
    let told = unanswered.error_text();
    assert!(
        told.contains("error: container `a` was not removed"),
        "{told}"
    );
    assert!(told.contains("hint: `-f`"), "{told}");
    assert_eq!(environment.cista(["list"]).text()?, "a\nb");
    // Directories that even their owner cannot look into.
    sh(
        environment,
        &["-w"],
        "a",
        "mkdir -p /home/d/e && chmod 0 /home/d/e /home/d",
    )?;
    environment
        .cista(["remove", "a"])
        .stdin_bytes("y\n")
        .check()?;
    environment.cista(["remove", "-f", "b"]).check()?;
    assert_eq!(environment.cista(["list"]).text()?, "");
    Ok(())
}

fn readers_share_a_container(environment: &TestEnvironment<'_>) -> TestResult {
    create(environment, "shared", Recipe::Busybox, &[])?;
    sh(environment, &["-w"], "shared", "echo one >/home/x")?;
    let running = (0..4)
        .map(|_| {
            environment
                .cista(["start", "shared", "sh", "-c", "sleep 0.3; cat /home/x"])
                .spawn()
        })
        .collect::<Result<Vec<_>, HarnessError>>()?;
    for program in running {
        let outcome = program.wait()?;
        assert_eq!(
            (outcome.text().as_str(), outcome.code()),
            ("one", Some(0)),
            "{}",
            outcome.error_text()
        );
    }
    Ok(())
}

/// Two that write at once: the second is refused with a clear error, or both see one file system. Never lost writes.
fn two_writers_do_not_lose_files(environment: &TestEnvironment<'_>) -> TestResult {
    create(environment, "busy", Recipe::Busybox, &[])?;
    let mut first = environment
        .cista([
            "start",
            "-w",
            "busy",
            "sh",
            "-c",
            "echo ready; read line; echo 1 >/home/first",
        ])
        .stdin_pipe()
        .spawn()?;
    first.wait_for_stdout("ready", Duration::from_secs(20))?;
    let second = environment
        .cista(["start", "-w", "busy", "sh", "-c", "echo 2 >/home/second"])
        .run()?;
    first.write(b"go\n")?;
    assert_eq!(first.wait()?.code(), Some(0));
    let expected = if second.code() == Some(0) {
        "first\nsecond"
    } else {
        assert_clear_error(&second, 125, &["busy"]);
        "first"
    };
    assert_eq!(sh(environment, &[], "busy", "ls /home")?, expected);
    Ok(())
}

/// A running container is not pulled away under its processes without a word.
fn a_running_container_is_not_removed(environment: &TestEnvironment<'_>) -> TestResult {
    create(environment, "running", Recipe::Busybox, &[])?;
    let mut program = environment
        .cista([
            "start",
            "-w",
            "running",
            "sh",
            "-c",
            "echo ready; read line; cat /etc/issue",
        ])
        .stdin_pipe()
        .spawn()?;
    program.wait_for_stdout("ready", Duration::from_secs(20))?;
    let table = environment.cista(["list", "-f"]).text()?;
    let line = table.lines().find(|line| line.starts_with("running"));
    let pid = program.pid().to_string();
    assert_eq!(
        line.and_then(|line| line.split_whitespace().nth(1)),
        Some(pid.as_str()),
        "{table}"
    );
    program.write(b"go\n")?;
    assert!(program.wait()?.text().ends_with("a test image of cista"));
    environment.cista(["remove", "-f", "running"]).check()?;
    Ok(())
}

/// A container's file system that refuses flock(2): the run-time directory has the lock then; where that has none either, a warning says what follows.
fn writers_keep_each_other_out_without_file_locks(environment: &TestEnvironment<'_>) -> TestResult {
    create(environment, "w", Recipe::Busybox, &[])?;
    let lock = environment.path("../data/w/lock");
    let refusing = |only: Option<&Path>, script: &str| {
        let mut program = environment
            .program("strace")
            .args(["-f", "-qqq", "-e", "trace=flock"])
            .args(["-e", "inject=flock:error=ENOLCK", "-o", "trace"]);
        if let Some(path) = only {
            program = program.arg("-P").arg(path);
        }
        program
            .arg(environment.program_path())
            .args(["start", "-w", "w", "sh", "-c", script])
    };
    let mut writer = refusing(Some(&lock), "echo ready; cat")
        .stdin_pipe()
        .spawn()?;
    writer.wait_for_stdout("ready", LIMIT)?;
    let second = refusing(Some(&lock), "true").run()?;
    assert_clear_error(&second, 125, &["`w`", "write access"]);
    writer.close_stdin();
    writer.wait()?;
    let unlocked = refusing(None, "echo hi >/x").run()?;
    assert_eq!(unlocked.code(), Some(0), "{}", unlocked.error_text());
    assert!(
        unlocked.error_text().contains("has file locks"),
        "{}",
        unlocked.error_text()
    );
    assert_eq!(sh(environment, &["-w"], "w", "cat /x")?, "hi");
    Ok(())
}

/// An export depends on the container alone: not on when it is made, nor on starts that changed nothing.
fn exports_of_an_unchanged_container_are_the_same(environment: &TestEnvironment<'_>) -> TestResult {
    let export = |container: &str, epoch: Option<&str>| -> Result<String, HarnessError> {
        let file = environment.path("out.sqsh");
        let program = environment.cista(["export", "-f", "-o", "out.sqsh", container]);
        match epoch {
            Some(epoch) => program.env("SOURCE_DATE_EPOCH", epoch),
            None => program,
        }
        .check()?;
        hash_of_file(&file)
    };
    let recipe = Recipe::Busybox;
    for (first, second, options) in [("a", "b", &[][..]), ("c", "d", &["--unpack"])] {
        create(environment, first, recipe, options)?;
        let exported = export(first, None)?;
        // Time stamps have seconds.
        std::thread::sleep(Duration::from_millis(1100));
        environment.cista(["start", first, "true"]).check()?;
        assert_eq!(export(first, None)?, exported, "{first}");
        create(environment, second, recipe, options)?;
        assert_eq!(export(second, None)?, exported, "{second}");
        // What a start with write access adds, it adds once.
        let start = || environment.cista(["start", "-w", first, "true"]).check();
        start()?;
        let started = export(first, None)?;
        std::thread::sleep(Duration::from_millis(1100));
        start()?;
        assert_eq!(export(first, None)?, started, "{first}");
        // One time for everything.
        let dated = export(first, Some("86400"))?;
        assert_ne!(dated, started);
        let files = Program::new("unsquashfs")
            .args(["-UTC", "-lls"])
            .arg(environment.path("out.sqsh"))
            .text()?;
        for line in files.lines().filter(|line| line.contains("squashfs-root")) {
            assert!(line.contains("1970-01-02 00:00"), "{line}");
        }
    }
    Ok(())
}

fn an_export_does_not_overwrite(environment: &TestEnvironment<'_>) -> TestResult {
    create(environment, "x", Recipe::Busybox, &[])?;
    environment.write("x.sqsh", "precious", 0o644)?;
    let refused = environment.cista(["export", "-o", "x.sqsh", "x"]).run()?;
    assert_clear_error(&refused, 1, &["x.sqsh", "hint:"]);
    environment
        .cista(["export", "-f", "-o", "x.sqsh", "x"])
        .check()?;
    assert_eq!(environment.files()?, ["x.sqsh"]);
    Ok(())
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

/// Ctrl-C in the middle of the two that take a while: a clear end, and nothing is left. An export that was interrupted can be had again.
fn interrupts_leave_nothing_behind(environment: &TestEnvironment<'_>) -> TestResult {
    let recipe = Recipe::Python(Packing::Gzip);
    let image = environment.session().imported(recipe)?;
    let data = environment.path("../data");
    let interrupted = |program: Program, delay: u64| -> Result<bool, HarnessError> {
        let mut running = program.spawn()?;
        std::thread::sleep(Duration::from_millis(delay));
        let was_running = running.is_running();
        running.signal(Signal::INT)?;
        let outcome = running.wait()?;
        if was_running && outcome.code() == Some(130) {
            assert!(
                outcome.error_text().contains("interrupted"),
                "{}",
                outcome.error_text()
            );
            return Ok(true);
        }
        // The signal came before there was a handler, or after the work was done.
        Ok(false)
    };
    let mut caught = 0;
    for delay in [30, 100, 300] {
        let unpack = environment
            .cista(["create", "-n", "x", "--unpack"])
            .arg(&image);
        if interrupted(unpack, delay)? {
            caught += 1;
            let left = files_below(&data)?;
            assert!(left.is_empty(), "{left:?}");
        }
        environment.cista(["remove", "-f", "x"]).run()?;
    }
    assert!(caught > 0, "no signal came in the middle of an unpacking");
    environment
        .cista(["create", "-n", "y", "--unpack"])
        .arg(&image)
        .check()?;
    caught = 0;
    for delay in [30, 100, 300] {
        if interrupted(environment.cista(["export", "-o", "y.sqsh", "y"]), delay)? {
            caught += 1;
            assert_eq!(environment.files()?, Vec::<String>::new());
        }
        let _ = std::fs::remove_file(environment.path("y.sqsh"));
    }
    assert!(caught > 0, "no signal came in the middle of an export");
    Ok(())
}

/// The user of a container owns its files: permissions that keep the owner out do not keep them out of an export.
fn an_export_has_files_that_nobody_may_read(environment: &TestEnvironment<'_>) -> TestResult {
    create(environment, "secret", Recipe::Busybox, &[])?;
    let script = "echo hidden >/home/x; mkdir /home/d; echo deep >/home/d/y; chmod 0 /home/x /home/d/y; chmod 100 /home/d";
    sh(environment, &["-w"], "secret", script)?;
    environment
        .cista(["export", "-o", "out.sqsh", "secret"])
        .check()?;
    let seen = sh(environment, &[], "./out.sqsh", "cat /home/x /home/d/y")?;
    assert_eq!(seen, "hidden\ndeep");
    Ok(())
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "containers::what_is_written_is_kept_and_exported",
        Who::Both,
        CONTAINER,
        what_is_written_is_kept_and_exported,
    ),
    case(
        "containers::an_untouched_container_exports_its_image",
        Who::User,
        &[
            Need::Image(Recipe::Odd(Packing::Gzip)),
            Need::UserNamespaces,
            Need::Fuse,
            Need::Root,
            Need::Program("unsquashfs"),
        ],
        an_untouched_container_exports_its_image,
    ),
    case(
        "containers::names_come_from_the_image_unless_given",
        Who::User,
        CONTAINER,
        names_come_from_the_image_unless_given,
    ),
    case(
        "containers::create_takes_no_time",
        Who::User,
        &[
            Need::Image(Recipe::Python(Packing::Gzip)),
            Need::UserNamespaces,
            Need::Fuse,
        ],
        create_takes_no_time,
    ),
    case(
        "containers::removal_asks_and_is_thorough",
        Who::Both,
        CONTAINER,
        removal_asks_and_is_thorough,
    ),
    case(
        "containers::readers_share_a_container",
        Who::Both,
        CONTAINER,
        readers_share_a_container,
    ),
    case(
        "containers::two_writers_do_not_lose_files",
        Who::Both,
        CONTAINER,
        two_writers_do_not_lose_files,
    ),
    case(
        "containers::a_running_container_is_not_removed",
        Who::Both,
        CONTAINER,
        a_running_container_is_not_removed,
    ),
    case(
        "containers::interrupts_leave_nothing_behind",
        Who::User,
        &[Need::Image(Recipe::Python(Packing::Gzip))],
        interrupts_leave_nothing_behind,
    ),
    case(
        "containers::an_export_has_files_that_nobody_may_read",
        Who::Both,
        CONTAINER,
        an_export_has_files_that_nobody_may_read,
    ),
    case(
        "containers::exports_of_an_unchanged_container_are_the_same",
        Who::Both,
        CONTAINER,
        exports_of_an_unchanged_container_are_the_same,
    ),
    case(
        "containers::writers_keep_each_other_out_without_file_locks",
        Who::User,
        &[
            Need::Image(Recipe::Busybox),
            Need::UserNamespaces,
            Need::Fuse,
            Need::Program("strace"),
        ],
        writers_keep_each_other_out_without_file_locks,
    ),
    case(
        "containers::an_export_does_not_overwrite",
        Who::User,
        CONTAINER,
        an_export_does_not_overwrite,
    ),
];
