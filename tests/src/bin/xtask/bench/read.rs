//! Read: what a program waits for when its files come out of an image, through each kind of mount.
//!
//! Three cases. Cold: nothing is cached. Fresh: the image file is in the page cache, the mount is new; this is what every
//! new step of a job sees. Again: the same program once more in the same container.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cista_tests::environment::{Session, TestEnvironment};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::{Packing, Recipe};
use cista_tests::program::Program;
use cista_tests::user::we_are_root;

use super::measure::{Contestant, take_turns};
use super::table::Table;
use crate::say;

const ROUNDS: usize = 5;

/// Processes of a storm.
const STORM: usize = 8;

/// What most Python programs do first.
const IMPORTS: &str = "import numpy, scipy, pandas, sklearn";

/// Runs a command twice, and prints the nanoseconds that the second took.
const TWICE: &str = "\"$@\"; a=$(date +%s%N); \"$@\"; b=$(date +%s%N); echo $((b - a))";

/// A way to have the image's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Kernel,
    Squashfuse,
    SquashfuseLl,
    Cista,
    Directory,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel squashfs",
            Self::Squashfuse => "squashfuse",
            Self::SquashfuseLl => "squashfuse_ll",
            Self::Cista => "cista",
            Self::Directory => "directory",
        }
    }
}

/// Places of one bench.
struct Places<'a> {
    environment: TestEnvironment<'a>,
    image: PathBuf,
    tree: PathBuf,
    mount: PathBuf,
}

pub(super) fn run(session: &Session, rounds: Option<usize>) -> Result<Vec<Table>, HarnessError> {
    let rounds = rounds.unwrap_or(ROUNDS);
    let environment = session.environment("bench-read", false)?;
    let image = session.imported(Recipe::Python(Packing::Gzip))?;
    let tree = environment.path("tree");
    environment
        .program("unsquashfs")
        .args(["-quiet", "-no-progress", "-no-xattrs", "-dest"])
        .arg(&tree)
        .arg(&image)
        .check()?;
    let places = Places {
        mount: environment.directory("mount")?,
        environment,
        image,
        tree,
    };
    let ways: &[Way] = if we_are_root() {
        &[Way::Kernel, Way::Cista, Way::Squashfuse, Way::Directory]
    } else {
        say("not root: neither the kernel's squashfs nor the cold case can be measured");
        &[Way::Squashfuse, Way::Cista, Way::Directory]
    };
    let python = ["python3", "-c", IMPORTS];
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let cat =
        format!("find /usr /srv -type f -print0 | xargs -0 -n 64 -P {processors} cat >/dev/null");
    let cat = ["sh", "-c", cat.as_str()];
    let mut tables = Vec::new();
    if we_are_root() {
        tables.push(places.table("Python imports, cold", rounds, ways, true, &python)?);
    }
    tables.push(places.table("Python imports, fresh start", rounds, ways, false, &python)?);
    let again: Vec<&str> = ["sh", "-c", TWICE, "sh"]
        .into_iter()
        .chain(python)
        .collect();
    tables.push(places.table(
        "Python imports, again in the same container",
        rounds,
        ways,
        false,
        &again,
    )?);
    tables.push(places.table(
        "`find | xargs -P cat` of all files, fresh start",
        rounds,
        ways,
        false,
        &cat,
    )?);
    let storm = format!("for one in $(seq {STORM}); do python3 -c '{IMPORTS}' & done; wait");
    let storm = ["sh", "-c", storm.as_str()];
    let title = format!("Python imports by {STORM} processes at once");
    if we_are_root() {
        let ways = [Way::Kernel, Way::Cista, Way::SquashfuseLl];
        let title = format!("{title}, cold");
        tables.push(places.table(&title, rounds, &ways, true, &storm)?);
    } else {
        let ways = [Way::SquashfuseLl, Way::Cista];
        let title = format!("{title}, fresh start");
        tables.push(places.table(&title, rounds, &ways, false, &storm)?);
    }
    Ok(tables)
}

impl Places<'_> {
    fn table(
        &self,
        title: &str,
        rounds: usize,
        ways: &[Way],
        cold: bool,
        command: &[&str],
    ) -> Result<Table, HarnessError> {
        let contestants = ways
            .iter()
            .map(|way| Contestant::new(way.name(), || self.once(*way, cold, command)))
            .collect();
        Ok(Table::of_times(title, &take_turns(rounds, contestants)?, 0))
    }

    /// Mounts afresh, runs the command, unmounts. A command that prints a number tells its time itself.
    fn once(&self, way: Way, cold: bool, command: &[&str]) -> Result<Duration, HarnessError> {
        if cold {
            let switch = "/proc/sys/vm/drop_caches";
            rustix::fs::sync();
            std::fs::write(switch, "3").context("write", switch)?;
        }
        let mounted = self.mount(way)?;
        let program = match way {
            Way::Cista => self.environment.cista(["start"]).arg(&self.image),
            Way::Directory => self.in_bubblewrap(&self.tree),
            Way::Kernel | Way::Squashfuse | Way::SquashfuseLl => self.in_bubblewrap(&self.mount),
        };
        let outcome = program.args(command).check()?;
        drop(mounted);
        Ok(outcome
            .text()
            .parse()
            .map_or(outcome.wall, Duration::from_nanos))
    }

    fn in_bubblewrap(&self, root: &Path) -> Program {
        self.environment
            .program("bwrap")
            .args(["--unshare-user", "--ro-bind"])
            .arg(root)
            .args(["/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"])
    }

    fn mount(&self, way: Way) -> Result<Option<Mounted<'_>>, HarnessError> {
        match way {
            Way::Kernel => Program::new("mount")
                .args(["-t", "squashfs", "-o", "loop,ro"])
                .arg(&self.image)
                .arg(&self.mount)
                .check()?,
            Way::Squashfuse | Way::SquashfuseLl => self
                .environment
                .program(way.name())
                .arg(&self.image)
                .arg(&self.mount)
                .check()?,
            Way::Cista | Way::Directory => return Ok(None),
        };
        Ok(Some(Mounted(&self.mount)))
    }
}

/// A mount, taken away when this is dropped.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let unmounted = Program::new("umount").arg(self.0).check();
        if unmounted.is_err() {
            // An ordinary user's own FUSE mount is not for umount(8).
            let _ = Program::new("fusermount").arg("-u").arg(self.0).check();
        }
    }
}
