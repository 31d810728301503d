//! This program, executed again by itself: the same process, but with one thread and nothing left of what it did.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use super::sigpipe;

/// The file of this program.
const OWN: &str = "/proc/self/exe";

/// Executes this program again with other arguments (the first is its name) and the same environment. Returns only the
/// error.
#[must_use]
pub fn execute(arguments: &[CString]) -> io::Error {
    become_file(c"/proc/self/exe", arguments)
}

/// Executes a copy of this program in memory, with the same arguments and the same environment: then `/proc/self/exe` leads to the copy, which goes
/// with its last process.
///
/// # Errors
///
/// Where there can be no such file, or none that can be executed (`vm.memfd_noexec=2`); nothing has changed then.
pub fn execute_copy() -> io::Result<Infallible> {
    let arguments = std::env::args_os()
        .map(|word| CString::new(word.into_vec()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut copy = executable_file(c"cista")?;
    io::copy(&mut File::open(OWN)?, &mut copy)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    let path = CString::new(format!("/proc/self/fd/{}", copy.as_raw_fd()))?;
    let error = become_file(&path, &arguments);
    sigpipe::ignore();
    Err(error)
}

/// An empty file in memory that can be executed, and sealed.
///
/// # Errors
///
/// Those of memfd_create(2); EACCES where `vm.memfd_noexec` forbids it.
pub fn executable_file(name: &CStr) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know that such a file may be meant to be executed, and need not be told.
    let created = match rustix::fs::memfd_create(name, flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        created => created,
    };
    Ok(File::from(created?))
}

/// Whether this process executes such a copy.
#[must_use]
pub fn is_copy() -> bool {
    File::open(OWN).is_ok_and(|own| {
        rustix::fs::fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(SealFlags::WRITE))
    })
}

fn become_file(path: &CStr, arguments: &[CString]) -> io::Error {
    let mut pointers: Vec<*const libc::c_char> =
        arguments.iter().map(|word| word.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // What the caller chose, since the new program takes note of it again.
    sigpipe::restore();
    // SAFETY: path and arguments are strings that end in NUL and outlive the call, and the list of arguments ends in a null
    // pointer. Nothing of this process survives a success.
    unsafe { libc::execv(path.as_ptr(), pointers.as_ptr()) };
    io::Error::last_os_error()
}
