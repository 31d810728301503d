//! What `--json` prints is what docs/json.md says: every field, of its type, and no other.

use std::collections::{BTreeMap, BTreeSet};

use cista_tests::case::{Case, TestResult, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::Recipe;
use cista_tests::program::Program;
use serde_json::Value;

const DOCUMENT: &str = include_str!("../../../docs/json.md");

/// The tables of the document: types by field, by the command that its heading begins with.
fn documented(command: &str) -> BTreeMap<String, BTreeSet<String>> {
    let heading = format!("## `cista {command} ");
    let sections: Vec<&str> = DOCUMENT.split("\n## ").collect();
    let section = sections
        .iter()
        .find(|section| format!("## {section} ").starts_with(&heading))
        .unwrap_or_else(|| panic!("docs/json.md has nothing about `{command}`"));
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let field = cells.next()?.strip_suffix('`')?.to_owned();
        let types = cells.next()?.split(" or ").map(str::to_owned);
        Some((field, types.collect()))
    };
    section.lines().filter_map(row).collect()
}

/// Types by field of a value, as the document names both. `opaque` fields have fields that are not ours.
fn found(
    value: &Value,
    field: &str,
    opaque: &[&str],
    fields: &mut BTreeMap<String, BTreeSet<String>>,
) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    // The document does not list the elements of an array that are objects, but their fields.
    let is_element = field.ends_with("[]") && kind == "object";
    if !field.is_empty() && !is_element {
        fields
            .entry(field.to_owned())
            .or_default()
            .insert(kind.into());
    }
    if opaque.contains(&field) {
        return;
    }
    for element in value.as_array().into_iter().flatten() {
        found(element, &format!("{field}[]"), opaque, fields);
    }
    for (key, value) in value.as_object().into_iter().flatten() {
        let dot = if field.is_empty() { "" } else { "." };
        found(value, &format!("{field}{dot}{key}"), opaque, fields);
    }
}

/// Compares what programs print with what the document says of a command. Together they show every field.
#[track_caller]
pub(crate) fn compare(command: &str, values: &[Value], opaque: &[&str]) {
    let documented = documented(command);
    let mut fields = BTreeMap::new();
    for value in values {
        found(value, "", opaque, &mut fields);
    }
    // The array that is all of it has no name.
    fields.remove("[]");
    let names = |fields: &BTreeMap<String, _>| fields.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&fields), names(&documented), "`{command}`");
    for (field, types) in &fields {
        let known = &documented[field];
        assert!(types.is_subset(known), "{command}: {field}: {types:?}");
    }
    for value in values {
        all_fields_are_there(value);
    }
}

/// Objects of one array have the same fields.
#[track_caller]
fn all_fields_are_there(value: &Value) {
    let keys = |value: &Value| -> Option<Vec<String>> {
        Some(value.as_object()?.keys().cloned().collect())
    };
    for element in value.as_array().into_iter().flatten() {
        assert_eq!(keys(element), value.get(0).and_then(keys));
        all_fields_are_there(element);
    }
    for (_, value) in value.as_object().into_iter().flatten() {
        all_fields_are_there(value);
    }
}

pub(crate) fn read(program: Program) -> Result<Value, HarnessError> {
    let outcome = program.run()?;
    serde_json::from_slice(&outcome.stdout).map_err(|source| HarnessError::Json {
        what: format!("the output ({})", outcome.error_text()),
        source,
    })
}

fn containers_and_images(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    environment
        .cista(["create", "-n", "box"])
        .arg(&image)
        .check()?;
    let running = environment
        .cista(["start", "box", "sh", "-c", "echo up; cat"])
        .stdin_pipe()
        .spawn()?;
    running.wait_for_stdout("up", std::time::Duration::from_secs(20))?;
    let list = read(environment.cista(["list", "--json"]))?;
    let mut running = running;
    running.close_stdin();
    running.wait()?;
    compare("list", &[list], &[]);

    let plain = environment.directory("root")?;
    environment
        .cista(["import", "-q", "-o", "plain.sqsh"])
        .arg(format!("dir:{}", plain.display()))
        .check()?;
    let ours = read(environment.cista(["inspect", "--json"]).arg(&image))?;
    assert!(ours["config"].is_object() && ours["digest"].is_string());
    let bare = read(environment.cista(["inspect", "--json", "plain.sqsh"]))?;
    assert!(bare["config"].is_null() && bare["digest"].is_null());
    compare("inspect", &[ours, bare], &["config"]);
    Ok(())
}

fn checks_and_settings(environment: &TestEnvironment<'_>) -> TestResult {
    // A machine that lacks something.
    let check = environment
        .cista(["check", "--json"])
        .env("CISTA_CACHE_PATH", "/proc/none")
        .check()?;
    let check: Value =
        serde_json::from_slice(&check.stdout).map_err(|source| HarnessError::Json {
            what: "`cista check --json`".into(),
            source,
        })?;
    compare("check", &[check], &[]);
    environment.configure("cista/cista.toml", "[limits]\nmax_processors = 3\n")?;
    let config = read(
        environment
            .cista(["config", "--json"])
            .env("CISTA_MOUNT", "fuse"),
    )?;
    let kinds: BTreeSet<&str> = config
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry["origin"]["kind"].as_str())
        .collect();
    assert_eq!(kinds, BTreeSet::from(["default", "file", "variable"]));
    compare("config", &[config], &[]);
    Ok(())
}

fn the_store(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    let image = environment.cista(["cache", "add", "-q", &uri]).text()?;
    let blobs = environment.store().join("blobs/sha256");
    let left = blobs.join(format!(".{}.part", "0".repeat(64)));
    std::fs::write(&left, "half").context("write", &left)?;
    environment.give(&left)?;
    let list = |limit: &str| {
        let program = environment.cista(["cache", "list", "--json"]);
        read(program.env("CISTA_CACHE_SIZE", limit))
    };
    compare("cache list", &[list("1G")?, list("")?], &[]);
    std::fs::write(&image, "damaged").context("write", &image)?;
    let verified = read(environment.cista(["cache", "verify", "--json"]))?;
    compare("cache verify", &[verified], &[]);
    std::fs::remove_file(&left).context("remove", &left)?;

    environment.cista(["cache", "verify", "--remove"]).check()?;
    environment.cista(["cache", "add", "-q", &uri]).check()?;
    let running = environment
        .cista(["run", "-q", &uri, "sh", "-c", "echo up; cat"])
        .stdin_pipe()
        .spawn()?;
    running.wait_for_stdout("up", std::time::Duration::from_secs(20))?;
    let pruned = read(environment.cista(["cache", "prune", "--all", "--json"]))?;
    let mut running = running;
    running.close_stdin();
    running.wait()?;
    let rest = read(environment.cista(["cache", "prune", "--all", "--json"]))?;
    compare("cache prune", &[pruned, rest], &[]);
    Ok(())
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case::container(
        "json::containers_and_images",
        Who::User,
        containers_and_images,
    ),
    Case::container("json::checks_and_settings", Who::User, checks_and_settings),
    Case::container("json::the_store", Who::User, the_store),
];
