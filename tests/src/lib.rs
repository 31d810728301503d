//! The harness of the end-to-end tests, the demo and the benches.
//!
//! It talks to `cista` from outside, as a user would: programs, files, signals. From the bottom up:
//!
//! - [`error`], [`program`], [`process`], [`user`], [`packages`]: running real programs as a certain user
//! - [`registry`], [`image`]: a real registry, with images made of Debian packages; [`proxy`]: a bad way to it
//! - [`listing`], [`extract`]: what a tree contains, and an opinion on an image that owes nothing to our code
//! - [`pty`]: a terminal
//! - [`environment`]: a directory, a home and a `cista` for one test, which it must leave as it found them
//! - [`slurm`]: a real Slurm cluster; [`driver`], [`gpu`]: NVIDIA GPUs, a tree of files that stands for some, and real ones
//! - [`case`]: what a test needs from the machine, and what becomes of it where that is missing

#![forbid(unsafe_code)]

pub mod artifacts;
pub mod case;
pub mod driver;
pub mod environment;
pub mod error;
pub mod extract;
pub mod gpu;
pub mod image;
pub mod listing;
pub mod packages;
pub mod probe;
pub mod process;
pub mod program;
pub mod proxy;
pub mod pty;
pub mod registry;
pub mod slurm;
pub mod user;
