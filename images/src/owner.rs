//! Which process an unfinished file belongs to, and whether that process still lives.
//!
//! Files outlive the processes that write them: after `kill -9`, a temporary file or a lease stays, and somebody else has to tell whether its
//! writer will come back. A process id alone does not say so. It means something only on one machine, since one boot, in one PID namespace,
//! and is given to another process later; so all of these are part of an [`Owner`] (proc(5): `/proc/sys/kernel/random/boot_id`,
//! `/proc/PID/stat`; pid_namespaces(7)). Of a process of another machine, or of another container of this one, nothing can be known here:
//! then only time tells, and whoever asks has to wait.

use std::fs;

use rustix::io::Errno;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

/// Longest host name that is kept, in bytes.
const MAX_HOST: usize = 64;

/// A process, wherever it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// Name of its machine, for people: names are not unique.
    pub(crate) host: String,
    /// Which boot of which machine; empty where it cannot be told.
    pub(crate) boot: String,
    /// Inode number of its PID namespace; 0 where it cannot be told.
    pub(crate) namespace: u64,
    /// Its id in that namespace.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since that boot; 0 where it cannot be told.
    pub(crate) started: u64,
}

/// What is known of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// It runs.
    Alive,
    /// It has ended.
    Dead,
    /// It is out of sight.
    Unknown,
}

impl Owner {
    /// This process.
    pub(crate) fn current() -> Self {
        let namespace = fs::read_link("/proc/self/ns/pid").ok();
        let stat = fs::read("/proc/self/stat").unwrap_or_default();
        Self {
            host: host_name(),
            boot: boot_id(),
            // `pid:[4026531836]`
            namespace: namespace
                .as_deref()
                .and_then(|link| link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']'))
                .and_then(|number| number.parse().ok())
                .unwrap_or(0),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            started: Stat::parse(&stat).map_or(0, |stat| stat.started),
        }
    }

    /// Whether it is a process of this machine that can be seen from here, provided that `here` is this process.
    pub(crate) fn is_visible_to(&self, here: &Self) -> bool {
        !self.boot.is_empty()
            && self.namespace != 0
            && self.started != 0
            && self.boot == here.boot
            && self.namespace == here.namespace
    }

    /// Whether it still runs, as far as `here`, this process, can tell. A process that was killed but not yet waited for has ended.
    pub(crate) fn life(&self, here: &Self) -> Life {
        if !self.is_visible_to(here) {
            return Life::Unknown;
        }
        let Some(pid) = Pid::from_raw(self.pid.max(0)) else {
            return Life::Unknown;
        };
        let Ok(stat) = fs::read(format!("/proc/{}/stat", self.pid)) else {
            // Other users' processes may be hidden (mount option `hidepid`), but not from this.
            return match rustix::process::test_kill_process(pid) {
                Err(Errno::SRCH) => Life::Dead,
                _ => Life::Unknown,
            };
        };
        match Stat::parse(&stat) {
            None => Life::Unknown,
            Some(stat) if stat.started != self.started => Life::Dead,
            Some(stat) if matches!(stat.state, b'Z' | b'X' | b'x') => Life::Dead,
            Some(_) => Life::Alive,
        }
    }
}

/// What `/proc/PID/stat` says.
struct Stat {
    state: u8,
    started: u64,
}

impl Stat {
    /// The name of the program, in parentheses, may itself hold blanks and parentheses; the fields that we want stand behind the last one.
    fn parse(text: &[u8]) -> Option<Self> {
        let behind = text.iter().rposition(|byte| *byte == b')')? + 1;
        let fields = std::str::from_utf8(&text[behind..]).ok()?;
        let mut fields = fields.split_ascii_whitespace();
        // The state is field 3, the start time field 22.
        let state = *fields.next()?.as_bytes().first()?;
        let started = fields.nth(18)?.parse().ok()?;
        Some(Self { state, started })
    }
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().chars().take(MAX_HOST).collect())
        .unwrap_or_default()
}

/// The name of this machine, without what has a meaning in our file names.
pub(crate) fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_bytes()
        .iter()
        .take(MAX_HOST)
        .map(|&byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' => char::from(byte),
            _ => '_',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_alive_until_it_is_killed_even_if_nobody_waits() {
        let here = Owner::current();
        assert_eq!(here.life(&here), Life::Alive);
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let stat = fs::read(format!("/proc/{pid}/stat")).unwrap();
        let other = Owner {
            pid,
            started: Stat::parse(&stat).unwrap().started,
            ..here.clone()
        };
        assert_eq!(other.life(&here), Life::Alive);
        child.kill().unwrap();
        // Killed, not waited for: a zombie once the kernel is done with it.
        for _ in 0..1000 {
            if other.life(&here) == Life::Dead {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(other.life(&here), Life::Dead);
        child.wait().unwrap();
        assert_eq!(other.life(&here), Life::Dead);
    }

    #[test]
    fn a_later_process_of_the_same_id_is_another_one() {
        let here = Owner::current();
        let former = Owner {
            started: here.started - 1,
            ..here.clone()
        };
        assert_eq!(former.life(&here), Life::Dead);
    }

    #[test]
    fn nothing_is_known_of_other_machines_and_namespaces() {
        let here = Owner::current();
        let no_such = Owner {
            started: 1,
            ..here.clone()
        };
        for other in [
            Owner {
                boot: "b".to_owned(),
                ..no_such.clone()
            },
            Owner {
                namespace: 7,
                ..no_such.clone()
            },
            Owner {
                boot: String::new(),
                ..no_such.clone()
            },
            Owner {
                started: 0,
                ..no_such
            },
            Owner {
                pid: -1,
                ..here.clone()
            },
        ] {
            assert_eq!(other.life(&here), Life::Unknown, "{other:?}");
        }
    }

    #[test]
    fn names_of_programs_do_not_confuse() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        let stat = Stat::parse(format!("12 (a ) b( c) {fields}").as_bytes()).unwrap();
        assert_eq!((stat.state, stat.started), (b'S', 4711));
        assert!(Stat::parse(b"12 (a").is_none());
        assert!(Stat::parse(b"12 (a) S").is_none());
        assert!(Stat::parse(b"").is_none());
    }
}
