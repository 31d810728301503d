//! What `/proc` says about processes and mounts (proc(5)).

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The most memory that a process has had resident, in bytes; None when it has ended.
#[must_use]
pub fn peak_memory(pid: u32) -> Option<u64> {
    let kib: u64 = status_field(pid, "VmHWM:")?
        .strip_suffix(" kB")?
        .trim()
        .parse()
        .ok()?;
    Some(kib * 1024)
}

/// The parent of a process; None when it has ended.
#[must_use]
pub fn parent(pid: u32) -> Option<u32> {
    status_field(pid, "PPid:")?.parse().ok()
}

/// The children of a process that exist now, zombies included.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    all()
        .into_iter()
        .filter(|candidate| parent(*candidate) == Some(pid))
        .collect()
}

/// The processes that execute a program, found by the path that it was started from.
#[must_use]
pub fn executing(program: &Path) -> Vec<u32> {
    all()
        .into_iter()
        .filter(|pid| {
            std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| {
                exe == program
                    || exe.as_os_str().as_bytes().strip_suffix(b" (deleted)")
                        == Some(program.as_os_str().as_bytes())
            })
        })
        .collect()
}

/// Waits until no process executes a program any more, and says how long that took; None when one still does after
/// the limit.
#[must_use]
pub fn wait_until_none_executes(program: &Path, limit: Duration) -> Option<Duration> {
    let start = Instant::now();
    loop {
        if executing(program).is_empty() {
            return Some(start.elapsed());
        }
        if start.elapsed() > limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a process executes a program of a name (`/proc/PID/comm`); false when it does not within the limit.
#[must_use]
pub fn wait_until_it_executes(pid: u32, name: &str, limit: Duration) -> bool {
    let start = Instant::now();
    loop {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if comm.trim_end() == name {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The mount points of this mount namespace at or below a directory.
#[must_use]
pub fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(std::ffi::OsStr::from_bytes(field)))
        .filter(|mount| mount.starts_with(directory))
        .collect()
}

/// Whether a process exists and is no zombie.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    status_field(pid, "State:").is_some_and(|state| !state.starts_with(['Z', 'X']))
}

fn all() -> Vec<u32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

fn status_field(pid: u32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().to_owned())
}
