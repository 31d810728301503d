//! This program, executed again by itself: the same process, but with one thread and nothing left of what it did.

use std::ffi::CString;
use std::io;

use super::sigpipe;

/// Executes this program again with other arguments (the first is its name) and the same environment. Returns only the
/// error.
#[must_use]
pub fn execute(arguments: &[CString]) -> io::Error {
    let mut pointers: Vec<*const libc::c_char> =
        arguments.iter().map(|word| word.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // What the caller chose, since the new program takes note of it again.
    sigpipe::restore();
    // SAFETY: path and arguments are strings that end in NUL and outlive the call, and the list of arguments ends in a null
    // pointer. Nothing of this process survives a success.
    unsafe { libc::execv(c"/proc/self/exe".as_ptr(), pointers.as_ptr()) };
    io::Error::last_os_error()
}
