//! Processes: children that are nobody's child, helpers that leave no trace, and `execve(2)`.
//!
//! The program that `cista` becomes must see exactly the process state of a bare program: no child that it does not
//! know, and no SIGCHLD of a child of ours pending. Hence children are made by `clone(2)` without an exit signal, and
//! are waited for with `__WALL`.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A child without exit signal, to be waited for by [`Helper::wait`].
#[derive(Debug)]
pub struct Helper {
    pid: libc::pid_t,
}

/// The exit status of a child whose closure panicked; what is less may be an error number of fork(2).
const PANICKED: i32 = 101;

/// Starts `work` in a child process that sends no signal when it ends. Its exit status is what `work` returns.
///
/// The calling process must have one thread: in the child only the calling thread exists, and a lock held by another
/// would stay locked for ever.
///
/// # Errors
///
/// EAGAIN or ENOMEM where no process can be made.
pub fn spawn_helper(work: impl FnOnce() -> i32) -> io::Result<Helper> {
    // SAFETY: without CLONE_VM the child has its own copy of memory, stack included, as after fork(2); no pointer is passed.
    // The C library does not know of this child: it must not rely on its cached thread id, which holds since the child
    // makes no thread itself.
    let pid = unsafe { libc::syscall(libc::SYS_clone, 0_u64, 0_u64, 0_u64, 0_u64, 0_u64) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let status = catch_unwind(AssertUnwindSafe(work)).unwrap_or(PANICKED);
            exit_now(status)
        }
        pid => Ok(Helper {
            pid: libc::pid_t::try_from(pid).map_err(io::Error::other)?,
        }),
    }
}

impl Helper {
    /// The child's number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.cast_unsigned()
    }

    /// Kills the child, which is still to be waited for.
    pub fn kill(&self) {
        // SAFETY: the child has not been waited for, since that consumes `self`: the number is still its own.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }

    /// Waits for the child and returns its exit status, or 128 plus the signal that ended it.
    ///
    /// # Errors
    ///
    /// ECHILD where someone else waited for it.
    pub fn wait(self) -> io::Result<i32> {
        let mut status = 0;
        loop {
            // SAFETY: `status` is a valid place for an int for the time of the call.
            let result = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
            if result >= 0 {
                break;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        Ok(if libc::WIFSIGNALED(status) {
            128 + libc::WTERMSIG(status)
        } else {
            libc::WEXITSTATUS(status)
        })
    }

    /// Waits for the helper of [`spawn_detached`].
    ///
    /// # Errors
    ///
    /// Why it could not start the process.
    pub fn wait_for_start(self) -> io::Result<()> {
        match self.wait()? {
            0 => Ok(()),
            status if status < PANICKED => Err(io::Error::from_raw_os_error(status)),
            status => Err(io::Error::other(format!(
                "the process that starts it ended with status {status}"
            ))),
        }
    }
}

/// Starts `service` in a process of its own session that is no child of the caller: it is reparented to init or to the
/// nearest subreaper. The helper that is returned starts it, and must be waited for with [`Helper::wait_for_start`].
///
/// In the new process every signal that can be blocked is blocked (it ends by its own work, not by the job's signals),
/// standard input, output and error are `/dev/null`, the working directory is `/`, and of all other files only `keep`
/// stay open. It cannot be traced by a process without CAP_SYS_PTRACE over the user namespace of the `cista` program.
///
/// The calling process must have one thread; see [`spawn_helper`].
///
/// # Errors
///
/// EAGAIN or ENOMEM where no process can be made.
pub fn spawn_detached(name: &CStr, keep: &[RawFd], service: impl FnOnce()) -> io::Result<Helper> {
    spawn_helper(|| {
        // SAFETY: takes no argument. It fails for the leader of a process group only, which a new child is not.
        unsafe { libc::setsid() };
        // SAFETY: this process has one thread, so no lock is held by another; fork keeps the C library's view of the
        // child right, which may make threads.
        match unsafe { libc::fork() } {
            -1 => io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EAGAIN),
            0 => {
                isolate(name, keep);
                let status = catch_unwind(AssertUnwindSafe(service)).map_or(PANICKED, |()| 0);
                exit_now(status)
            }
            _ => 0,
        }
    })
}

/// What [`spawn_detached`] promises of its process: signals blocked, a name, not dumpable, no files but `keep`.
pub(super) fn isolate(name: &CStr, keep: &[RawFd]) {
    // SAFETY: every pointer is to a local value or a literal that outlives its call. The file descriptors that are closed
    // belong to Rust values of the parent's stack that this process never touches or drops again: it ends by `exit_now`.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0);
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        libc::chdir(c"/".as_ptr());
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        for standard in 0..=2 {
            if null < 0 {
                if !keep.contains(&standard) {
                    libc::close(standard);
                }
            } else if null != standard && !keep.contains(&standard) {
                libc::dup3(null, standard, 0);
            }
        }
    }
    let mut kept = keep.to_vec();
    kept.sort_unstable();
    let mut next = 3;
    for fd in kept {
        if fd > next {
            close_range(next, fd - 1);
        }
        next = next.max(fd.saturating_add(1));
    }
    close_range(next, RawFd::MAX);
}

/// Closes every file descriptor from `first` to `last`.
fn close_range(first: RawFd, last: RawFd) {
    // SAFETY: only `isolate` calls it, and nothing of this process uses the closed descriptors; see there.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Marks every file descriptor above standard error but those of `keep` to be closed by the next `execve(2)`.
///
/// # Errors
///
/// ENOSYS before Linux 5.11; EBADF where one of `keep` is not open.
pub fn close_on_exec_but(keep: &[RawFd]) -> io::Result<()> {
    // SAFETY: sets a flag of file descriptors; closes none and passes no pointer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    for fd in keep {
        // SAFETY: clears that flag again.
        if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A file that whoever executed this program has opened for it, by its number, as a copy.
///
/// # Errors
///
/// EBADF where it is not open.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: makes a new descriptor, or fails.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, so nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// The same, and closes the original: nobody else has used that number since this program was executed.
///
/// # Errors
///
/// EBADF where it is not open.
pub fn take(fd: RawFd) -> io::Result<OwnedFd> {
    let copy = inherited(fd)?;
    // SAFETY: whoever executed this program has opened it for the caller, so that no value owns it.
    unsafe { libc::close(fd) };
    Ok(copy)
}

/// Ends the process at once: see [`exit_now`].
pub fn exit(status: i32) -> ! {
    exit_now(status)
}

/// Whether a file descriptor is open.
#[must_use]
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: asks for the flags of a file descriptor.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Ends the process at once, on another processor than the calling thread was on.
///
/// For the server of an image: what woke it is the end of the container's last process, which has a little more to do on that processor, and
/// would have to wait until all of the server's memory was given back.
pub fn end_elsewhere() {
    let here = rustix::thread::sched_getcpu();
    if let Ok(mut others) = rustix::thread::sched_getaffinity(None)
        && here < rustix::thread::CpuSet::MAX_CPU
    {
        others.unset(here);
        // Fails where there is no other.
        let _ = rustix::thread::sched_setaffinity(None, &others);
    }
    exit_now(0)
}

/// Ends the process at once: no destructors, no exit handlers, no flush of what the parent had buffered.
pub(super) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory of this process.
    unsafe { libc::_exit(status) }
}

/// `execve(2)`: becomes another program. Returns only the error.
#[must_use]
pub fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let arguments = pointers(arguments);
    let environment = pointers(environment);
    // SAFETY: all three point to NUL-terminated strings, the arrays end with a null pointer, and all outlive the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}
