//! From the C library to our `main`, without the way through Rust's start code.
//!
//! `std` prepares a message for stack overflows before `main`: it reads `/proc/self/maps` for the place of the stack and makes another stack for the
//! signal, some fifteen system calls, which is a fiftieth of a whole start. What else it does is done here: standard streams that are
//! closed become `/dev/null`, so that no file that we open is taken for one, and SIGPIPE is ignored, so that writing tells of it by an error.

use std::process::ExitCode;

use super::sigpipe;

/// Makes a function `main` of the program. To be used once, in a program without one (`#![no_main]`).
#[macro_export]
macro_rules! program {
    ($main:path) => {
        // SAFETY: the program has no other function of this name, and the C library calls it as C's `main`, once.
        #[unsafe(no_mangle)]
        extern "C" fn main() -> std::ffi::c_int {
            $crate::sys::entry::enter($main)
        }
    };
}

/// Calls a function with what Rust's programs take for granted; the exit status of the process.
#[must_use]
pub fn enter(main: fn() -> ExitCode) -> i32 {
    open_standard_streams();
    sigpipe::take_over();
    status(main())
}

/// The number of an exit code, which the standard library shows nobody.
fn status(code: ExitCode) -> i32 {
    let number = (0..=u8::MAX).find(|number| ExitCode::from(*number) == code);
    i32::from(number.unwrap_or(u8::MAX))
}

fn open_standard_streams() {
    let mut streams = [0, 1, 2].map(|fd| libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    });
    // SAFETY: the array is valid for reading and writing, its length is given, and a timeout of 0 does not wait.
    let polled = unsafe { libc::poll(streams.as_mut_ptr(), streams.len() as libc::nfds_t, 0) };
    if polled <= 0 {
        return;
    }
    for stream in streams {
        if stream.revents & libc::POLLNVAL != 0 {
            // SAFETY: the path ends with a NUL byte. The lowest free number is this one, since those below are open by now.
            let opened = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
            if opened < 0 {
                std::process::abort();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_keeps_its_number() {
        for number in 0..=u8::MAX {
            assert_eq!(status(ExitCode::from(number)), i32::from(number));
        }
    }
}
