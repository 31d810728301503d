//! `cista bundle`: one executable file of an image.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cista_tests::case::{Case, TestResult, Who};
use cista_tests::environment::{TestEnvironment, set_mode};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::Recipe;
use cista_tests::process;
use rustix::process::Signal;

use super::bad_input::assert_clear_error;

const PATIENCE: Duration = Duration::from_secs(20);

/// Makes a bundle of the busybox image.
fn bundle(environment: &TestEnvironment<'_>, options: &[&str]) -> Result<PathBuf, HarnessError> {
    let image = environment.session().imported(Recipe::Busybox)?;
    environment
        .cista(["bundle", "-f", "-o", "box.run"])
        .args(options)
        .arg(image)
        .check()?;
    Ok(environment.path("box.run"))
}

fn a_bundle_is_a_program(environment: &TestEnvironment<'_>) -> TestResult {
    let file = bundle(environment, &[])?;
    let mode = std::fs::metadata(&file).context("look at", &file)?.mode();
    assert_eq!(mode & 0o111, (mode & 0o444) >> 2, "{mode:o}");
    let run = |args: &[&str]| environment.program(&file).args(args).run();
    let outcome = run(&[
        "sh",
        "-c",
        "cat /etc/issue; echo $0 $1; exit 3",
        "-x",
        "--info",
    ])?;
    assert_eq!(outcome.code(), Some(3), "{}", outcome.error_text());
    assert_eq!(outcome.text(), "a test image of cista\n-x --info");
    assert_eq!(outcome.error_text(), "");
    // The image's own command is a shell.
    let shell = environment
        .program(&file)
        .stdin_bytes("echo from stdin\n")
        .text()?;
    assert_eq!(shell, "from stdin");
    environment.directory("source")?;
    environment.write("source/file", "mounted", 0o644)?;
    let mount = format!("{}:/mnt", environment.path("source").display());
    let options = ["-r", "-w", "--pid", "-e", "A=a b", "-m", &mount, "sh", "-c"];
    let outcome = environment
        .program(&file)
        .args(options)
        .arg("id -u; echo $$ $A; cat /mnt/file; touch /home/x")
        .text()?;
    assert_eq!(outcome, "0\n2 a b\nmounted");
    assert_eq!(
        environment.files()?,
        ["box.run", "source"],
        "nothing is unpacked"
    );
    assert_clear_error(&run(&["no-such-program"])?, 127, &["no-such-program"]);
    assert_clear_error(&run(&["--no-such-option"])?, 2, &["--no-such-option"]);
    // It is an image as well, and a bundle of it is the same.
    let started = environment
        .cista(["start", "box.run", "cat", "/etc/issue"])
        .text()?;
    assert_eq!(started, "a test image of cista");
    environment
        .cista(["bundle", "-o", "second.run", "box.run"])
        .check()?;
    let size = |name: &str| std::fs::metadata(environment.path(name)).map_or(0, |it| it.len());
    assert!(size("second.run").abs_diff(size("box.run")) < 100);
    let second = environment.path("second.run");
    let text = environment
        .program(&second)
        .args(["echo", "second"])
        .text()?;
    assert_eq!(text, "second");
    Ok(())
}

/// Same process, its signals; the server goes with it, also when the file has been removed meanwhile.
fn it_is_the_program_that_was_started(environment: &TestEnvironment<'_>) -> TestResult {
    let file = bundle(environment, &[])?;
    let program = environment
        .program(&file)
        .args([
            "sh",
            "-c",
            "echo $$; read line; cat /etc/issue; exec sleep 60",
        ])
        .stdin_pipe()
        .spawn()?;
    let told = program.wait_for_stdout("\n", PATIENCE)?;
    assert_eq!(told.trim(), program.pid().to_string());
    std::fs::remove_file(&file).context("remove", &file)?;
    let mut program = program;
    program.write(b"go\n")?;
    program.wait_for_stdout("a test image", PATIENCE)?;
    program.signal(Signal::TERM)?;
    assert_eq!(program.wait()?.signal(), Some(Signal::TERM.as_raw()));
    let end = process::wait_until_none_executes(&file, PATIENCE);
    assert!(end.is_some(), "the server stays");
    Ok(())
}

fn it_tells_and_checks(environment: &TestEnvironment<'_>) -> TestResult {
    let file = bundle(environment, &["-c", "-d", "for the test"])?;
    let run = |option: &str| environment.program(&file).arg(option).run();
    let info = run("-i")?.text();
    for word in ["image:", "for the test", "sha256:", "box"] {
        assert!(info.contains(word), "{word}: {info}");
    }
    assert!(
        environment
            .program(&file)
            .arg("--help")
            .text()?
            .contains("--extract")
    );
    let verified = run("-v")?;
    assert_eq!(verified.code(), Some(0), "{}", verified.error_text());
    assert!(verified.error_text().contains("as it was put in"));
    assert!(
        verified.text().contains("user namespaces"),
        "{}",
        verified.text()
    );
    // One byte of the image changes.
    let mut bytes = std::fs::read(&file).context("read", &file)?;
    let at = bytes.len() - 5000;
    bytes[at] ^= 1;
    std::fs::write(&file, &bytes).context("write", &file)?;
    for option in ["-v", "-x", "-k"] {
        assert_clear_error(&run(option)?, 125, &["damaged", "sha256:"]);
    }
    assert_eq!(environment.files()?, ["box.run"]);
    // By a setting as well.
    let image = environment.session().imported(Recipe::Busybox)?;
    environment
        .cista(["bundle", "-o", "set.run"])
        .arg(&image)
        .env("CISTA_BUNDLE_CHECKSUM", "yes")
        .check()?;
    let info = environment
        .program(environment.path("set.run"))
        .arg("-i")
        .text()?;
    assert!(info.contains("sha256:"));
    Ok(())
}

fn it_can_be_unpacked_and_kept(environment: &TestEnvironment<'_>) -> TestResult {
    let file = bundle(environment, &[])?;
    environment.program(&file).args(["-x", "-q"]).check()?;
    let issue = environment.path("box/etc/issue");
    let text = std::fs::read_to_string(&issue).context("read", &issue)?;
    assert_eq!(text, "a test image of cista\n");
    let again = environment.program(&file).arg("-x").run()?;
    assert_clear_error(&again, 125, &["exists already"]);
    let kept = bundle(environment, &["-t", "${HOME}/kept/${NAME}"])?;
    let run = |script: &str| {
        environment
            .program(&kept)
            .env("NAME", "here")
            .args(["-k", "-q", "-w", "sh", "-c", script])
            .text()
    };
    assert_eq!(run("echo 1 >/home/x; echo first")?, "first");
    assert_eq!(run("cat /home/x")?, "1");
    let written = environment.home().join("kept/here/home/x");
    assert_eq!(
        std::fs::read_to_string(&written).context("read", &written)?,
        "1\n"
    );
    Ok(())
}

/// The user's files of settings, for whoever runs it, whose own come after.
fn it_carries_what_its_maker_adds(environment: &TestEnvironment<'_>) -> TestResult {
    let configure = |name: &str, content: &str| -> TestResult {
        environment.configure(name, content)?;
        set_mode(&environment.path("../config").join(name), 0o755)?;
        Ok(())
    };
    configure("cista/environ.d/10-a.env", "FIRST=maker\nSECOND=maker\n")?;
    configure(
        "cista/mounts.d/10-a.fstab",
        "tmpfs /carried tmpfs x-create=dir\n",
    )?;
    let hook = "#!/bin/sh\necho \"HOOKED=$ENROOT_PID\" >>\"$ENROOT_ENVIRON\"\n";
    configure("cista/hooks.d/10-a.sh", hook)?;
    let script = "echo $FIRST $SECOND ${HOOKED:+hooked}; ls -d /carried 2>/dev/null; ls /proc/self/fd | wc -l";
    let run = |file: &Path| {
        environment
            .program(file)
            .args(["sh", "-c", script])
            .env("XDG_CONFIG_HOME", environment.path("elsewhere"))
            .text()
    };
    let alone = run(&bundle(environment, &[])?)?;
    let count = alone.trim().to_owned();
    let file = bundle(environment, &["--all"])?;
    let expected = format!("maker maker hooked\n/carried\n{count}");
    assert_eq!(run(&file)?, expected);
    let info = environment.program(&file).arg("-i").text()?;
    assert!(info.contains("hooks.d/10-a.sh"), "{info}");
    // Whoever runs it has the last word.
    environment.directory("elsewhere")?;
    environment.directory("elsewhere/cista")?;
    environment.directory("elsewhere/cista/environ.d")?;
    environment.write(
        "elsewhere/cista/environ.d/10-b.env",
        "SECOND=runner\n",
        0o644,
    )?;
    let expected = format!("maker runner hooked\n/carried\n{count}");
    assert_eq!(run(&file)?, expected);
    // By the setting too; mounts that make no sense are told where it is made.
    configure("cista/mounts.d/10-a.fstab", "/a /b none x-create=nothing\n")?;
    let image = environment.session().imported(Recipe::Busybox)?;
    let refused = environment
        .cista(["bundle", "-o", "other.run"])
        .arg(&image)
        .env("CISTA_BUNDLE_ALL", "yes")
        .run()?;
    assert_clear_error(&refused, 1, &["10-a.fstab:1", "x-create"]);
    Ok(())
}

fn what_was_cut_short_says_so(environment: &TestEnvironment<'_>) -> TestResult {
    let file = bundle(environment, &[])?;
    let whole = std::fs::read(&file).context("read", &file)?;
    for length in [whole.len() - 1, whole.len() - 100_000] {
        let cut = environment.write("cut.run", &whole[..length], 0o755)?;
        for arguments in [&["true"][..], &["--info"], &["import", "x"]] {
            let outcome = environment.program(&cut).args(arguments).run()?;
            let bytes = format!("{length} of {} bytes", whole.len());
            assert_clear_error(&outcome, 125, &["cut short", &bytes, "hint:"]);
        }
    }
    // Something behind it is as wrong.
    let longer = [&whole[..], b"x"].concat();
    let longer = environment.write("longer.run", longer, 0o755)?;
    let outcome = environment.program(&longer).arg("true").run()?;
    assert_eq!(outcome.code(), Some(125), "{}", outcome.error_text());
    Ok(())
}

fn what_cannot_be_bundled(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    environment.write("image.run", "precious", 0o644)?;
    let make = |args: &[&str]| environment.cista(["bundle"]).args(args).run();
    let image = image.display().to_string();
    let exists = make(&["-o", "image.run", &image])?;
    assert_clear_error(&exists, 1, &["image.run", "hint:"]);
    environment.write("text", "no image", 0o644)?;
    assert_clear_error(&make(&["text"])?, 1, &["text", "not a usable image"]);
    assert_clear_error(&make(&["none"])?, 1, &["none"]);
    assert_clear_error(&make(&["-o", "no/where", &image])?, 1, &["directory `no`"]);
    assert_eq!(environment.files()?, ["image.run", "text"]);
    Ok(())
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case::container(
        "bundle::a_bundle_is_a_program",
        Who::Both,
        a_bundle_is_a_program,
    ),
    Case::container(
        "bundle::it_is_the_program_that_was_started",
        Who::Both,
        it_is_the_program_that_was_started,
    ),
    Case::container(
        "bundle::it_tells_and_checks",
        Who::User,
        it_tells_and_checks,
    ),
    Case::container(
        "bundle::it_can_be_unpacked_and_kept",
        Who::Both,
        it_can_be_unpacked_and_kept,
    ),
    Case::container(
        "bundle::it_carries_what_its_maker_adds",
        Who::Both,
        it_carries_what_its_maker_adds,
    ),
    Case::container(
        "bundle::what_was_cut_short_says_so",
        Who::User,
        what_was_cut_short_says_so,
    ),
    Case::container(
        "bundle::what_cannot_be_bundled",
        Who::User,
        what_cannot_be_bundled,
    ),
];
