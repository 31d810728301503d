//! The exit statuses that docs/exit-codes.md promises: each of them is met, and no other is cista's own.

use std::collections::BTreeSet;
use std::net::TcpListener;

use cista_tests::case::{Case, TestResult, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::IoContext as _;
use cista_tests::image::Recipe;
use rustix::process::Signal;

const DOCUMENT: &str = include_str!("../../../docs/exit-codes.md");

fn documented() -> BTreeSet<i32> {
    let first_cell = |line: &str| line.strip_prefix("| ")?.split(' ').next()?.parse().ok();
    DOCUMENT.lines().filter_map(first_cell).collect()
}

fn every_documented_status_is_met(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let image = image.display().to_string();
    environment.write("no-program", "no program", 0o755)?;
    let mount = format!("{}:/no-program", environment.path("no-program").display());
    let mut met = BTreeSet::new();
    for (expected, arguments) in [
        (0, &["list"][..]),
        (1, &["inspect", "no-such-file"]),
        (1, &["remove", "-f", "no-such-container"]),
        (1, &["config", "no.such_setting"]),
        (1, &["digest", "nonsense:"]),
        (2, &["no-such-command"]),
        (2, &["start", "--no-such-option"]),
        (2, &["start"]),
        (2, &["--log-format", "xml", "list"]),
        (125, &["start", "no-such-container"]),
        (125, &["start", "-m", "/no/such:/mnt", &image, "true"]),
        (125, &["run", "nonsense:", "true"]),
        (125, &["exec", "no-such-container", "true"]),
        (125, &["batch", "no-such-script"]),
        (126, &["start", &image, "/etc"]),
        (126, &["start", "-m", &mount, &image, "/no-program"]),
        (127, &["start", &image, "no-such-program"]),
        (127, &["start", &image, "/no/such/program"]),
    ] {
        let outcome = environment.cista(arguments).run()?;
        let told = outcome.error_text();
        assert_eq!(outcome.code(), Some(expected), "{arguments:?}: {told}");
        assert_eq!(expected != 0, told.contains("error: "), "{told}");
        met.insert(expected);
    }
    // A registry that takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").context("listen at", "127.0.0.1")?;
    let address = silent.local_addr().context("ask for", "the port")?;
    for (signal, expected) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let running = environment
            .cista(["import", &format!("docker://{address}/a:1")])
            .env("CISTA_ALLOW_HTTP", "yes")
            .spawn()?;
        let _connection = silent.accept().context("accept at", "the port")?;
        running.signal(signal)?;
        let outcome = running.wait()?;
        assert_eq!(outcome.code(), Some(expected), "{}", outcome.error_text());
        met.insert(expected);
    }
    assert_eq!(met, documented());
    Ok(())
}

/// What the program of a container ends with, be it a number of ours.
fn the_status_of_a_program_is_its_own(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    for status in [0, 1, 2, 3, 125, 126, 127, 130, 255] {
        let outcome = environment
            .cista(["start"])
            .arg(&image)
            .args(["sh", "-c", &format!("exit {status}")])
            .run()?;
        assert_eq!(outcome.code(), Some(status));
        assert_eq!(outcome.error_text(), "");
    }
    let killed = environment
        .cista(["start"])
        .arg(&image)
        .args(["sh", "-c", "kill -9 $$"])
        .run()?;
    assert_eq!(killed.signal(), Some(Signal::KILL.as_raw()));
    Ok(())
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case::container(
        "exit_codes::every_documented_status_is_met",
        Who::Both,
        every_documented_status_is_met,
    ),
    Case::container(
        "exit_codes::the_status_of_a_program_is_its_own",
        Who::User,
        the_status_of_a_program_is_its_own,
    ),
];
