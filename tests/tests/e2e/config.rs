//! Settings: files, variables, `cista config`.

use std::path::PathBuf;

use cista_tests::case::{Case, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::{HarnessError, IoContext as _};

use super::bad_input::assert_clear_error;

/// Writes a file, and the directories above it, into the working directory.
pub(crate) fn put(
    environment: &TestEnvironment<'_>,
    name: &str,
    content: &str,
) -> Result<PathBuf, HarnessError> {
    let mut made = PathBuf::new();
    let components: Vec<_> = std::path::Path::new(name).components().collect();
    for component in &components[..components.len() - 1] {
        made.push(component);
        if !environment.path(&made).is_dir() {
            environment.directory(&made.display().to_string())?;
        }
    }
    environment.write(name, content, 0o644)
}

/// The setting that is nearest to the user wins, and `cista config` says which that was.
fn the_nearest_setting_wins(environment: &TestEnvironment<'_>) -> TestResult {
    let system = put(
        environment,
        "etc/cista.toml",
        "[limits]\nmax_processors = 1\nimport_memory = \"1M\"\n\n[paths]\ndata = \"/system/${USER}/x\"\n",
    )?;
    let further = put(
        environment,
        "etc/conf.d/10-site.toml",
        "[limits]\nimport_memory = \"2M\"\nscratch_size = \"2G\"\n",
    )?;
    put(
        environment,
        "../config/cista/cista.toml",
        "[limits]\nscratch_size = \"3G\"\n",
    )?;
    let etc = environment.path("etc");
    let shown = environment
        .cista(["config"])
        .env("CISTA_SYSCONF_PATH", &etc)
        .env("CISTA_MAX_PROCESSORS", "4")
        .text()?;
    let user = &environment.user().name;
    let base = environment.home();
    let own = base.with_file_name("config").join("cista/cista.toml");
    for (line, origin) in [
        (
            "max_processors = 4".to_owned(),
            "CISTA_MAX_PROCESSORS".to_owned(),
        ),
        (
            format!("data = /system/{user}/x"),
            format!("{}:6", system.display()),
        ),
        (
            "import_memory = 2M".to_owned(),
            format!("{}:2", further.display()),
        ),
        (
            "scratch_size = 3G".to_owned(),
            format!("{}:2", own.display()),
        ),
        ("compression = zstd:1".to_owned(), "default".to_owned()),
    ] {
        let found = shown.lines().any(|shown| {
            shown
                .split_once('#')
                .is_some_and(|(left, right)| left.trim() == line && right.trim() == origin)
        });
        assert!(found, "`{line}` from `{origin}` is not in:\n{shown}");
    }
    let value = |name: &str| {
        environment
            .cista(["config", name])
            .env("CISTA_SYSCONF_PATH", &etc)
            .text()
    };
    assert_eq!(value("limits.max_processors")?, "1");
    assert_eq!(value("CISTA_SCRATCH_SIZE")?, "3G");
    let json = environment
        .cista(["config", "--json"])
        .env("CISTA_SYSCONF_PATH", &etc)
        .text()?;
    let list: serde_json::Value =
        serde_json::from_str(&json).map_err(|source| HarnessError::Json {
            what: "`cista config --json`".into(),
            source,
        })?;
    let entry = list
        .as_array()
        .into_iter()
        .flatten()
        .find(|entry| entry["key"] == "import_memory");
    assert_eq!(entry.map(|entry| &entry["value"]), Some(&"2M".into()));
    assert_eq!(entry.map(|entry| &entry["origin"]["line"]), Some(&2.into()));
    Ok(())
}

/// What a file says is what a command does.
fn a_setting_of_a_file_counts(environment: &TestEnvironment<'_>) -> TestResult {
    let data = environment.directory("elsewhere")?;
    std::fs::create_dir(data.join("old")).context("create", &data)?;
    put(
        environment,
        "../config/cista/cista.toml",
        &format!("[paths]\ndata = \"{}\"\n", data.display()),
    )?;
    assert_eq!(environment.cista(["list"]).text()?, "old");
    let variable = environment
        .cista(["list"])
        .env("CISTA_DATA_PATH", environment.path("nowhere"))
        .text()?;
    assert_eq!(variable, "");
    Ok(())
}

/// A mistake in a file is told with its place; nothing is done before.
fn mistakes_are_told_with_their_place(environment: &TestEnvironment<'_>) -> TestResult {
    for (content, words) in [
        (
            "[limits]\nmax_procesors = 3\n",
            &[
                "cista.toml:2:1:",
                "max_procesors = 3",
                "did you mean `max_processors`?",
            ][..],
        ),
        ("[limit]\n", &["cista.toml:1:2:", "did you mean `limits`?"]),
        (
            "[start]\nmount = \"loop\"\n",
            &["cista.toml:2:9:", "`auto` or `fuse` or `unpack`"],
        ),
        (
            "[paths]\ndata = \"relative\"\n",
            &["cista.toml:2:8:", "absolute"],
        ),
        ("a = \n", &["cista.toml:1:"]),
        ("[transfer]\npassword = \"hunter2\"\n", &["cista.toml:2:1:"]),
    ] {
        put(environment, "../config/cista/cista.toml", content)?;
        for (command, status) in [(&["list"][..], 1), (&["start", "x"], 125)] {
            let outcome = environment.cista(command).run()?;
            assert_clear_error(&outcome, status, words);
        }
    }
    put(environment, "../config/cista/cista.toml", "")?;
    let outcome = environment
        .cista(["list"])
        .env("CISTA_MAX_PROCESSORS", "many")
        .run()?;
    assert_clear_error(
        &outcome,
        1,
        &["CISTA_MAX_PROCESSORS", "many", "from 1 to 1024"],
    );
    let outcome = environment.cista(["config", "limits.none"]).run()?;
    assert_clear_error(&outcome, 1, &["limits.none", "hint:"]);
    Ok(())
}

/// Passwords are in no listing.
fn no_password_is_shown(environment: &TestEnvironment<'_>) -> TestResult {
    for arguments in [&["config"][..], &["config", "--json"]] {
        let shown = environment
            .cista(arguments)
            .env("CISTA_PASSWORD", "hunter2")
            .env("https_proxy", "http://me:hunter2@proxy:1")
            .text()?;
        assert!(shown.contains("http://me:…@proxy:1"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    Ok(())
}

const fn case(name: &'static str, run: fn(&TestEnvironment<'_>) -> TestResult) -> Case {
    Case {
        name,
        tier: Tier::Cli,
        who: Who::Both,
        needs: &[],
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case("config::the_nearest_setting_wins", the_nearest_setting_wins),
    case(
        "config::a_setting_of_a_file_counts",
        a_setting_of_a_file_counts,
    ),
    case(
        "config::mistakes_are_told_with_their_place",
        mistakes_are_told_with_their_place,
    ),
    case("config::no_password_is_shown", no_password_is_shown),
];
