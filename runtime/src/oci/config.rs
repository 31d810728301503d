//! `config.json` of a bundle (OCI runtime specification 1.1, `config.md` and `config-linux.md`), as far as it is acted on.
//!
//! Whether something else is asked for is seen in the JSON itself; see [`super::bundle`]. These types are our own, since those of the crate `oci-spec`
//! bring regular expressions with them for one field that is not used here: its tables are a third of what the dynamic linker
//! has to adjust in each start of the program.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Deserialize;

/// The whole configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Version of the specification, as `1.0.2`.
    #[serde(rename = "ociVersion")]
    pub version: String,
    /// The root file system.
    pub root: Option<RootDirectory>,
    /// The program.
    pub process: Option<Process>,
    /// Name of the machine.
    pub hostname: Option<String>,
    /// Name of its domain.
    pub domainname: Option<String>,
    /// What is mounted, in this order.
    pub mounts: Option<Vec<Mount>>,
    /// What `state` tells again.
    pub annotations: Option<HashMap<String, String>>,
    /// What is particular to Linux.
    pub linux: Option<Linux>,
}

/// The root file system.
#[derive(Clone, Debug, Deserialize)]
pub struct RootDirectory {
    /// Absolute, or relative to the bundle.
    pub path: PathBuf,
    /// Whether it is read-only.
    pub readonly: Option<bool>,
}

/// The program and its state.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Whether it gets a terminal of its own.
    pub terminal: Option<bool>,
    /// Who it runs as.
    pub user: User,
    /// Its command line.
    pub args: Option<Vec<String>>,
    /// Its environment, as `NAME=VALUE`.
    pub env: Option<Vec<String>>,
    /// Its working directory.
    pub cwd: PathBuf,
    /// Its capabilities; none where this is missing.
    pub capabilities: Option<Capabilities>,
    /// Its resource limits.
    pub rlimits: Option<Vec<Rlimit>>,
    /// proc_pid_oom_score_adj(5).
    pub oom_score_adj: Option<i32>,
}

/// Who a program runs as.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// User in the container.
    pub uid: u32,
    /// Group in the container.
    pub gid: u32,
    /// Mode creation mask.
    pub umask: Option<u32>,
    /// Supplementary groups.
    pub additional_gids: Option<Vec<u32>>,
}

/// Sets of capabilities, by the kernel's names (`CAP_CHOWN`).
#[derive(Clone, Debug, Deserialize)]
pub struct Capabilities {
    /// See capabilities(7), as for all of these.
    pub bounding: Option<Vec<String>>,
    /// In force.
    pub effective: Option<Vec<String>>,
    /// Kept over execve(2), with the file's.
    pub inheritable: Option<Vec<String>>,
    /// That may be in force.
    pub permitted: Option<Vec<String>>,
    /// Kept over execve(2).
    pub ambient: Option<Vec<String>>,
}

/// A limit of getrlimit(2).
#[derive(Clone, Debug, Deserialize)]
pub struct Rlimit {
    /// As `RLIMIT_NOFILE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What is enforced.
    pub soft: u64,
    /// What it may be raised to.
    pub hard: u64,
}

/// A mount, as in mount(8).
#[derive(Clone, Debug, Deserialize)]
pub struct Mount {
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// Type of file system.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// What is mounted.
    pub source: Option<PathBuf>,
    /// Options.
    pub options: Option<Vec<String>>,
}

/// What is particular to Linux.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Linux {
    /// Users of the user namespace.
    pub uid_mappings: Option<Vec<IdMapping>>,
    /// Its groups.
    pub gid_mappings: Option<Vec<IdMapping>>,
    /// New namespaces.
    pub namespaces: Option<Vec<Namespace>>,
    /// Devices besides the standard ones.
    pub devices: Option<Vec<Device>>,
    /// What is not to be seen.
    pub masked_paths: Option<Vec<PathBuf>>,
    /// What is not to be changed.
    pub readonly_paths: Option<Vec<PathBuf>>,
}

/// A range of ids.
#[derive(Clone, Debug, Deserialize)]
pub struct IdMapping {
    /// The first one inside.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// The first one outside.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// A namespace.
#[derive(Clone, Debug, Deserialize)]
pub struct Namespace {
    /// Of what.
    #[serde(rename = "type")]
    pub kind: NamespaceKind,
    /// One that is there, instead of a new one.
    pub path: Option<PathBuf>,
}

/// What a namespace is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceKind {
    /// Control groups.
    Cgroup,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Mounts.
    Mount,
    /// Network.
    Network,
    /// Process ids.
    Pid,
    /// Clocks.
    Time,
    /// Users.
    User,
    /// Names of the machine.
    Uts,
}

/// A device node.
#[derive(Clone, Debug, Deserialize)]
pub struct Device {
    /// Where it is, in the container and on the host.
    pub path: PathBuf,
}
