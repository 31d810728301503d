//! What `/proc` says about processes and mounts (proc(5)).

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::HarnessError;

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

/// The processes that execute a program, found by the path that it was started from; also those that execute a copy of it in memory.
#[must_use]
pub fn executing(program: &Path) -> Vec<u32> {
    let program = program.as_os_str().as_bytes();
    let executes = |pid: &u32| {
        std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| {
            match exe.as_os_str().as_bytes() {
                COPY => first_word(*pid) == program,
                exe => exe.strip_suffix(b" (deleted)").unwrap_or(exe) == program,
            }
        })
    };
    all().into_iter().filter(executes).collect()
}

/// What `/proc/PID/exe` says of a copy of `cista` in memory.
const COPY: &[u8] = b"/memfd:cista (deleted)";

/// The first word of a process's command line.
fn first_word(pid: u32) -> Vec<u8> {
    let mut line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let end = line
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(line.len());
    line.truncate(end);
    line
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

/// The command line of a process, its words joined by spaces; empty when it has ended.
#[must_use]
pub fn command_line(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    text.trim_end().to_owned()
}

/// The name of a process, 15 bytes of it at most.
#[must_use]
pub fn name(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(text.trim_end().to_owned())
}

/// The process namespace of a process (namespaces(7)); None when it has ended or is another's.
#[must_use]
pub fn pid_namespace(pid: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// Whether the environment that a process began with has a variable of a value.
#[must_use]
pub fn has_variable(pid: u32, name: &str, value: &str) -> bool {
    let wanted = format!("{name}={value}");
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment
        .split(|byte| *byte == 0)
        .any(|variable| variable == wanted.as_bytes())
}

/// Sends a signal to a process that may have ended.
pub fn send(pid: u32, signal: Signal) -> Result<(), HarnessError> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    match number.map(|pid| kill_process(pid, signal)) {
        Some(Err(errno)) if errno != rustix::io::Errno::SRCH => Err(HarnessError::Spawn {
            program: format!("kill -{signal:?} {pid}"),
            source: errno.into(),
        }),
        _ => Ok(()),
    }
}

/// All processes that we see.
#[must_use]
pub fn all() -> Vec<u32> {
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
