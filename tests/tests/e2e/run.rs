//! `cista run`: import into the store when the image is not there, and start.

use cista_tests::case::{CONTAINER, Case, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::HarnessError;
use cista_tests::image::Recipe;
use cista_tests::listing::files_below;
use cista_tests::registry::Registry;

fn the_second_run_uses_the_store(environment: &TestEnvironment<'_>) -> TestResult {
    let session = environment.session();
    session.uri(Recipe::Busybox)?;
    let image = session.images().get(Recipe::Busybox)?;
    let registry = Registry::start(&session.images().registry_storage(), &environment.home())?;
    let uri = image.uri(&registry);
    let run = || {
        environment
            .cista(["run", &uri, "sh", "-c", "cat /etc/issue; exit 3"])
            .run()
    };
    let first = run()?;
    assert_eq!(
        (first.text().as_str(), first.code()),
        ("a test image of cista", Some(3)),
        "{}",
        first.error_text()
    );
    let requests = |registry: &Registry| -> Result<usize, HarnessError> {
        let log = registry.log()?;
        Ok(log
            .lines()
            .filter(|line| line.contains("HTTP/1.1\" 200") && line.contains("/tools/busybox/"))
            .count())
    };
    let before = requests(&registry)?;
    let second = run()?;
    assert_eq!(
        (second.text().as_str(), second.code()),
        ("a test image of cista", Some(3)),
        "{}",
        second.error_text()
    );
    let added = requests(&registry)? - before;
    assert!(
        added <= 1,
        "{added} requests for an image that is in the store: {}",
        registry.log()?
    );
    assert_eq!(
        environment.files()?,
        Vec::<String>::new(),
        "the store is the place"
    );
    let images = files_below(&environment.store().join("images"))?;
    assert!(
        images
            .iter()
            .any(|path| path.extension().is_some_and(|end| end == "sqsh")),
        "{images:?}"
    );
    Ok(())
}

fn options_of_start_are_taken(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    let text = environment
        .cista([
            "run",
            "-w",
            "-e",
            "GIVEN=yes",
            &uri,
            "sh",
            "-c",
            "echo $GIVEN >/x && cat /x",
        ])
        .text()?;
    assert_eq!(text, "yes");
    Ok(())
}

fn failures_are_those_of_import_and_start(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    let missing = environment
        .cista(["run", &format!("{uri}-no"), "true"])
        .run()?;
    super::bad_input::assert_clear_error(&missing, 125, &["1-no"]);
    let program = environment.cista(["run", &uri, "no-such-program"]).run()?;
    assert_eq!(program.code(), Some(127));
    assert!(
        program.error_text().contains("no-such-program"),
        "{}",
        program.error_text()
    );
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
        "run::the_second_run_uses_the_store",
        the_second_run_uses_the_store,
    ),
    case(
        "run::options_of_start_are_taken",
        options_of_start_are_taken,
    ),
    case(
        "run::failures_are_those_of_import_and_start",
        failures_are_those_of_import_and_start,
    ),
];
