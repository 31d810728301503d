//! Bundles of the OCI runtime specification (1.0 and 1.1): a directory with a root file system and a `config.json`.
//!
//! This is as much of the runtime command line as Slurm's `oci.conf` needs for `srun --container=BUNDLE`, and as bundles of umoci need.
//! The rooms follow the life of a container: [`bundle`], what is asked for, as its [`config`] says; [`run`](mod@run), from there to the running program;
//! [`mounts`], the mounts of a bundle; [`capabilities`], their names; [`state`], what `state`, `kill` and `delete` know of it.
//!
//! What differs from runc:
//!
//! - `run` becomes the container's program, as `start` does: whoever started it is its parent. So nobody is left to forget the container
//!   when it ends: `state` calls it stopped until `delete`, or until the next `run` of that name.
//! - There is always a user namespace, also for root, which then maps every id to itself.
//! - With a pid namespace the program is process 2, below an init that waits for orphans; see `sys::supervise`.
//! - `no_new_privs` is always set, and our seccomp filter is installed rather than the bundle's.
//! - Control groups are left to who starts the container: under Slurm, the job's limits hold.
//!
//! Whatever else a bundle asks for that is not done is an error where the program would depend on it, and a warning otherwise.

pub mod bundle;
pub mod capabilities;
pub mod config;
pub mod mounts;
pub mod run;
pub mod state;
