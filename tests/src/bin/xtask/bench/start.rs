//! Start: from the shell's fork to the end of `true`, against bubblewrap on the unpacked tree.

use cista_tests::environment::Session;
use cista_tests::error::HarnessError;
use cista_tests::image::{Packing, Recipe};
use cista_tests::packages::find_program;

use super::measure::{Contestant, take_turns};
use super::table::Table;

const ROUNDS: usize = 100;

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
    Ok(vec![Table::of_times(
        "Start of `true` in the Python image, whole process",
        &times,
        0,
    )])
}
