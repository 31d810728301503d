//! The store: one import for all who want an image, whoever dies.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cista_tests::case::{CONTAINER, Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::Recipe;
use cista_tests::listing::{files_below, hash_of_file};
use cista_tests::program::{Program, Running};
use cista_tests::registry::Registry;
use rustix::process::{Pid, Signal, kill_process};

/// How many processes want the same image at once.
const MANY: usize = 16;

/// A registry whose log is the test's own, and the reference of a small image in it.
fn small_image(environment: &TestEnvironment<'_>) -> Result<(Registry, String), HarnessError> {
    let session = environment.session();
    let image = session.images().get(Recipe::Busybox)?;
    let registry = Registry::start(&session.images().registry_storage(), &environment.home())?;
    let uri = image.uri(&registry);
    Ok((registry, uri))
}

/// How often each blob was asked for.
fn blob_requests(registry: &Registry) -> Result<BTreeMap<String, usize>, HarnessError> {
    let mut requests = BTreeMap::new();
    for line in registry.log()?.lines() {
        if let Some((_, rest)) = line.split_once("\"GET /v2/")
            && let Some((_, digest)) = rest.split_once("/blobs/")
        {
            let digest = digest.split(' ').next().unwrap_or_default().to_owned();
            *requests.entry(digest).or_insert(0) += 1;
        }
    }
    Ok(requests)
}

/// The finished images of a store.
fn images(store: &Path) -> Result<Vec<PathBuf>, HarnessError> {
    let mut files = files_below(&store.join("images"))?;
    files.retain(|path| path.extension().is_some_and(|end| end == "sqsh"));
    Ok(files)
}

/// What in a store is not finished.
fn unfinished(store: &Path) -> Result<Vec<PathBuf>, HarnessError> {
    let mut files = files_below(store)?;
    files.retain(|path| {
        let name = path.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(b".")
    });
    Ok(files)
}

/// Starts containers of an image that is not in the store, all at once, and looks what came of it.
fn start_many(environment: &TestEnvironment<'_>, program: impl Fn(&str) -> Program) -> TestResult {
    let (registry, uri) = small_image(environment)?;
    let running: Vec<Running> = (0..MANY)
        .map(|_| program(&uri).spawn())
        .collect::<Result<_, _>>()?;
    for running in running {
        let outcome = running.wait()?;
        assert_eq!(
            (outcome.text().as_str(), outcome.code()),
            ("a test image of cista", Some(0)),
            "{}",
            outcome.error_text()
        );
    }
    let requests = blob_requests(&registry)?;
    assert!(requests.len() >= 2, "{requests:?}");
    assert!(requests.values().all(|count| *count == 1), "{requests:?}");
    let store = environment.store();
    assert_eq!(images(&store)?.len(), 1);
    assert_eq!(unfinished(&store)?, Vec::<PathBuf>::new());
    Ok(())
}

fn many_starts_share_one_import(environment: &TestEnvironment<'_>) -> TestResult {
    start_many(environment, |uri| {
        environment.cista(["run", uri, "cat", "/etc/issue"])
    })
}

/// As on a file system without locks: flock(2) fails with what Lustre and NFS say then.
fn no_lock_of_the_file_system_is_needed(environment: &TestEnvironment<'_>) -> TestResult {
    let trace = |uri: &str| {
        environment
            .program("strace")
            .args(["-f", "-qqq", "--seccomp-bpf", "-e", "trace=flock"])
            .args(["-e", "inject=flock:error=ENOLCK", "-o", "trace"])
            .arg(environment.program_path())
            .args(["run", uri, "cat", "/etc/issue"])
    };
    start_many(environment, trace)
}

/// Imports into files share what they download.
fn many_imports_share_each_download(environment: &TestEnvironment<'_>) -> TestResult {
    let (registry, uri) = small_image(environment)?;
    let running: Vec<Running> = (0..MANY)
        .map(|number| {
            let output = format!("{number}.sqsh");
            environment
                .cista(["import", "-q", "-o", &output, &uri])
                .spawn()
        })
        .collect::<Result<_, _>>()?;
    for running in running {
        let outcome = running.wait()?;
        assert_eq!(outcome.code(), Some(0), "{}", outcome.error_text());
    }
    let requests = blob_requests(&registry)?;
    assert!(requests.len() >= 2, "{requests:?}");
    assert!(requests.values().all(|count| *count == 1), "{requests:?}");
    let expected = hash_of_file(&environment.path("0.sqsh"))?;
    for number in 1..MANY {
        let file = environment.path(format!("{number}.sqsh"));
        assert_eq!(hash_of_file(&file)?, expected, "{number}");
    }
    assert_eq!(unfinished(&environment.store())?, Vec::<PathBuf>::new());
    Ok(())
}

/// Pseudo-random numbers, the same in every run.
struct Random(u64);

impl Random {
    /// A number below a limit.
    fn below(&mut self, limit: u64) -> u64 {
        // Knuth's MMIX.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// The process that makes the image just now.
fn builder(store: &Path) -> Option<Pid> {
    let lease = std::fs::read_dir(store.join("images"))
        .ok()?
        .flatten()
        .find(|entry| entry.file_name().as_encoded_bytes().ends_with(b".lease"))?;
    let text = std::fs::read_to_string(lease.path()).ok()?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    let pid = json.get("owner")?.get("pid")?.as_i64()?;
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// Waits until somebody makes the image; None when all have ended before they were seen at it.
fn wait_for_builder(store: &Path, running: &mut [Running]) -> Option<Pid> {
    loop {
        let found = builder(store);
        if found.is_some() || !running.iter_mut().any(Running::is_running) {
            return found;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Kills whoever makes the image, at a moment of its work that is different each time: the others finish, with the same file.
fn the_builder_may_be_killed_at_any_moment(environment: &TestEnvironment<'_>) -> TestResult {
    const KILLS: usize = 50;
    const MOST_ROUNDS: usize = 500;
    let (_registry, uri) = small_image(environment)?;
    let start = |store: &Path| {
        environment
            .cista(["run", "-q", &uri, "true"])
            .env("CISTA_CACHE_PATH", store)
            .spawn()
    };
    // Undisturbed: the file, and how long it takes to make it.
    let first = environment.path("first");
    let mut running = vec![start(&first)?];
    wait_for_builder(&first, &mut running);
    let begun = Instant::now();
    while builder(&first).is_some() {
        std::thread::sleep(Duration::from_micros(500));
    }
    let work = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    for running in running {
        let outcome = running.wait()?;
        assert_eq!(outcome.code(), Some(0), "{}", outcome.error_text());
    }
    let expected = hash_of_file(&images(&first)?[0])?;
    let mut random = Random(4711);
    let (mut kills, mut round, mut late) = (0, 0, 0);
    while kills < KILLS {
        round += 1;
        assert!(
            round <= MOST_ROUNDS,
            "only {kills} builders were met at work"
        );
        let store = environment.path(format!("store-{round}"));
        let mut running: Vec<Running> = (0..3).map(|_| start(&store)).collect::<Result<_, _>>()?;
        if let Some(victim) = wait_for_builder(&store, &mut running) {
            std::thread::sleep(Duration::from_micros(random.below(work + work / 4)));
            // It may have finished meanwhile, and have become the container's program.
            if builder(&store) == Some(victim) && kill_process(victim, Signal::KILL).is_ok() {
                kills += 1;
            }
        }
        let mut survivors = 0;
        for running in running {
            let outcome = running.wait()?;
            if outcome.signal() == Some(9) {
                continue;
            }
            survivors += 1;
            let told = outcome.error_text();
            assert_eq!(outcome.code(), Some(0), "round {round}: {told}");
        }
        assert!(survivors >= 2, "round {round}");
        let images = images(&store)?;
        assert_eq!(images.len(), 1, "round {round}");
        assert_eq!(hash_of_file(&images[0])?, expected, "round {round}");
        // Who dies in the few microseconds between the last step and giving back its lease leaves that to the next who writes.
        if !unfinished(&store)?.is_empty() {
            late += 1;
            environment
                .cista(["cache", "prune"])
                .env("CISTA_CACHE_PATH", &store)
                .check()?;
        }
        assert_eq!(unfinished(&store)?, Vec::<PathBuf>::new(), "round {round}");
        std::fs::remove_dir_all(&store).context("remove", &store)?;
    }
    assert!(late <= 2, "{late} of {kills} dead builders left something");
    Ok(())
}

fn a_damaged_image_is_made_again(environment: &TestEnvironment<'_>) -> TestResult {
    let uri = environment.session().uri(Recipe::Busybox)?;
    let run = || {
        environment
            .cista(["run", "-q", &uri, "cat", "/etc/issue"])
            .text()
    };
    run()?;
    let image = images(&environment.store())?.remove(0);
    let whole = std::fs::read(&image).context("read", &image)?;
    let record = image.with_extension("json");
    let record_text = std::fs::read(&record).context("read", &record)?;
    let damages: [(&Path, &[u8]); 4] = [
        (&image, &whole[..whole.len() / 2]),
        (&image, b""),
        (&record, b""),
        (&record, &record_text[..20]),
    ];
    for (path, content) in damages {
        std::fs::write(path, content).context("write", path)?;
        assert_eq!(run()?, "a test image of cista", "{}", path.display());
        assert_eq!(std::fs::read(&image).context("read", &image)?, whole);
    }
    Ok(())
}

/// How many requests a registry has answered.
fn requests(registry: &Registry) -> Result<usize, HarnessError> {
    let log = registry.log()?;
    Ok(log
        .lines()
        .filter(|line| line.contains("/v2/tools/"))
        .count())
}

/// What the network is asked for is what the user allows.
fn the_registry_is_asked_as_often_as_wanted(environment: &TestEnvironment<'_>) -> TestResult {
    let (registry, uri) = small_image(environment)?;
    let run = |options: &[&str]| {
        environment
            .cista(["run", "-q"])
            .args(options)
            .args([uri.as_str(), "cat", "/etc/issue"])
            .run()
    };
    let works = |options: &[&str]| -> TestResult {
        let outcome = run(options)?;
        let told = outcome.error_text();
        assert_eq!(
            outcome.text(),
            "a test image of cista",
            "{options:?}: {told}"
        );
        Ok(())
    };
    let fails = |options: &[&str], why: &str| -> TestResult {
        let outcome = run(options)?;
        let told = outcome.error_text();
        assert_eq!(outcome.code(), Some(125), "{options:?}: {told}");
        assert!(told.contains(why) && told.contains("hint:"), "{told}");
        Ok(())
    };
    fails(&["--offline"], "is not in the store")?;
    assert_eq!(requests(&registry)?, 0, "offline is offline");
    works(&["--pull", "missing"])?;
    let before = requests(&registry)?;
    works(&["--pull", "missing"])?;
    works(&["--pull", "never"])?;
    works(&["--offline"])?;
    assert_eq!(requests(&registry)?, before);
    works(&[])?;
    works(&["--pull", "always"])?;
    assert_eq!(requests(&registry)?, before + 2, "{}", registry.log()?);
    // Without the image, its blobs do.
    let image = images(&environment.store())?.remove(0);
    std::fs::remove_file(&image).context("remove", &image)?;
    works(&["--offline"])?;
    environment
        .cista(["import", "-q", "--offline", "-o", "x.sqsh", &uri])
        .check()?;
    assert_eq!(requests(&registry)?, before + 2);
    drop(registry);
    works(&["--offline"])?;
    works(&["--pull", "missing"])?;
    fails(&[], "cannot connect")?;
    let variable = environment
        .cista(["run", "-q", &uri, "cat", "/etc/issue"])
        .env("CISTA_PULL", "never")
        .text()?;
    assert_eq!(variable, "a test image of cista");
    // Neither the image nor what it is made of.
    std::fs::remove_file(&image).context("remove", &image)?;
    for blob in files_below(&environment.store().join("blobs"))? {
        if blob.metadata().context("read", &blob)?.len() > 10_000 {
            std::fs::remove_file(&blob).context("remove", &blob)?;
        }
    }
    fails(&["--offline"], "is not in the store")?;
    assert_eq!(unfinished(&environment.store())?, Vec::<PathBuf>::new());
    let refused = run(&["--pull", "sometimes"])?;
    assert_eq!(refused.code(), Some(2), "{}", refused.error_text());
    Ok(())
}

const TRACED: &[Need] = &[
    Need::Image(Recipe::Busybox),
    Need::UserNamespaces,
    Need::Fuse,
    Need::Program("strace"),
];

const fn case(
    name: &'static str,
    who: Who,
    needs: &'static [Need],
    run: fn(&TestEnvironment<'_>) -> TestResult,
) -> Case {
    Case {
        name,
        tier: Tier::Userns,
        who,
        needs,
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "store::many_starts_share_one_import",
        Who::Both,
        CONTAINER,
        many_starts_share_one_import,
    ),
    case(
        "store::no_lock_of_the_file_system_is_needed",
        Who::User,
        TRACED,
        no_lock_of_the_file_system_is_needed,
    ),
    case(
        "store::many_imports_share_each_download",
        Who::User,
        CONTAINER,
        many_imports_share_each_download,
    ),
    case(
        "store::the_builder_may_be_killed_at_any_moment",
        Who::User,
        CONTAINER,
        the_builder_may_be_killed_at_any_moment,
    ),
    case(
        "store::the_registry_is_asked_as_often_as_wanted",
        Who::User,
        CONTAINER,
        the_registry_is_asked_as_often_as_wanted,
    ),
    case(
        "store::a_damaged_image_is_made_again",
        Who::User,
        CONTAINER,
        a_damaged_image_is_made_again,
    ),
];
