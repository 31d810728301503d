//! Children that may not outlive the thread that waits for them.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use rustix::process::{Signal, set_parent_process_death_signal};

/// Starts a program that the kernel kills when the calling thread ends, however it ends (`PR_SET_PDEATHSIG`, prctl(2)).
///
/// # Errors
///
/// As [`Command::spawn`].
pub fn spawn_bound(command: &mut Command) -> io::Result<Child> {
    // SAFETY: what runs between fork and exec is one system call, which is async-signal-safe, takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)
        })
    };
    command.spawn()
}
