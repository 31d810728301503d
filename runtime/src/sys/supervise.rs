//! A process that stands for another one: needed where the program of a container must be a child, since a process never
//! changes its own pid namespace (pid_namespaces(7)).
//!
//! The caller of [`split`] is two processes afterwards. The new one returns and becomes the program. The old one waits, passes
//! signals on, stops and continues with the program, and ends as the program ends, by the same status or the same signal. What
//! differs from a bare program is told at [`split`].

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::process::PidfdFlags;

use super::process::{self, Helper, exit_now, isolate};

/// Name (`/proc/PID/comm`) of the process that stands for a program.
pub const PARENT: &str = "cista-parent";

/// Name of the first process of a pid namespace.
pub const INIT: &str = "cista-init";

const PARENT_NAME: &CStr = c"cista-parent";
const INIT_NAME: &CStr = c"cista-init";

/// Forks. Returns in the new process, the program to be; the old process supervises it and never returns from here.
///
/// With `first_of_namespace` the new process is the first but one of a new pid namespace: the very first is an init that does
/// nothing but wait for orphans. So the program has none of the duties and the odd signal rules of pid 1. When the program ends, the
/// rest of the namespace is killed.
///
/// Signals that reach the old process are sent on, but for those of the terminal, which come to the whole process group of
/// which the new process is a member too. A signal sent to the group by somebody else comes twice. If the old process is killed, so is the new one.
///
/// The calling process must have one thread; see [`process::spawn_helper`].
///
/// # Errors
///
/// EAGAIN or ENOMEM where no process can be made.
pub fn split(first_of_namespace: bool) -> io::Result<()> {
    let parent = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    let before = Signals::take_over();
    let init = if first_of_namespace {
        Some(spawn_init(&parent).inspect_err(|_| before.restore())?)
    } else {
        None
    };
    // SAFETY: this process has one thread, so no lock is held by another; fork keeps the C library's view of the child right.
    match unsafe { libc::fork() } {
        -1 => {
            let error = io::Error::last_os_error();
            before.restore();
            Err(error)
        }
        0 => {
            // An init dies with its parent, and takes the namespace with it.
            if !first_of_namespace {
                die_with(&parent);
            }
            before.restore();
            Ok(())
        }
        child => {
            isolate(PARENT_NAME, &[]);
            let status = wait(child);
            end_init(init);
            end_like(status)
        }
    }
}

/// What a signal handler's place and the mask were before.
struct Signals {
    mask: libc::sigset_t,
    child: libc::sighandler_t,
}

impl Signals {
    /// Blocks every signal, so that none is lost before the old process waits for it, and makes sure that children are waited for.
    fn take_over() -> Self {
        // SAFETY: all-zero bytes are a valid signal set, and every pointer is to a local one. SIG_DFL runs no code.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut mask: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const all, &raw mut mask);
            let child = libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            Self { mask, child }
        }
    }

    fn restore(&self) {
        // SAFETY: the mask is one that the kernel gave, and the disposition the one that was there; this program installs no handler
        // for SIGCHLD.
        unsafe {
            libc::signal(libc::SIGCHLD, self.child);
            libc::sigprocmask(
                libc::SIG_SETMASK,
                &raw const self.mask,
                std::ptr::null_mut(),
            );
        }
    }
}

/// Asks to be killed when the parent ends, which may have happened already.
fn die_with(parent: &OwnedFd) {
    // SAFETY: sets an attribute of this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
    let mut event = libc::pollfd {
        fd: parent.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `event` is one valid entry. A pidfd is readable when its process has ended.
    if unsafe { libc::poll(&raw mut event, 1, 0) } > 0 {
        exit_now(128 + libc::SIGKILL);
    }
}

/// Starts the first process of the new pid namespace.
fn spawn_init(parent: &OwnedFd) -> io::Result<Helper> {
    process::spawn_helper(|| {
        die_with(parent);
        isolate(INIT_NAME, &[]);
        loop {
            // SAFETY: the status is not asked for. In a namespace of its own every orphan becomes this process's child.
            let child = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::__WALL) };
            if child < 0 {
                wait_for_signal(&[libc::SIGCHLD]);
            }
        }
    })
}

fn end_init(init: Option<Helper>) {
    if let Some(init) = init {
        init.kill();
        let _ = init.wait();
    }
}

/// Waits for one of some blocked signals; for any with an empty list. Gives its number, and whether the kernel sent it.
fn wait_for_signal(signals: &[libc::c_int]) -> (libc::c_int, bool) {
    // SAFETY: all-zero bytes are a valid signal set and siginfo, and every pointer is to a local one.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        if signals.is_empty() {
            libc::sigfillset(&raw mut set);
        }
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let signal = libc::sigwaitinfo(&raw const set, &raw mut info);
        (signal, info.si_code == libc::SI_KERNEL)
    }
}

/// Passes signals on until the child has ended; returns its status as wait(2) gives it.
fn wait(child: libc::pid_t) -> libc::c_int {
    loop {
        let (signal, from_kernel) = wait_for_signal(&[]);
        if signal == libc::SIGCHLD {
            while let Some(status) = change_of(child, libc::WUNTRACED) {
                if !libc::WIFSTOPPED(status) {
                    return status;
                }
                // SAFETY: stops this process until somebody continues it.
                unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
            }
            continue;
        }
        if signal <= 0 {
            continue;
        }
        // SAFETY: asks for process groups.
        let same_group = unsafe { libc::getpgid(child) == libc::getpgrp() };
        let arrived = from_kernel && same_group
            || signal == libc::SIGCONT && change_of(child, libc::WCONTINUED).is_some();
        if !arrived {
            // SAFETY: the child has not been waited for, so the number is still its own.
            unsafe { libc::kill(child, signal) };
        }
    }
}

/// A change of the child's state that has not been told yet.
fn change_of(child: libc::pid_t, kind: libc::c_int) -> Option<libc::c_int> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for an int for the time of the call.
    let found = unsafe { libc::waitpid(child, &raw mut status, kind | libc::WNOHANG) };
    (found == child).then_some(status)
}

/// Ends this process as another one ended.
fn end_like(status: libc::c_int) -> ! {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        // SAFETY: every pointer is to a local value, and SIG_DFL runs no code. This process is no longer dumpable: there is one core file, the
        // program's.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&raw mut set, signal);
            libc::signal(signal, libc::SIG_DFL);
            libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
            libc::kill(libc::getpid(), signal);
        }
        exit_now(128 + signal);
    }
    exit_now(libc::WEXITSTATUS(status))
}
