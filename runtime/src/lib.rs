//! The command line of `cista`, and everything about running a container.
//!
//! - [`bundle`]: this program with an image behind it
//! - [`check`]: what this machine lacks
//! - [`cli`]: one file a command
//! - [`ui`]: the only place that writes to stdout and stderr
//! - [`config`]: typed settings; the only place that reads the process environment
//! - [`container`]: specification, namespaces, root file system, mounts, exec
//! - [`credentials`]: the logins that the user has stored for enroot, docker and podman
//! - [`devices`]: the devices that a container is granted
//! - [`fuse`]: serves a squashfs image to the kernel
//! - [`manual`]: pages about topics, and the reference
//! - [`migrate`]: what the files of enroot and pyxis become
//! - [`observe`]: what starts and imports spend their time on, for logs and Prometheus
//! - [`oci`]: bundles of the OCI runtime specification
//! - [`slurm`]: the program's part of a step of Slurm
//! - [`sys`]: the only place with `unsafe`

pub mod bundle;
pub mod check;
pub mod cli;
pub mod config;
pub mod container;
pub mod credentials;
pub mod devices;
pub mod fuse;
pub mod manual;
pub mod migrate;
pub mod observe;
pub mod oci;
pub mod slurm;
pub mod sys;
pub mod ui;
