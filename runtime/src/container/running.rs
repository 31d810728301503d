//! Which containers are running, as far as the caller may see.
//!
//! Nothing is written down about a running container that could be wrong after a crash. The root mount of a container names it: the
//! source of its overlayfs is `cista:DEVICE:INODE:NAME`, with device and inode of the container's directory (or of the image file), so that it is found
//! whatever path leads there. A container that is a tree has no overlay when it is written to; its root directory is the tree.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};

use super::named::Content;
use super::start::Root;
use crate::sys::supervise;

/// How the source of our overlays begins.
const PREFIX: &str = "cista:";

/// Longest name in a source, in bytes: fsconfig(2) takes 255 for all of it.
const MAX_NAME: usize = 200;

/// A process in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name, as `ps` calls COMM.
    pub name: String,
    /// Its state, one letter.
    pub state: char,
    /// When it started, in seconds since 1970.
    pub started: u64,
    /// When it started, in clock ticks since the system did: tells which of two processes is the older one.
    order: u64,
    /// Processor time used, in seconds.
    pub time: u64,
    /// Inode of its mount namespace.
    pub mount_namespace: u64,
    /// Inode of its user namespace.
    pub user_namespace: u64,
    /// Its command line.
    pub command: Vec<String>,
}

/// The source of the root mount of what is started.
#[must_use]
pub fn source_name(root: &Root) -> OsString {
    let (path, name): (&Path, &OsStr) = match root {
        Root::Image(path) => (path, path.file_name().unwrap_or_default()),
        Root::Container(container) => (&container.directory, &container.name),
    };
    let (device, inode) = identity(path).unwrap_or_default();
    let mut source = format!("{PREFIX}{device:x}:{inode:x}:").into_bytes();
    source.extend(name.as_bytes().iter().take(MAX_NAME));
    OsString::from_vec(source)
}

/// Whether a process writes to a named container's upper layer.
#[must_use]
pub fn is_written_to(root: &Root) -> bool {
    let wanted = source_name(root);
    process_ids().any(|pid| {
        fs::read(proc(pid, "mountinfo"))
            .ok()
            .and_then(|text| root_mount(&text))
            .is_some_and(|mount| mount.source == wanted && mount.keeps_changes)
    })
}

/// Which of some images run on this machine.
#[must_use]
pub fn images(paths: &[PathBuf]) -> HashSet<PathBuf> {
    let sources: HashMap<OsString, &PathBuf> = paths
        .iter()
        .map(|path| (source_name(&Root::Image(path.clone())), path))
        .collect();
    process_ids()
        .filter_map(|pid| root_mount(&fs::read(proc(pid, "mountinfo")).ok()?))
        .filter_map(|mount| sources.get(&mount.source).map(|path| (*path).clone()))
        .collect()
}

/// The processes of what was started, oldest first: for each the position in `roots` of what it was started from.
#[must_use]
pub fn processes(roots: &[Root]) -> Vec<(usize, Process)> {
    let sources: Vec<OsString> = roots.iter().map(source_name).collect();
    let trees: Vec<Option<(u64, u64)>> = roots.iter().map(tree).collect();
    let boot = boot_time();
    let mut found: Vec<(usize, Process)> = process_ids()
        .filter_map(|pid| {
            let text = fs::read(proc(pid, "mountinfo")).ok()?;
            let source = root_mount(&text).map(|mount| mount.source);
            let at = source
                .and_then(|source| sources.iter().position(|own| *own == source))
                .or_else(|| {
                    // The link is followed by the kernel to the root of the process itself.
                    let root = identity(&proc(pid, "root/."));
                    trees
                        .iter()
                        .position(|tree| tree.is_some() && *tree == root)
                })?;
            let process = describe(pid, boot)?;
            // Those that stand for a program, or wait for orphans, are no part of what runs in the container.
            let is_helper = [supervise::PARENT, supervise::INIT].contains(&process.name.as_str());
            (!is_helper).then_some((at, process))
        })
        .collect();
    found.sort_by_key(|(at, process)| (*at, process.order, process.pid));
    found
}

/// The tree that a container is, which is the root of its processes when it is written to.
fn tree(root: &Root) -> Option<(u64, u64)> {
    match root {
        Root::Container(container) => match &container.content {
            Content::Tree(path) => identity(path),
            Content::Image(_) => None,
        },
        Root::Image(_) => None,
    }
}

/// Device and inode of what a path leads to.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let status = fs::metadata(path).ok()?;
    Some((status.dev(), status.ino()))
}

fn process_ids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn proc(pid: u32, name: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(name)
}

/// The root of a mount namespace.
#[derive(Debug, PartialEq, Eq)]
struct RootMount {
    source: OsString,
    /// Whether its upper layer is a named container's.
    keeps_changes: bool,
}

/// Finds our overlay at `/` in the text of a `mountinfo` file (proc_pid_mountinfo(5)).
fn root_mount(text: &[u8]) -> Option<RootMount> {
    text.split(|&byte| byte == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        if *fields.get(4)? != b"/" {
            return None;
        }
        let rest = fields.iter().position(|field| *field == b"-")?;
        let [kind, source, options] = fields.get(rest + 1..rest + 4)? else {
            return None;
        };
        let source = unescape(source);
        (*kind == b"overlay" && source.starts_with(PREFIX.as_bytes())).then(|| RootMount {
            source: OsString::from_vec(source),
            keeps_changes: options
                .split(|&byte| byte == b',')
                .any(|option| option.starts_with(b"upperdir=container/")),
        })
    })
}

/// Replaces the octal escapes of `mountinfo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let escaped = (field[at] == b'\\')
            .then(|| field.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        result.push(escaped.unwrap_or(field[at]));
        at += if escaped.is_some() { 4 } else { 1 };
    }
    result
}

/// When a process was started, in clock ticks since the system was, and its state; None when it is gone.
#[must_use]
pub fn start_and_state(pid: u32) -> Option<(u64, char)> {
    let process = describe(pid, 0)?;
    Some((process.order, process.state))
}

/// Whether a process is in a mount namespace, as `/proc/PID/ns/mnt` names it.
#[must_use]
pub fn is_in_mount_namespace(pid: u32, namespace: &Path) -> bool {
    fs::read_link(proc(pid, "ns/mnt")).is_ok_and(|own| own == namespace)
}

/// The processes in a mount namespace, as far as the caller may see.
#[must_use]
pub fn in_mount_namespace(namespace: &Path) -> Vec<u32> {
    process_ids()
        .filter(|pid| is_in_mount_namespace(*pid, namespace))
        .collect()
}

/// Kills the processes in a mount namespace, until there are none.
pub fn kill_in_mount_namespace(namespace: &Path) {
    // One that is killed may just have made another.
    for _ in 0..100 {
        let processes = in_mount_namespace(namespace);
        if processes.is_empty() {
            return;
        }
        for number in processes {
            let Some(pid) = i32::try_from(number).ok().and_then(Pid::from_raw) else {
                continue;
            };
            // Held, then looked at again: the number may be another's by now.
            if let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty())
                && is_in_mount_namespace(number, namespace)
            {
                let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Reads about a process; None when it is gone.
fn describe(pid: u32, boot: u64) -> Option<Process> {
    let stat = fs::read_to_string(proc(pid, "stat")).ok()?;
    // The name is in parentheses and may hold some itself.
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<u64>().ok();
    let second = rustix::param::clock_ticks_per_second().max(1);
    let namespace = |name: &str| {
        let link = fs::read_link(proc(pid, "ns").join(name)).ok()?;
        let link = link.to_str()?;
        link.split_once('[')?.1.strip_suffix(']')?.parse().ok()
    };
    let arguments = fs::read(proc(pid, "cmdline")).ok()?;
    let command: Vec<String> = arguments
        .split(|&byte| byte == 0)
        .filter(|argument| !argument.is_empty())
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect();
    Some(Process {
        pid,
        name: name.to_owned(),
        state: fields.first()?.chars().next()?,
        started: boot + ticks(19)? / second,
        order: ticks(19)?,
        time: (ticks(11)? + ticks(12)?) / second,
        mount_namespace: namespace("mnt").unwrap_or(0),
        user_namespace: namespace("user").unwrap_or(0),
        command,
    })
}

/// When the system was started, in seconds since 1970.
fn boot_time() -> u64 {
    fs::read_to_string("/proc/stat")
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("btime "))
                .and_then(|seconds| seconds.trim().parse().ok())
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_root_is_found_among_the_mounts() {
        let text = b"100 99 0:5 / /proc rw - proc proc rw\n\
            101 90 0:60 / / ro,nosuid,nodev,relatime - overlay cista:fe00:1f:a\\040b rw,lowerdir=lower,upperdir=container/upper,workdir=container/work,userxattr\n";
        assert_eq!(
            root_mount(text).unwrap(),
            RootMount {
                source: "cista:fe00:1f:a b".into(),
                keeps_changes: true
            }
        );
        for other in [
            &b"101 90 0:60 / / ro - overlay other rw,upperdir=container/x\n"[..],
            b"101 90 0:60 / /x ro - overlay cista:1:2:x rw\n",
            b"101 90 0:60 / / ro - ext4 cista:1:2:x rw\n",
            b"101 90 0:60 / / ro -\n",
            b"\n\n",
        ] {
            assert_eq!(root_mount(other), None);
        }
    }

    #[test]
    fn this_process_is_described() {
        let own = describe(std::process::id(), boot_time()).unwrap();
        assert!(own.mount_namespace > 0 && own.user_namespace > 0);
        assert!(!own.command.is_empty());
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        assert!(own.started <= now + 1 && own.started + 86_400 > now);
    }
}
