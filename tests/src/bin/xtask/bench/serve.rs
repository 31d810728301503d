//! Serve: what the server of an image costs while programs read from it, and what a container costs a program that only computes: nothing.
//!
//! Processor time is that of the whole machine (proc(5), `/proc/stat`), since a kernel mount does its work in threads of the kernel. Nothing else may run.

use std::time::Duration;

use cista_tests::environment::{Session, TestEnvironment};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::{Packing, Recipe};
use cista_tests::process;
use cista_tests::program::Program;
use cista_tests::user::we_are_root;

use super::measure::{Contestant, take_turns};
use super::table::Table;
use crate::say;

const ROUNDS: usize = 5;
/// How long reading 4 GiB may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Reads all files of a root.
const READ_ALL: &str = "find / -xdev -type f -readable -print0 2>/dev/null | xargs -0 -n 64 -P $(nproc) cat >/dev/null";

/// Reads all files of the image of 4 GiB, which has no program, four at a time.
const READ_HUGE: &str = "\
for some in /one/ /many/0 /many/1 /many/2; do /busybox cat $some* >/dev/null & done
wait
echo read
/busybox cat";

/// Programs that print the nanoseconds that they took.
const COMPUTATIONS: [(&str, &str); 2] = [
    (
        "a loop of additions",
        "sum(number * number for number in range(30_000_000))",
    ),
    (
        "a pipe between two processes, there and back",
        "[(os.write(there[1], b'x'), os.read(back[0], 1)) for _ in range(200_000)]",
    ),
];

/// What stands around a computation.
const FRAME: &str = "\
import os, time
there, back = os.pipe(), os.pipe()
if os.fork() == 0:
    os.close(there[1])
    while os.read(there[0], 1):
        os.write(back[1], b'x')
    os._exit(0)
begin = time.monotonic_ns()
";

pub(super) fn run(session: &Session, rounds: Option<usize>) -> Result<Vec<Table>, HarnessError> {
    let rounds = rounds.unwrap_or(ROUNDS);
    let environment = session.environment("bench-serve", false)?;
    let mut tables = vec![memory(&environment)?];
    if we_are_root() {
        tables.push(processor_time(&environment, rounds)?);
        tables.extend(computations(&environment, rounds)?);
    } else {
        say(
            "not root: neither the kernel's squashfs nor a program without namespaces can be measured",
        );
    }
    Ok(tables)
}

/// Processor time of all processes and of the kernel since the machine was started.
fn busy() -> Result<Duration, HarnessError> {
    let path = "/proc/stat";
    let text = std::fs::read_to_string(path).context("read", path)?;
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    // user, nice, system; then idle and iowait; irq, softirq.
    let counted = [0, 1, 2, 5, 6].map(|at| ticks.get(at).copied().unwrap_or(0));
    let seconds =
        counted.iter().sum::<u64>() as f64 / rustix::param::clock_ticks_per_second() as f64;
    Ok(Duration::from_secs_f64(seconds))
}

/// What a command costs in processor time.
fn cost(program: Program) -> Result<Duration, HarnessError> {
    let before = busy()?;
    program.check()?;
    Ok(busy()?.saturating_sub(before))
}

fn processor_time(environment: &TestEnvironment<'_>, rounds: usize) -> Result<Table, HarnessError> {
    let image = environment
        .session()
        .imported(Recipe::Python(Packing::Gzip))?;
    let mount = environment.directory("mount")?;
    let kernel = Contestant::new("kernel squashfs", || {
        Program::new("mount")
            .args(["-t", "squashfs", "-o", "loop,ro"])
            .arg(&image)
            .arg(&mount)
            .check()?;
        let bubblewrap = environment
            .program("bwrap")
            .args(["--unshare-user", "--ro-bind"])
            .arg(&mount)
            .args(["/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"])
            .args(["sh", "-c", READ_ALL]);
        let time = cost(bubblewrap);
        Program::new("umount").arg(&mount).check()?;
        time
    });
    let ours = Contestant::new("cista", || {
        let start = environment.cista(["start"]).arg(&image);
        cost(start.args(["sh", "-c", READ_ALL]))
    });
    Ok(Table::of_times(
        "Processor time of reading all files, fresh start",
        &take_turns(rounds, vec![kernel, ours])?,
        0,
    ))
}

/// The peak of the server's memory while the image of 4 GiB is read.
fn memory(environment: &TestEnvironment<'_>) -> Result<Table, HarnessError> {
    let image = environment.session().imported(Recipe::Huge)?;
    let mut reader = environment
        .cista(["start", "--mount", "/bin/busybox:/busybox"])
        .arg(&image)
        .args(["/busybox", "sh", "-c", READ_HUGE])
        .stdin_pipe()
        .timeout(PATIENCE)
        .spawn()?;
    reader.wait_for_stdout("read", PATIENCE)?;
    let servers = process::executing(&environment.program_path());
    let peaks: Result<Vec<u64>, _> = servers.into_iter().map(peak).collect();
    reader.close_stdin();
    reader.wait()?;
    let peak = peaks?.into_iter().max().unwrap_or(0);
    let mut table = Table::new(
        "Memory of the server while 4 GiB are read",
        &["image", "peak resident", "limit"],
    );
    table.row(vec![
        "tests/huge:1".into(),
        format!("{} MiB", peak >> 10),
        "256 MiB".into(),
    ]);
    Ok(table)
}

/// The most memory that a process has had, in KiB.
fn peak(pid: u32) -> Result<u64, HarnessError> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).context("read", &path)?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(number.and_then(|number| number.parse().ok()).unwrap_or(0))
}

/// The same program without namespaces, by chroot(8) into the unpacked tree, and in a container.
fn computations(
    environment: &TestEnvironment<'_>,
    rounds: usize,
) -> Result<Vec<Table>, HarnessError> {
    let image = environment
        .session()
        .imported(Recipe::Python(Packing::Gzip))?;
    let tree = environment.path("tree");
    environment
        .program("unsquashfs")
        .args(["-quiet", "-no-progress", "-no-xattrs", "-dest"])
        .arg(&tree)
        .arg(&image)
        .check()?;
    COMPUTATIONS
        .iter()
        .map(|(name, work)| {
            let script = format!("{FRAME}{work}\nprint(time.monotonic_ns() - begin)");
            let bare = Contestant::new("without a container", || {
                told(
                    Program::new("chroot")
                        .arg(&tree)
                        .args(["/usr/bin/python3", "-c", &script]),
                )
            });
            let contained = Contestant::new("cista", || {
                told(environment.cista(["start"]).arg(&image).args([
                    "/usr/bin/python3",
                    "-c",
                    &script,
                ]))
            });
            let times = take_turns(rounds, vec![bare, contained])?;
            let title = format!("Computation in a container: {name}");
            Ok(Table::of_times(&title, &times, 0))
        })
        .collect()
}

/// The nanoseconds that a program prints.
fn told(program: Program) -> Result<Duration, HarnessError> {
    let text = program.text()?;
    let number = text.trim().parse().map_err(|_| HarnessError::Malformed {
        what: "the time of a computation".into(),
        why: text.clone(),
    })?;
    Ok(Duration::from_nanos(number))
}
