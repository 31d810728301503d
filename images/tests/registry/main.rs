//! Sources against the real parts (docker-registry, skopeo) and against a server that misbehaves on purpose.
//!
//! A tool that is missing makes its tests report themselves as skipped, by name; with `CISTA_TEST_REQUIRE=1` it makes them fail.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking, and report what they skip"
)]

mod authentication;
mod distribution;
mod documents;
mod faults;
mod hostile;
mod identity;
mod image;
mod local;
mod mirrors;
mod parts;
mod patience;
mod policy;
mod proxy;
mod realms;
mod server;
mod stopping;
mod stored;
mod tls;
mod tools;
