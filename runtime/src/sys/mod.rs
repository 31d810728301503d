//! System calls that no safe crate offers: the only room with `unsafe`.
//!
//! Each function takes and returns safe types, does one thing, and says at its unsafe block which invariant makes it
//! sound. What `rustix` already offers safely (the new mount API, `openat2`, `pivot_root`, capabilities) is used from
//! there and not repeated here.
//!
//! - [`accounts`]: the host's user and group databases through the C library, since they may live in LDAP
//! - [`child`]: programs that may not outlive us
//! - [`entry`]: from the C library to our `main`
//! - [`heap`]: giving memory back
//! - [`again`]: this program, executed again by itself
//! - [`mount`]: flags of mounts, `mount_setattr(2)`
//! - [`namespace`]: new ones, `unshare(2)`, and whose they are
//! - [`network`]: the loopback interface
//! - [`process`]: processes that are nobody's child, `execve(2)`
//! - [`seccomp`]: installing a filter
//! - [`signal`]: Ctrl-C asks a long operation to stop
//! - [`sigpipe`]: the disposition of SIGPIPE that the caller gave us
//! - [`supervise`]: a process that stands for another one
//! - [`time`]: the time of day where we are

#![expect(
    unsafe_code,
    reason = "this room exists to keep every unsafe block in one place"
)]

pub mod accounts;
pub mod again;
pub mod child;
pub mod entry;
pub mod heap;
pub mod mount;
pub mod namespace;
pub mod network;
pub mod process;
pub mod seccomp;
pub mod signal;
pub mod sigpipe;
pub mod supervise;
pub mod time;
