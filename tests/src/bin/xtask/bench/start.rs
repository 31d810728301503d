//! Start: from the shell's fork to the end of `true`, against bubblewrap on the unpacked tree.

use std::panic::resume_unwind;
use std::time::Duration;

use cista_tests::driver::Tree;
use cista_tests::environment::Session;
use cista_tests::error::HarnessError;
use cista_tests::image::{Packing, Recipe};
use cista_tests::packages::find_program;
use cista_tests::program::Program;

use super::measure::{Contestant, take_turns, time};
use super::table::Table;

const ROUNDS: usize = 100;
/// Starts at once.
const AT_ONCE: usize = 64;

pub(super) fn run(session: &Session, rounds: Option<usize>) -> Result<Vec<Table>, HarnessError> {
    let environment = session.environment("bench-start", false)?;
    let image = session.imported(Recipe::Python(Packing::Gzip))?;
    let tree = environment.path("tree");
    environment
        .program("unsquashfs")
        .args(["-quiet", "-no-progress", "-no-xattrs", "-dest"])
        .arg(&tree)
        .arg(&image)
        .check()?;
    environment
        .cista(["create", "-n", "tree", "--unpack"])
        .arg(&image)
        .check()?;
    environment
        .cista(["create", "-n", "layered"])
        .arg(&image)
        .check()?;
    let mut contestants = vec![
        Contestant::new("bwrap, unpacked tree", || {
            environment
                .program("bwrap")
                .args(["--unshare-user", "--bind"])
                .arg(&tree)
                .args(["/", "--dev", "/dev", "--proc", "/proc", "true"])
                .time()
        }),
        Contestant::new("cista, image", || {
            environment.cista(["start"]).arg(&image).arg("true").time()
        }),
        Contestant::new("cista, named container", || {
            environment.cista(["start", "layered", "true"]).time()
        }),
        Contestant::new("cista, unpacked tree", || {
            environment.cista(["start", "tree", "true"]).time()
        }),
    ];
    if find_program("enroot").is_some() {
        contestants.push(Contestant::new("enroot, image", || {
            environment
                .program("enroot")
                .arg("start")
                .arg(&image)
                .arg("true")
                .time()
        }));
    }
    let times = take_turns(rounds.unwrap_or(ROUNDS), contestants)?;
    let alone = Table::of_times(
        "Start of `true` in the Python image, whole process",
        &times,
        0,
    );
    let in_bubblewrap = || {
        environment
            .program("bwrap")
            .args(["--unshare-user", "--bind"])
            .arg(&tree)
            .args(["/", "--dev", "/dev", "--proc", "/proc", "true"])
    };
    let contestants = vec![
        Contestant::new("bwrap, unpacked tree", || at_once(in_bubblewrap)),
        Contestant::new("cista, image", || {
            at_once(|| environment.cista(["start"]).arg(&image).arg("true"))
        }),
        Contestant::new("cista, one after the other", || {
            let start = || environment.cista(["start"]).arg(&image).arg("true").time();
            (0..AT_ONCE).map(|_| start()).sum()
        }),
    ];
    let together = Table::of_times(
        &format!("{AT_ONCE} starts at once, until the last has ended"),
        &take_turns(rounds.unwrap_or(ROUNDS).div_ceil(10), contestants)?,
        0,
    );
    let uri = session.uri(Recipe::Python(Packing::Gzip))?;
    let run = || environment.cista(["run"]);
    run().arg(&uri).arg("true").check()?;
    let contestants = vec![
        Contestant::new("cista start, image file", || {
            environment.cista(["start"]).arg(&image).arg("true").time()
        }),
        Contestant::new("cista run --offline", || {
            run().args(["--offline", &uri, "true"]).time()
        }),
        Contestant::new("cista run, the registry asked", || {
            run().args([&uri, "true"]).time()
        }),
    ];
    let stored = Table::of_times(
        "`cista run` of an image in the store",
        &take_turns(rounds.unwrap_or(ROUNDS), contestants)?,
        0,
    );
    Ok(vec![alone, together, stored, devices(session, rounds)?])
}

/// What eight GPUs with a whole driver cost a start: against the same start on a machine that has nothing.
fn devices(session: &Session, rounds: Option<usize>) -> Result<Table, HarnessError> {
    let environment = session.environment("bench-devices", false)?;
    let image = session.imported(Recipe::Python(Packing::Gzip))?;
    let bare = Tree::empty(&environment, "bare")?;
    let full = Tree::new(&environment, "full", 8)?.with_whole_driver()?;
    let start = |tree: &Tree<'_>, options: &[&str]| {
        environment
            .cista(["start"])
            .args(options)
            .arg(&image)
            .arg("true")
            .env("CISTA_HOST_ROOT", tree.root())
            .time()
    };
    let contestants = vec![
        Contestant::new("no devices", || start(&bare, &[])),
        Contestant::new("8 GPUs there, none asked for", || start(&full, &[])),
        Contestant::new("one of 8 GPUs", || start(&full, &["--gpus", "0"])),
        Contestant::new("all of 8 GPUs", || start(&full, &["--gpus", "all"])),
    ];
    let times = take_turns(rounds.unwrap_or(ROUNDS), contestants)?;
    Ok(Table::of_times(
        "Start of `true` with a synthetic tree of NVIDIA's driver 580",
        &times,
        0,
    ))
}

/// How long so many take together.
fn at_once(program: impl Fn() -> Program + Sync) -> Result<Duration, HarnessError> {
    let (duration, results) = time(|| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE)
                .map(|_| scope.spawn(|| program().time()))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect::<Result<Vec<_>, _>>()
        })
    });
    results.map(|_| duration)
}
