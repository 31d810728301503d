//! The FUSE server, asked by a pretended kernel over a socket (no privileges needed), and by the real one.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and reports what it skips"
)]

mod hostile;
mod image;
mod kernel;
mod mount;
mod names;
mod reads;
