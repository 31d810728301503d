//! `cista cache`: what is in the store, making room, damage, stores of others.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cista_tests::case::{CONTAINER, Case, Need, TestResult, Tier, Who};
use cista_tests::environment::{TestEnvironment, set_mode};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::Recipe;
use cista_tests::program::Program;
use serde_json::Value;

fn json(program: Program) -> Result<Value, HarnessError> {
    let text = program.text()?;
    serde_json::from_str(&text).map_err(|source| HarnessError::Json {
        what: "the output of `cista cache`".into(),
        source,
    })
}

fn list(environment: &TestEnvironment<'_>) -> Result<Value, HarnessError> {
    json(environment.cista(["cache", "list", "--json"]))
}

fn count(value: &Value, key: &str) -> usize {
    value[key].as_array().map_or(0, Vec::len)
}

/// Lets everything in the store have been used long ago.
fn age(store: &Path) -> TestResult {
    for directory in ["uses", "blobs/sha256", "images"] {
        Program::new("find")
            .arg(store.join(directory))
            .args([
                "-type",
                "f",
                "-exec",
                "touch",
                "-d",
                "40 days ago",
                "{}",
                "+",
            ])
            .check()?;
    }
    Ok(())
}

fn images_are_added_and_listed(environment: &TestEnvironment<'_>) -> TestResult {
    let session = environment.session();
    let uri = session.uri(Recipe::Busybox)?;
    let empty = list(environment)?;
    assert_eq!(
        (count(&empty, "images"), empty["size"].as_u64()),
        (0, Some(0))
    );
    let path = environment.cista(["cache", "add", "-q", &uri]).text()?;
    let store = environment.cista(["cache", "path"]).text()?;
    assert_eq!(store, environment.store().display().to_string());
    assert!(
        path.starts_with(&store) && Path::new(&path).is_file(),
        "{path}"
    );
    let listed = list(environment)?;
    assert_eq!(count(&listed, "images"), 1, "{listed}");
    // Layer, config, manifest.
    assert_eq!(count(&listed, "blobs"), 3, "{listed}");
    let image = &listed["images"][0];
    assert_eq!(image["path"], path.as_str());
    assert_eq!(image["reference"], uri.as_str());
    let built = session.images().get(Recipe::Busybox)?;
    assert_eq!(image["manifest"], built.layout.manifest_digest.as_str());
    let hash = cista_tests::listing::hash_of_file(Path::new(&path))?;
    assert!(
        image["digest"]
            .as_str()
            .is_some_and(|digest| digest.ends_with(&hash))
    );
    let shown = environment.cista(["cache", "list"]).check()?;
    assert!(shown.text().contains(&uri), "{}", shown.text());
    assert!(
        shown.error_text().contains("1 images"),
        "{}",
        shown.error_text()
    );
    // The second time nothing is done.
    assert_eq!(environment.cista(["cache", "add", &uri]).text()?, path);
    Ok(())
}

fn what_is_not_needed_is_removed(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    let add = || environment.cista(["cache", "add", "-q", &uri]).text();
    let prune = |options: &[&str]| {
        let program = environment.cista(["cache", "prune", "--json"]);
        json(program.args(options))
    };
    add()?;
    let nothing = prune(&[])?;
    assert_eq!(count(&nothing, "removed"), 0, "no limit is set: {nothing}");
    let would = prune(&["--all", "--dry-run"])?;
    assert_eq!(count(&would, "removed"), 4, "{would}");
    assert_eq!(count(&list(environment)?, "images"), 1);
    assert_eq!(count(&prune(&["--unused-for", "30d"])?, "removed"), 0);
    age(&environment.store())?;
    assert_eq!(count(&prune(&["--unused-for", "30d"])?, "removed"), 4);
    assert_eq!(list(environment)?["size"], 0);
    // Blobs go before the image that they were made into.
    add()?;
    age(&environment.store())?;
    let image = list(environment)?["images"][0]["size"].clone();
    prune(&["--size", &image.to_string()])?;
    let left = list(environment)?;
    assert_eq!(
        (count(&left, "images"), count(&left, "blobs")),
        (1, 0),
        "{left}"
    );
    for wrong in [&["--size", "much"][..], &["--unused-for", "30"]] {
        let refused = environment.cista(["cache", "prune"]).args(wrong).run()?;
        assert_eq!(refused.code(), Some(2), "{}", refused.error_text());
    }
    Ok(())
}

fn the_limit_is_kept(environment: &TestEnvironment<'_>) -> TestResult {
    let session = environment.session();
    let (first, second) = (session.uri(Recipe::Busybox)?, session.uri(Recipe::Debian)?);
    let add = |uri: &str, limit: &str| {
        environment
            .cista(["cache", "add", "-q", uri])
            .env("CISTA_CACHE_SIZE", limit)
            .text()
    };
    let old = add(&first, "1T")?;
    age(&environment.store())?;
    let new = add(&second, "1T")?;
    let size = list(environment)?["size"].as_u64().unwrap_or_default();
    assert!(Path::new(&old).exists() && Path::new(&new).exists());
    // One byte less than both: the older one's blobs go first.
    let limit = (size - 1).to_string();
    std::fs::remove_file(&new).context("remove", &new)?;
    add(&second, &limit)?;
    assert!(Path::new(&new).exists());
    let left = list(environment)?["size"].as_u64().unwrap_or_default();
    assert!(left < size, "{left} of {size}");
    // Whatever the limit, what was just made can be started.
    add(&second, "1K")?;
    std::fs::remove_file(&new).context("remove", &new)?;
    add(&second, "1K")?;
    assert!(Path::new(&new).exists() && !Path::new(&old).exists());
    Ok(())
}

fn what_runs_is_kept(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    let mut running = environment
        .cista([
            "run",
            "-q",
            &uri,
            "sh",
            "-c",
            "echo ready; read line; cat /etc/issue",
        ])
        .stdin_pipe()
        .spawn()?;
    running.wait_for_stdout("ready", Duration::from_secs(20))?;
    age(&environment.store())?;
    let pruned = json(environment.cista(["cache", "prune", "--all", "--json"]))?;
    assert_eq!(count(&pruned, "in_use"), 1, "{pruned}");
    let listed = list(environment)?;
    assert_eq!(listed["images"][0]["in_use"], true, "{listed}");
    running.write(b"\n")?;
    let outcome = running.wait()?;
    assert!(
        outcome.text().contains("a test image of cista"),
        "{outcome:?}"
    );
    let pruned = json(environment.cista(["cache", "prune", "--all", "--json"]))?;
    assert_eq!(count(&pruned, "in_use"), 0, "{pruned}");
    assert_eq!(pruned["left"], 0);
    Ok(())
}

fn damage_is_found(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    let image = environment.cista(["cache", "add", "-q", &uri]).text()?;
    let good = environment.cista(["cache", "verify"]).check()?;
    assert!(
        good.error_text().contains("all are good"),
        "{}",
        good.error_text()
    );
    let whole = std::fs::read(&image).context("read", &image)?;
    let mut damaged = whole.clone();
    damaged[2000] ^= 1;
    let damage = || std::fs::write(&image, &damaged).context("write", &image);
    damage()?;
    let outcome = environment.cista(["cache", "verify"]).run()?;
    assert_eq!(outcome.code(), Some(1));
    assert!(outcome.text().contains(&image), "{}", outcome.text());
    assert!(
        outcome.error_text().contains("--remove"),
        "{}",
        outcome.error_text()
    );
    let outcome = environment.cista(["cache", "verify", "--json"]).run()?;
    assert_eq!(outcome.code(), Some(1));
    let found: Value =
        serde_json::from_str(&outcome.text()).map_err(|source| HarnessError::Json {
            what: "`cista cache verify`".into(),
            source,
        })?;
    assert_eq!(
        (count(&found, "damaged"), found["files"].as_u64()),
        (1, Some(4))
    );
    environment.cista(["cache", "verify", "--remove"]).check()?;
    assert!(!Path::new(&image).exists());
    environment.cista(["cache", "add", "-q", &uri]).check()?;
    assert_eq!(std::fs::read(&image).context("read", &image)?, whole);
    // Verified on use when asked, and only then.
    damage()?;
    environment.cista(["cache", "add", "-q", &uri]).check()?;
    assert_eq!(std::fs::read(&image).context("read", &image)?, damaged);
    let mended = environment
        .cista(["cache", "add", "-q", &uri])
        .env("CISTA_VERIFY_IMAGES", "yes")
        .check()?;
    assert!(
        mended.error_text().contains("made again"),
        "{}",
        mended.error_text()
    );
    assert_eq!(std::fs::read(&image).context("read", &image)?, whole);
    Ok(())
}

fn shared_stores_are_used(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    // Below the working directory, which nobody else can write to.
    let shared: PathBuf = environment.path("shared");
    let store = shared.display().to_string();
    let prepared = environment
        .cista(["cache", "--store", &store, "add", "--shared", "-q", &uri])
        .text()?;
    assert!(Path::new(&prepared).starts_with(&shared));
    let run = || {
        environment
            .cista(["cache", "add", "-q", &uri])
            .env("CISTA_SHARED_STORES", &store)
            .check()
    };
    let outcome = run()?;
    assert_eq!(
        (outcome.text(), outcome.error_text()),
        (prepared.clone(), String::new())
    );
    assert_eq!(count(&list(environment)?, "images"), 0);
    // What others can change is not used, but its blobs are.
    set_mode(&shared, 0o775)?;
    let outcome = run()?;
    assert!(
        outcome
            .text()
            .starts_with(&environment.store().display().to_string())
    );
    let told = outcome.error_text();
    assert!(told.contains("warning:") && told.contains(&store), "{told}");
    let listed = list(environment)?;
    assert_eq!(
        (count(&listed, "images"), count(&listed, "blobs")),
        (1, 0),
        "{listed}"
    );
    // One that is missing is no reason to fail.
    std::fs::remove_dir_all(&shared).context("remove", &shared)?;
    run()?;
    Ok(())
}

/// A layer that is damaged in a store that is not ours to mend is told exactly, and fetched from the registry.
fn damaged_layers_are_fetched_again(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    let shared: PathBuf = environment.path("shared");
    let store = shared.display().to_string();
    environment
        .cista(["cache", "--store", &store, "add", "--shared", "-q", &uri])
        .check()?;
    let damage = |store: &Path| -> Result<String, HarnessError> {
        let layers = cista_tests::listing::files_below(&store.join("blobs"))?;
        let size = |path: &PathBuf| path.metadata().map_or(0, |file| file.len());
        let layer = layers.into_iter().max_by_key(size).unwrap_or_default();
        let mut bytes = std::fs::read(&layer).context("read", &layer)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&layer, bytes).context("write", &layer)?;
        let name = layer.file_name().unwrap_or_default().to_string_lossy();
        Ok(format!("sha256:{name}"))
    };
    let import = |options: &[&str]| {
        environment
            .cista(["import", "-q", "-f", "-o", "x.sqsh"])
            .args(options)
            .arg(&uri)
            .env("CISTA_SHARED_STORES", &store)
            .run()
    };
    let layer = damage(&shared)?;
    let offline = import(&["--offline"])?;
    super::bad_input::assert_clear_error(&offline, 1, &[&layer, "shared store", &store, "corrupt"]);
    let outcome = import(&[])?;
    let told = outcome.error_text();
    assert_eq!(outcome.code(), Some(0), "{told}");
    let words = ["warning: ", &layer, "shared store", &store, "fetched again"];
    assert!(words.iter().all(|word| told.contains(word)), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    let plain = environment
        .cista(["import", "-q", "--no-cache", "-o", "plain.sqsh", &uri])
        .check()?;
    assert_eq!(plain.error_text(), "");
    let [ours, reference] =
        ["x.sqsh", "plain.sqsh"].map(|name| std::fs::read(environment.path(name)));
    assert!(ours.context("read", "x.sqsh")? == reference.context("read", "plain.sqsh")?);
    // The user's own store is mended that way.
    let layer = damage(&environment.store())?;
    let outcome = import(&[])?;
    let told = outcome.error_text();
    assert_eq!(outcome.code(), Some(0), "{told}");
    assert!(told.contains(&layer) && told.contains("removed"), "{told}");
    assert_eq!(import(&[])?.error_text(), "");
    Ok(())
}

const IMAGES: &[Need] = &[Need::Image(Recipe::Busybox), Need::Image(Recipe::Debian)];

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
        "cache::images_are_added_and_listed",
        Tier::Registry,
        IMAGES,
        images_are_added_and_listed,
    ),
    case(
        "cache::what_is_not_needed_is_removed",
        Tier::Registry,
        IMAGES,
        what_is_not_needed_is_removed,
    ),
    case(
        "cache::the_limit_is_kept",
        Tier::Registry,
        IMAGES,
        the_limit_is_kept,
    ),
    case(
        "cache::what_runs_is_kept",
        Tier::Userns,
        CONTAINER,
        what_runs_is_kept,
    ),
    case(
        "cache::damage_is_found",
        Tier::Registry,
        IMAGES,
        damage_is_found,
    ),
    case(
        "cache::damaged_layers_are_fetched_again",
        Tier::Registry,
        IMAGES,
        damaged_layers_are_fetched_again,
    ),
    case(
        "cache::shared_stores_are_used",
        Tier::Registry,
        IMAGES,
        shared_stores_are_used,
    ),
];
