//! Imports that are stopped in the middle: by a signal, by a kill, by a full disk or a directory that is not ours. Nothing is left of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::{TestEnvironment, set_mode};
use cista_tests::error::HarnessError;
use cista_tests::image::Recipe;
use cista_tests::listing::files_below;
use cista_tests::program::Program;
use rustix::process::Signal;

use super::bad_images::breakable;
use super::bad_input::assert_clear_error;

/// A file system of 2 MiB in a directory of the environment, unmounted at the end.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(environment: &TestEnvironment<'_>, place: &'a Path) -> Result<Self, HarnessError> {
        Program::new("mount")
            .args(["-t", "tmpfs", "-o"])
            .arg(format!(
                "size=2m,mode=755,uid={},gid={}",
                environment.user().uid,
                environment.user().gid
            ))
            .arg("small")
            .arg(place)
            .check()?;
        Ok(Self(place))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Program::new("umount").arg("--lazy").arg(self.0).check();
    }
}

fn a_full_disk(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Debian)?;
    let place = environment.directory("small")?;
    let disk = SmallDisk::mount(environment, &place)?;
    // First the image does not fit, then the blob in the store.
    let image = environment
        .cista(["import", "-q", "--no-cache", "-o", "small/x.sqsh", &uri])
        .run()?;
    assert_clear_error(&image, 1, &["no space left", "hint:"]);
    assert_eq!(files_below(&place)?, Vec::<PathBuf>::new());
    let store = environment
        .cista(["import", "-q", "-o", "x.sqsh", &uri])
        .env("XDG_CACHE_HOME", &place)
        .run()?;
    assert_clear_error(&store, 1, &["free", "hint:"]);
    assert_eq!(environment.files()?, ["small"]);
    let left = files_below(&place)?;
    let bytes: u64 = left
        .iter()
        .map(|path| path.metadata().map_or(0, |file| file.len()))
        .sum();
    assert!(bytes < 1 << 20, "{left:?}");
    drop(disk);
    Ok(())
}

fn a_directory_that_is_not_ours(environment: &TestEnvironment<'_>) -> TestResult {
    let (root, _) = breakable(environment, "layout")?;
    let uri = format!("oci:{}:1", root.display());
    let closed = environment.directory("closed")?;
    set_mode(&closed, 0o555)?;
    let outcome = environment
        .cista(["import", "-q", "-o", "closed/x.sqsh", &uri])
        .run()?;
    assert_clear_error(&outcome, 1, &["closed", "permission denied"]);
    let outcome = environment
        .cista(["import", "-q", "-o", "no-such-directory/x.sqsh", &uri])
        .run()?;
    assert_clear_error(&outcome, 1, &["no-such-directory"]);
    set_mode(&closed, 0o755)
}

/// Starts the import of a big image, and gives it time to have written something.
fn import_in_the_middle(
    environment: &TestEnvironment<'_>,
    delay: Duration,
) -> Result<cista_tests::program::Running, HarnessError> {
    let uri = environment.session().uri(Recipe::Huge)?;
    let running = environment
        .cista(["import", "-q", "--no-cache", "-o", "x.sqsh", &uri])
        .spawn()?;
    std::thread::sleep(delay);
    Ok(running)
}

fn interrupts_in_the_middle(environment: &TestEnvironment<'_>) -> TestResult {
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        for delay in [20, 300, 1500] {
            let mut running = import_in_the_middle(environment, Duration::from_millis(delay))?;
            assert!(
                running.is_running(),
                "an import of 4 GiB is over after {delay} ms"
            );
            running.signal(signal)?;
            let outcome = running.wait()?;
            let died = outcome.signal() == Some(signal.as_raw());
            assert!(
                died || outcome.code() == Some(status),
                "{:?} {}",
                outcome.status,
                outcome.error_text()
            );
            // Caught or not: a signal during the start may come before there is a handler.
            if !died {
                assert!(
                    outcome.error_text().contains("interrupted"),
                    "{}",
                    outcome.error_text()
                );
            }
            assert_eq!(environment.files()?, Vec::<String>::new());
        }
    }
    Ok(())
}

fn a_killed_import_leaves_nothing(environment: &TestEnvironment<'_>) -> TestResult {
    for delay in [50, 400, 1200] {
        let running = import_in_the_middle(environment, Duration::from_millis(delay))?;
        running.signal(Signal::KILL)?;
        assert_eq!(running.wait()?.signal(), Some(9));
        assert_eq!(environment.files()?, Vec::<String>::new());
        assert_eq!(environment.leftovers()?, Vec::<String>::new());
    }
    Ok(())
}

/// After a kill with the store on, the next import works, and nothing of the first is left in the end.
fn a_killed_download_is_taken_over(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Debian)?;
    for delay in [10, 60, 200] {
        let running = environment
            .cista(["import", "-q", "-f", "-o", "x.sqsh", &uri])
            .spawn()?;
        std::thread::sleep(Duration::from_millis(delay));
        running.signal(Signal::KILL)?;
        running.wait()?;
    }
    environment
        .cista(["import", "-q", "-f", "-o", "x.sqsh", &uri])
        .check()?;
    assert_eq!(environment.files()?, ["x.sqsh"]);
    Ok(())
}

const BUSYBOX: &[Need] = &[Need::Image(Recipe::Busybox)];

const fn case(
    name: &'static str,
    tier: Tier,
    needs: &'static [Need],
    run: fn(&TestEnvironment<'_>) -> TestResult,
) -> Case {
    Case {
        name,
        tier,
        who: Who::User,
        needs,
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "interruptions::a_directory_that_is_not_ours",
        Tier::Registry,
        BUSYBOX,
        a_directory_that_is_not_ours,
    ),
    case(
        "interruptions::a_full_disk",
        Tier::Registry,
        &[Need::Image(Recipe::Debian), Need::Root],
        a_full_disk,
    ),
    case(
        "interruptions::interrupts_in_the_middle",
        Tier::Registry,
        &[Need::Image(Recipe::Huge)],
        interrupts_in_the_middle,
    ),
    case(
        "interruptions::a_killed_import_leaves_nothing",
        Tier::Registry,
        &[Need::Image(Recipe::Huge)],
        a_killed_import_leaves_nothing,
    ),
    case(
        "interruptions::a_killed_download_is_taken_over",
        Tier::Registry,
        &[Need::Image(Recipe::Debian)],
        a_killed_download_is_taken_over,
    ),
];
