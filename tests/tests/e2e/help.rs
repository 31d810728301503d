//! `cista help` and `cista completions`: what is explained, also where settings are broken, and that shells complete with it.

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;

use super::bad_input::assert_clear_error;

fn commands_and_topics_are_explained(environment: &TestEnvironment<'_>) -> TestResult {
    // What explains the settings must not need them to be right.
    environment.configure("cista/cista.toml", "[limts]\n")?;
    let all = environment.cista(["help"]).text()?;
    assert_eq!(all, environment.cista(["--help"]).text()?);
    for word in ["import", "start", "mounts", "settings", "exit-codes"] {
        assert!(all.contains(&format!("\n  {word} ")), "{word}: {all}");
    }
    let command = environment.cista(["help", "cache", "add"]).text()?;
    assert!(command.contains("Usage: cista cache add"), "{command}");
    assert!(command.contains("--shared"), "{command}");
    let start = environment.cista(["help", "start"]).text()?;
    assert!(start.contains("Usage: cista start"), "{start}");
    let topic = environment.cista(["help", "mounts"]).text()?;
    assert!(topic.starts_with("MOUNTS OF A CONTAINER\n"), "{topic}");
    assert!(topic.contains("x-create=dir"), "{topic}");
    let settings = environment.cista(["help", "settings"]).text()?;
    assert!(settings.contains("CISTA_MAX_PROCESSORS"), "{settings}");
    for line in topic.lines().filter(|line| !line.starts_with("        ")) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    for (words, meant) in [
        (&["help", "mount"][..], "did you mean `mounts`?"),
        (&["help", "strat"], "did you mean `start`?"),
        (&["help", "cache", "ad"], "did you mean `add`?"),
        (&["help", "quite another thing"], "there are import,"),
    ] {
        let outcome = environment.cista(words).run()?;
        assert_clear_error(&outcome, 2, &[meant, "hint: `cista help` lists them all"]);
    }
    Ok(())
}

/// Lets bash complete a command line as it does at a prompt.
const COMPLETE: &str = r#"
eval "$(cat)"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
"$(complete -p cista | sed 's/.*-F \([^ ]*\).*/\1/')" cista "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

fn shells_complete(environment: &TestEnvironment<'_>) -> TestResult {
    let script = environment.cista(["completions", "bash"]).check()?.stdout;
    for (words, expected) in [
        (&["cista", "imp"][..], &["import"][..]),
        (&["cista", "start", "--r"], &["--rc", "--root", "--rw"]),
        (&["cista", "cache", "pr"], &["prune"]),
    ] {
        let completed = environment
            .program("bash")
            .args(["-c", COMPLETE, "bash"])
            .args(words)
            .stdin_bytes(script.clone())
            .check()?
            .text();
        let mut found: Vec<&str> = completed.lines().map(str::trim).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{words:?}");
    }
    for (shell, sign) in [("zsh", "#compdef cista"), ("fish", "complete -c cista")] {
        let script = environment.cista(["completions", shell]).text()?;
        assert!(script.contains(sign), "{shell}");
    }
    let wrong = environment.cista(["completions", "tcl"]).run()?;
    assert_eq!(wrong.code(), Some(2));
    Ok(())
}

const fn case(
    name: &'static str,
    needs: &'static [Need],
    run: fn(&TestEnvironment<'_>) -> TestResult,
) -> Case {
    Case {
        name,
        tier: Tier::Cli,
        who: Who::User,
        needs,
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "help::commands_and_topics_are_explained",
        &[],
        commands_and_topics_are_explained,
    ),
    case(
        "help::shells_complete",
        &[Need::Program("bash")],
        shells_complete,
    ),
];
