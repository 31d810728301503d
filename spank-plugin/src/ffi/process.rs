//! Processes of the plugin: children that execute one program, or do one thing.

use std::ffi::{CStr, CString, OsString, c_char, c_int};
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::time::{Duration, Instant};

use rustix::thread::{Gid, Uid};

/// Who one is after a fork.
pub(crate) enum Fork {
    /// In the new process.
    Child,
    /// In the old one: the number of the new one.
    Parent(libc::pid_t),
}

/// A child that sends no signal when it ends, for the process of a task, which must look like any other when it is executed. It may not use
/// anything that the C library keeps about threads.
///
/// To be called in a process with one thread, as that of a task is: slurmstepd has several, but its fork has only the one that forked, and the C library
/// makes its locks usable in it.
///
/// # Errors
///
/// EAGAIN or ENOMEM where no process can be made.
pub(crate) fn fork_silently() -> io::Result<Fork> {
    // SAFETY: without CLONE_VM the child has its own copy of memory, stack included; no pointer is passed.
    match unsafe { libc::syscall(libc::SYS_clone, 0_u64, 0_u64, 0_u64, 0_u64, 0_u64) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(
            libc::pid_t::try_from(pid).map_err(io::Error::other)?,
        )),
    }
}

/// Waits for a child; true where it ended with status 0.
pub(crate) fn wait(pid: libc::pid_t) -> bool {
    let mut status: c_int = 0;
    loop {
        // SAFETY: `status` is a valid place for an int for the time of the call.
        let result = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        if result == pid {
            return libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return false;
        }
    }
}

/// Executes a program as a user, in a session of its own and with no open file, and waits a while for its end. To be called in a process with several threads, too:
/// the child does nothing but system calls until it is the program.
pub(crate) fn run_as(program: &Program, uid: Uid, gid: Gid, groups: &[Gid], limit: Duration) {
    match fork_silently() {
        Ok(Fork::Child) => {
            let _ = rustix::process::setsid();
            reset_signals();
            let changed = only_null().and_then(|()| {
                rustix::thread::set_thread_groups(groups)?;
                rustix::thread::set_thread_res_gid(gid, gid, gid)?;
                rustix::thread::set_thread_res_uid(uid, uid, uid)
            });
            if changed.is_ok() {
                program.execute();
            }
            exit_now(127)
        }
        Ok(Fork::Parent(pid)) => {
            let deadline = Instant::now() + limit;
            let mut status: c_int = 0;
            // SAFETY: `status` is a valid place for an int for the time of the call. The flags find a child that sends no signal.
            while unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL | libc::WNOHANG) } == 0
                && Instant::now() < deadline
            {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Err(_) => {}
    }
}

/// Closes all files, and opens `/dev/null` as the first three.
fn only_null() -> rustix::io::Result<()> {
    // SAFETY: the process executes a program or ends; no value of it uses a file again. Before Linux 5.9 they are closed one by one.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 0, c_int::MAX, 0) != 0 {
            for file in 0..65_536 {
                libc::close(file);
            }
        }
        for _ in 0..3 {
            // The lowest number that is free.
            if libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) < 0 {
                return Err(rustix::io::Errno::BADF);
            }
        }
    }
    Ok(())
}

/// Ends the process at once, without what Slurm or the C library would do at an exit.
pub(crate) fn exit_now(status: c_int) -> ! {
    // SAFETY: _exit does not return and touches no memory of this process.
    unsafe { libc::_exit(status) }
}

/// A program with its arguments and its environment, ready to be executed without a further allocation.
pub(crate) struct Program {
    path: CString,
    arguments: Strings,
    environment: Strings,
}

/// Strings as execve(2) takes them.
struct Strings {
    _strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    fn new(strings: Vec<CString>) -> Self {
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect();
        Self {
            _strings: strings,
            pointers,
        }
    }
}

impl Program {
    pub(crate) fn new(path: CString, arguments: Vec<CString>, environment: Vec<CString>) -> Self {
        Self {
            path,
            arguments: Strings::new(arguments),
            environment: Strings::new(environment),
        }
    }

    /// Becomes the program. Returns only the error.
    pub(crate) fn execute(&self) -> io::Error {
        // SAFETY: path and strings end in NUL, both arrays end in a null pointer, and `self` keeps all of them alive.
        unsafe {
            libc::execve(
                self.path.as_ptr(),
                self.arguments.pointers.as_ptr(),
                self.environment.pointers.as_ptr(),
            );
        }
        io::Error::last_os_error()
    }
}

/// Gives the signals to a new program as a login shell would: none blocked, none ignored.
pub(crate) fn reset_signals() {
    // SAFETY: every pointer is to a local value, and SIG_DFL runs no code. What cannot be set is left.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Makes `files` the files 0, 1, 2… of this process, and closes all others.
///
/// The descriptors that are closed belong to values that the process never uses or drops again: it executes a program, or ends.
///
/// # Errors
///
/// Those of dup3(2).
pub(crate) fn keep_only(files: &[c_int]) -> io::Result<()> {
    let count = c_int::try_from(files.len()).map_err(io::Error::other)?;
    let mut high = Vec::with_capacity(files.len());
    for file in files {
        // SAFETY: copies a descriptor to one that is free and out of the way.
        let copy = unsafe { libc::fcntl(*file, libc::F_DUPFD_CLOEXEC, count) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        high.push(copy);
    }
    for (to, from) in (0..).zip(high) {
        // SAFETY: what was open as `to` is not used any more; see above.
        if unsafe { libc::dup3(from, to, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: as above. Before Linux 5.9 they are closed one by one.
    unsafe {
        if libc::syscall(libc::SYS_close_range, count, c_int::MAX, 0) != 0 {
            for file in count..65_536 {
                libc::close(file);
            }
        }
    }
    Ok(())
}

/// A file of this process by its number, after [`keep_only`] has put it there.
pub(crate) fn adopt(file: c_int) -> OwnedFd {
    // SAFETY: `keep_only` has made the descriptor, and no value of this process owns it.
    unsafe { OwnedFd::from_raw_fd(file) }
}

/// The path of the terminal that an open file is; None where it is none.
pub(crate) fn terminal(file: c_int) -> Option<OsString> {
    let mut buffer = [0 as c_char; 256];
    // SAFETY: the buffer is as long as told. A descriptor that is not open is an error like others.
    let result = unsafe { libc::ttyname_r(file, buffer.as_mut_ptr(), buffer.len()) };
    if result != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so the buffer holds a string that ends in NUL.
    let name = unsafe { CStr::from_ptr(buffer.as_ptr()) };
    Some(OsString::from_vec(name.to_bytes().to_vec()))
}

/// The home directory of a user; None where the user database has none.
pub(crate) fn home(uid: u32) -> Option<OsString> {
    let mut buffer = vec![0 as c_char; 16 << 10];
    // SAFETY: all-zero bytes are a valid passwd, the buffer is as long as told, and all three places are valid for the call.
    let (error, entry, found) = unsafe {
        let mut entry: libc::passwd = std::mem::zeroed();
        let mut found = std::ptr::null_mut();
        let error = libc::getpwuid_r(
            uid,
            &raw mut entry,
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut found,
        );
        (error, entry, !found.is_null())
    };
    if error != 0 || !found || entry.pw_dir.is_null() {
        return None;
    }
    // SAFETY: the call succeeded, so the string ends in NUL within the buffer, which is alive.
    let home = unsafe { CStr::from_ptr(entry.pw_dir) };
    Some(OsString::from_vec(home.to_bytes().to_vec()))
}

/// One instruction of classic BPF: `struct sock_filter`.
pub(crate) const INSTRUCTION: usize = 8;

/// Installs a seccomp filter, given as the bytes of its instructions. no_new_privs must be set.
///
/// # Errors
///
/// Those of seccomp(2).
pub(crate) fn install_filter(program: &[u8]) -> io::Result<()> {
    let instructions: Vec<libc::sock_filter> = program
        .chunks_exact(INSTRUCTION)
        .map(|bytes| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(io::Error::other)?,
        filter: instructions.as_ptr().cast_mut(),
    };
    // SAFETY: `len` is the number of instructions behind `filter`, and the kernel copies them within the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            &raw const program,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The name of this machine, up to its first dot.
pub(crate) fn host_name() -> String {
    let mut buffer = [0 as c_char; 256];
    // SAFETY: the buffer is as long as told; its last byte stays NUL.
    unsafe { libc::gethostname(buffer.as_mut_ptr(), buffer.len() - 1) };
    // SAFETY: the buffer ends in NUL.
    let name = unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_string_lossy();
    name.split('.').next().unwrap_or_default().to_owned()
}
