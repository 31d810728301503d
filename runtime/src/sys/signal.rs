//! Ctrl-C and its like ask a long operation to stop.
//!
//! The handler of a signal may do next to nothing (signal-safety(7)); it sets the operation's flag, which every loop
//! looks at, and that is all. The first signal asks; the kernel then restores the signal's default, so that a second one
//! ends the process at once. Signals that the caller ignores (`nohup`) stay ignored.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use cista_images::cancel::Cancel;

/// Signals that ask a program to end.
const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

static CANCEL: OnceLock<Cancel> = OnceLock::new();
static RECEIVED: AtomicI32 = AtomicI32::new(0);

extern "C" fn handle(signal: libc::c_int) {
    RECEIVED.store(signal, Ordering::Relaxed);
    // `get` is a load, and `cancel` a store to an atomic: both may be done in a handler.
    if let Some(cancel) = CANCEL.get() {
        cancel.cancel();
    }
}

/// A flag that SIGINT, SIGTERM and SIGHUP set. The same flag for every call in a process.
///
/// # Errors
///
/// Never in practice: sigaction(2) fails only for signals that do not exist.
pub fn cancel_on_signals() -> io::Result<Cancel> {
    let cancel = CANCEL.get_or_init(Cancel::new).clone();
    for signal in SIGNALS {
        // SAFETY: all-zero bytes are a valid sigaction, and both pointers are to live ones. The handler only touches atomics
        // and a `OnceLock` that was initialized above, before it was installed.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &raw mut action) != 0 {
                return Err(io::Error::last_os_error());
            }
            if action.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            action.sa_sigaction = handle as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESETHAND | libc::SA_RESTART;
            libc::sigemptyset(&raw mut action.sa_mask);
            if libc::sigaction(signal, &raw const action, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(cancel)
}

/// The signal that set the flag, if one did.
#[must_use]
pub fn received() -> Option<i32> {
    match RECEIVED.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(signal),
    }
}
