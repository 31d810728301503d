//! Programs that the tests need.

use std::path::Path;
use std::process::{Command, Stdio};

/// Whether the tools are there. Reports the test as skipped if not, or fails it where that is not allowed.
pub(crate) fn have(test: &str, tools: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing: Vec<_> = tools
        .iter()
        .filter(|tool| !std::env::split_paths(&path).any(|directory| directory.join(tool).exists()))
        .collect();
    if missing.is_empty() {
        return true;
    }
    assert!(
        std::env::var_os("CISTA_TEST_REQUIRE").is_none(),
        "{test} needs {missing:?}"
    );
    eprintln!("SKIPPED {test}: missing {missing:?}");
    false
}

/// Runs a program that must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Copies an image with skopeo.
pub(crate) fn skopeo_copy(from: &str, to: &str, options: &[&str]) {
    let mut arguments = vec![
        "copy",
        "--quiet",
        "--insecure-policy",
        "--dest-tls-verify=false",
    ];
    arguments.extend(options);
    arguments.extend([from, to]);
    run("skopeo", &arguments);
}

/// The path as text.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
