//! The disposition of SIGPIPE that the caller of `cista` chose.
//!
//! This program ignores SIGPIPE, and an ignored signal stays ignored over execve(2): without care, a `yes | head` in a container would not end
//! as it does outside. So the disposition is noted, and given back before the program of the container is executed.

use std::sync::atomic::{AtomicBool, Ordering};

static IGNORED_BY_CALLER: AtomicBool = AtomicBool::new(false);

/// Ignores SIGPIPE, and notes whether it was ignored before.
pub(super) fn take_over() {
    // SAFETY: the disposition runs no code of this process.
    let old = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    IGNORED_BY_CALLER.store(old == libc::SIG_IGN, Ordering::Relaxed);
}

/// Gives SIGPIPE the disposition that it had when this program was executed.
pub fn restore() {
    let disposition = if IGNORED_BY_CALLER.load(Ordering::Relaxed) {
        libc::SIG_IGN
    } else {
        libc::SIG_DFL
    };
    // SAFETY: neither disposition runs code of this process.
    unsafe { libc::signal(libc::SIGPIPE, disposition) };
}

/// Ignores SIGPIPE again: for when the program was not executed after all.
pub fn ignore() {
    // SAFETY: the disposition runs no code of this process.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
