//! The disposition of SIGPIPE that the caller of `cista` chose.
//!
//! Rust's runtime ignores SIGPIPE before `main`, and an ignored signal stays ignored over execve(2): without care, a
//! `yes | head` in a container would not end as it does outside. So the disposition is noted before the runtime
//! starts, and given back before the program of the container is executed.

use std::sync::atomic::{AtomicBool, Ordering};

static IGNORED_BY_CALLER: AtomicBool = AtomicBool::new(false);

extern "C" fn note() {
    // SAFETY: a null new action only asks; `old` is a valid place for the answer, and all-zero bytes are a valid sigaction.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut old) == 0 {
            IGNORED_BY_CALLER.store(old.sa_sigaction == libc::SIG_IGN, Ordering::Relaxed);
        }
    }
}

// SAFETY: the dynamic linker (or the C library's start code) calls each entry of this section once, before `main` and on the
// only thread; extra arguments that it passes are ignored by the C calling convention. `note` needs nothing of Rust's runtime.
#[unsafe(link_section = ".init_array")]
#[used]
static NOTE: extern "C" fn() = note;

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

/// Ignores SIGPIPE again, as Rust's runtime does: for when the program was not executed after all.
pub fn ignore() {
    // SAFETY: the disposition runs no code of this process.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
