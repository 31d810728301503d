//! `cista load`: from a registry straight to a container.

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::image::Recipe;

use super::bad_input::assert_clear_error;
use super::enroot::enroot;

/// One command makes a container, which keeps what is written to it; a second one of the same image needs no transfer.
fn one_command_makes_a_container(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    environment
        .cista(["load", "-q", "-n", "box", &uri])
        .check()?;
    environment
        .cista(["start", "-w", "box", "touch", "/kept"])
        .check()?;
    environment
        .cista(["start", "box", "cat", "/kept"])
        .check()?;
    let again = environment.cista(["load", "-n", "box", &uri]).run()?;
    assert_clear_error(&again, 1, &["`box` exists already", "hint:"]);
    environment
        .cista(["load", "-q", "-f", "-n", "box", &uri])
        .check()?;
    let fresh = environment.cista(["start", "box", "cat", "/kept"]).run()?;
    assert_ne!(fresh.code(), Some(0), "a forced load begins anew");
    // Nothing is left where the command was given, and the name comes from the image.
    assert_eq!(environment.files()?, Vec::<String>::new());
    environment.cista(["load", "-q", &uri]).check()?;
    let names = environment.cista(["list"]).text()?;
    assert!(
        names.lines().any(|name| name.contains("busybox")),
        "{names}"
    );
    enroot(environment, &["load", "-n", "other", &uri])?.check()?;
    assert_eq!(enroot(environment, &["list"])?.text()?, "other");
    Ok(())
}

fn mistakes_are_told_before_the_transfer(environment: &TestEnvironment<'_>) -> TestResult {
    for (arguments, words) in [
        (
            &["load", "-n", "a/b", "docker://localhost:1/x"][..],
            &["`a/b`"][..],
        ),
        (&["load", "nonsense"], &["nonsense"]),
        (&["load", "-n", "x", "dir:/etc"], &["dir:/etc", "hint:"]),
    ] {
        let outcome = environment.cista(arguments).run()?;
        assert_clear_error(&outcome, 1, words);
    }
    Ok(())
}

const fn case(name: &'static str, run: fn(&TestEnvironment<'_>) -> TestResult) -> Case {
    Case {
        name,
        tier: Tier::Userns,
        who: Who::Both,
        needs: &[
            Need::Image(Recipe::Busybox),
            Need::UserNamespaces,
            Need::Fuse,
        ],
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "load::one_command_makes_a_container",
        one_command_makes_a_container,
    ),
    case(
        "load::mistakes_are_told_before_the_transfer",
        mistakes_are_told_before_the_transfer,
    ),
];
