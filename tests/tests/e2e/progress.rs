//! What an import tells while it works: to a person on a terminal, to a log, to a program.

use std::time::Duration;

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::HarnessError;
use cista_tests::image::{Packing, Recipe};
use cista_tests::program::Outcome;
use cista_tests::proxy::{Proxy, Way};
use cista_tests::pty::Terminal;
use serde_json::Value;

use super::bad_input::assert_clear_error;

const PYTHON: Recipe = Recipe::Python(Packing::Gzip);

fn events(outcome: &Outcome) -> Result<Vec<Value>, HarnessError> {
    let parse = |line: &str| {
        serde_json::from_str(line).map_err(|source| HarnessError::Json {
            what: line.to_owned(),
            source,
        })
    };
    outcome.text().lines().map(parse).collect()
}

fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events
        .iter()
        .filter(|event| event["event"] == name)
        .collect()
}

/// The fields that `docs/import.md` promises.
fn events_for_programs(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(PYTHON)?;
    let image = environment.session().images().get(PYTHON)?;
    let layers = image.layout.manifest.layers.len();
    let import = |file: &str| {
        environment
            .cista(["import", "--json", "-o", file])
            .arg(&uri)
    };
    let cold = import("cold.sqsh").check()?;
    assert_eq!(cold.error_text(), "");
    let cold = events(&cold)?;
    assert_eq!(cold[0]["event"], "resolved", "{}", cold[0]);
    assert_eq!(cold[0]["digest"], image.layout.manifest_digest.as_str());
    assert_eq!(cold[0]["reference"], uri.as_str());
    for (layer, told) in image.layout.manifest.layers.iter().zip(
        cold[0]["layers"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default(),
    ) {
        assert_eq!(told["digest"], layer.digest.as_str());
        assert_eq!(told["bytes"], layer.size);
    }
    assert_eq!(named(&cold, "layer_fetched").len(), layers, "{cold:?}");
    let done = &cold[cold.len() - 1];
    assert_eq!(done["event"], "done");
    assert_eq!(done["path"], "cold.sqsh");
    let size = environment
        .path("cold.sqsh")
        .metadata()
        .map_or(0, |metadata| metadata.len());
    assert_eq!(done["bytes"], size);
    assert_eq!(done["read"], image.layout.layer_bytes());
    assert!(
        done["seconds"].is_f64() && done["content"].is_u64(),
        "{done}"
    );
    let warm = events(&import("warm.sqsh").check()?)?;
    assert_eq!(named(&warm, "layer_cached").len(), layers, "{warm:?}");
    assert!(named(&warm, "layer_fetched").is_empty(), "{warm:?}");
    // A failure is told as without it.
    let failed = environment
        .cista(["import", "--json", "-o", "x", "oci:no-such-directory"])
        .run()?;
    assert_clear_error(&failed, 1, &["no-such-directory"]);
    Ok(())
}

/// The busybox image over a way so narrow that it takes some seconds.
pub(crate) fn slow_busybox(
    environment: &TestEnvironment<'_>,
) -> Result<(Proxy, String), HarnessError> {
    let session = environment.session();
    let uri = session.uri(Recipe::Busybox)?;
    let way = Way {
        rate: Some(170_000),
        ..Way::default()
    };
    let proxy = Proxy::start(session.registry()?.address(), way)?;
    let uri = uri.replace(&session.registry()?.host(), &proxy.host());
    Ok((proxy, uri))
}

fn lines_for_a_log(environment: &TestEnvironment<'_>) -> TestResult {
    let (_proxy, uri) = slow_busybox(environment)?;
    let outcome = environment
        .cista(["import", "-o", "x.sqsh"])
        .arg(&uri)
        .check()?;
    let told = outcome.error_text();
    let lines: Vec<_> = told.lines().collect();
    // One after five seconds, more where the machine is busy, and the last.
    assert!((2..10).contains(&lines.len()), "{told}");
    // What is imported already counts once the layer is being read.
    let is_told = ["fetched", "imported"]
        .iter()
        .any(|word| lines[0].contains(word));
    assert!(is_told && lines[0].contains(" of "), "{told}");
    assert!(
        lines[lines.len() - 1].contains("x.sqsh") && lines[lines.len() - 1].contains(" s"),
        "{told}"
    );
    assert!(!told.contains('\u{1b}'), "{told:?}");
    Ok(())
}

fn bars_on_a_terminal(environment: &TestEnvironment<'_>) -> TestResult {
    let (_proxy, uri) = slow_busybox(environment)?;
    let program = environment
        .cista_on_terminal(["import", "-o", "x.sqsh"])
        .arg(&uri);
    let mut terminal = Terminal::start(program, environment.user())?;
    let limit = Duration::from_secs(20);
    let shown = terminal.expect("layer 1", limit)?;
    assert!(!shown.contains("imported"), "{shown}");
    terminal.expect("[", limit)?;
    terminal.expect("imported `docker://", limit)?;
    assert_eq!(terminal.wait()?, Some(0));
    Ok(())
}

const fn case(
    name: &'static str,
    needs: &'static [Need],
    run: fn(&TestEnvironment<'_>) -> TestResult,
) -> Case {
    Case {
        name,
        tier: Tier::Registry,
        who: Who::User,
        needs,
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "progress::events_for_programs",
        &[Need::Image(PYTHON)],
        events_for_programs,
    ),
    case(
        "progress::lines_for_a_log",
        &[Need::Image(Recipe::Busybox)],
        lines_for_a_log,
    ),
    case(
        "progress::bars_on_a_terminal",
        &[Need::Image(Recipe::Busybox)],
        bars_on_a_terminal,
    ),
];
