//! `cista check`: what the doctor says of this machine, and of machines that lack something.

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::{TestEnvironment, set_mode};
use cista_tests::error::HarnessError;
use cista_tests::image::Recipe;
use cista_tests::program::Outcome;
use serde_json::Value;

fn report(outcome: &Outcome) -> Result<Value, HarnessError> {
    serde_json::from_slice(&outcome.stdout).map_err(|source| HarnessError::Json {
        what: "the report".into(),
        source,
    })
}

/// What is said of one thing.
fn finding<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["checks"]
        .as_array()
        .and_then(|checks| checks.iter().find(|check| check["name"] == name))
        .unwrap_or_else(|| panic!("nothing about {name}: {report}"))
}

/// `cista check` in namespaces of unshare(1), after a script has changed something there.
fn check_after(environment: &TestEnvironment<'_>, script: &str) -> Result<Outcome, HarnessError> {
    let script = format!("{script} && exec \"$0\" check --json");
    environment
        .program("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .arg(environment.program_path())
        .run()
}

/// Where the tests run, containers start: nothing that they need is missing.
fn this_machine_is_fit(environment: &TestEnvironment<'_>) -> TestResult {
    let before = environment.files()?;
    let text = environment.cista(["check"]).check()?.text();
    for line in text.lines() {
        let state = line.split("  ").next().unwrap_or_default().trim();
        let known = ["ok", "degraded", "missing"].contains(&state) || line.starts_with("  mend:");
        assert!(known, "{line}");
    }
    let outcome = environment.cista(["check", "--json"]).check()?;
    let report = report(&outcome)?;
    assert_eq!(report["ok"], true);
    for name in [
        "kernel",
        "user namespaces",
        "seccomp",
        "FUSE",
        "overlayfs",
        "container directory",
        "pid namespaces",
        "network namespaces",
    ] {
        assert_eq!(finding(&report, name)["state"], "ok", "{report}");
    }
    for check in report["checks"].as_array().into_iter().flatten() {
        let is_ok = check["state"] == "ok";
        assert_eq!(
            check["fix"].is_null(),
            is_ok,
            "what is not ok can be mended: {check}"
        );
    }
    assert_eq!(environment.files()?, before);
    Ok(())
}

fn what_is_missing_is_named(environment: &TestEnvironment<'_>) -> TestResult {
    // In a user namespace of one's own that limit can be set; it holds for those below.
    let none = check_after(environment, "echo 0 >/proc/sys/user/max_user_namespaces")?;
    assert_eq!(none.code(), Some(1), "{}", none.text());
    let told = report(&none)?;
    assert_eq!(told["ok"], false);
    let namespaces = finding(&told, "user namespaces");
    assert_eq!(namespaces["state"], "missing");
    assert_eq!(namespaces["needed"], true);
    assert_eq!(
        namespaces["fix"],
        "sysctl -w user.max_user_namespaces=65536"
    );
    let start = environment
        .program("unshare")
        .args(["--user", "--map-root-user", "sh", "-c"])
        .arg("echo 0 >/proc/sys/user/max_user_namespaces; exec \"$0\" start \"$1\" true")
        .arg(environment.program_path())
        .arg(environment.session().imported(Recipe::Busybox)?)
        .run()?;
    super::bad_input::assert_clear_error(
        &start,
        125,
        &["hint:", "sysctl -w user.max_user_namespaces"],
    );

    let no_fuse = check_after(environment, "mount -t tmpfs none /dev")?;
    assert_eq!(no_fuse.code(), Some(0), "images can still be unpacked");
    let told = report(&no_fuse)?;
    assert_eq!(finding(&told, "FUSE")["state"], "degraded");
    assert_eq!(finding(&told, "FUSE")["fix"], "modprobe fuse");

    let no_net = check_after(environment, "echo 0 >/proc/sys/user/max_net_namespaces")?;
    let told = report(&no_net)?;
    assert_eq!(no_net.code(), Some(0));
    assert_eq!(
        finding(&told, "network namespaces")["fix"],
        "sysctl -w user.max_net_namespaces=65536"
    );

    let covered = check_after(environment, "mount -t tmpfs none /proc/sys")?;
    let told = report(&covered)?;
    assert_eq!(
        finding(&told, "pid namespaces")["state"],
        "degraded",
        "{told}"
    );
    Ok(())
}

fn directories_that_cannot_be_used_are_named(environment: &TestEnvironment<'_>) -> TestResult {
    let closed = environment.directory("closed")?;
    set_mode(&closed, 0o500)?;
    for (variable, name) in [
        ("CISTA_DATA_PATH", "container directory"),
        ("CISTA_CACHE_PATH", "image cache"),
    ] {
        let outcome = environment
            .cista(["check", "--json"])
            .env(variable, closed.join("below"))
            .check()?;
        let report = report(&outcome)?;
        let found = finding(&report, name);
        assert_eq!(found["state"], "degraded", "{found}");
        assert!(
            found["fix"]
                .as_str()
                .is_some_and(|fix| fix.contains(variable)),
            "{found}"
        );
    }
    set_mode(&closed, 0o700)
}

/// overlayfs does not take another one as its upper layer, as it takes no NFS or Lustre.
fn a_directory_that_holds_no_changes_is_named(environment: &TestEnvironment<'_>) -> TestResult {
    let directories = ["lower", "upper", "work", "merged"].map(|name| environment.directory(name));
    for directory in directories {
        directory?;
    }
    let outcome = environment
        .program("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
        .arg("mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work,userxattr none merged && CISTA_DATA_PATH=merged exec \"$0\" check --json")
        .arg(environment.program_path())
        .run()?;
    let report = report(&outcome)?;
    let found = finding(&report, "container directory");
    assert_eq!(found["state"], "degraded", "{report}");
    assert!(
        found["fix"]
            .as_str()
            .is_some_and(|fix| fix.contains("CISTA_DATA_PATH"))
    );
    Ok(())
}

const CONTAINER: &[Need] = &[
    Need::Image(Recipe::Busybox),
    Need::UserNamespaces,
    Need::Fuse,
    Need::Program("unshare"),
];

const fn case(name: &'static str, who: Who, run: fn(&TestEnvironment<'_>) -> TestResult) -> Case {
    Case {
        name,
        tier: Tier::Userns,
        who,
        needs: CONTAINER,
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case("check::this_machine_is_fit", Who::Both, this_machine_is_fit),
    case(
        "check::what_is_missing_is_named",
        Who::User,
        what_is_missing_is_named,
    ),
    case(
        "check::directories_that_cannot_be_used_are_named",
        Who::User,
        directories_that_cannot_be_used_are_named,
    ),
    case(
        "check::a_directory_that_holds_no_changes_is_named",
        Who::User,
        a_directory_that_holds_no_changes_is_named,
    ),
];
