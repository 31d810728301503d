//! A bundle: its configuration, and what of it can be done.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::thread::UnshareFlags;
use serde_json::Value;

use super::config::{IdMapping, Linux, NamespaceKind, Process, Spec};
use crate::container::identity_map::IdMap;

/// Name of the configuration.
const CONFIG: &str = "config.json";

/// Longest configuration that is read, in bytes.
const MAX_CONFIG: u64 = 16 << 20;

/// A bundle that can be run.
#[derive(Debug)]
pub struct Bundle {
    /// Its directory, absolute.
    pub directory: PathBuf,
    /// Its root file system, absolute.
    pub root: PathBuf,
    /// Whether the root is read-only.
    pub readonly: bool,
    /// The whole configuration.
    pub spec: Spec,
    /// The program and its state.
    pub process: Process,
    /// What is particular to Linux.
    pub linux: Linux,
    /// Users inside and outside.
    pub map: IdMap,
    /// Namespaces besides those of users and mounts.
    pub namespaces: UnshareFlags,
    /// What is asked for and not done, to be told.
    pub ignored: Vec<&'static str>,
}

/// Why a bundle cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The configuration cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The configuration is not one.
    #[error("`{path}` is not the configuration of a bundle")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The configuration is for another version of the specification.
    #[error(
        "the bundle is of version `{version}` of the runtime specification, this program knows 1"
    )]
    Version {
        /// Its version.
        version: String,
    },
    /// Something is not there that has to be.
    #[error("the bundle has no `{field}`")]
    Lacks {
        /// Name of the field.
        field: &'static str,
    },
    /// Something is asked for that cannot be left out.
    #[error("`{field}` of the bundle is not supported")]
    Unsupported {
        /// Name of the field.
        field: &'static str,
    },
    /// The user is not one that the namespace has.
    #[error(
        "`process.user` is {uid}:{gid}, which the mappings of the bundle do not give to the user {own_uid}:{own_gid}"
    )]
    User {
        /// User asked for.
        uid: u32,
        /// Group asked for.
        gid: u32,
        /// Caller's user.
        own_uid: u32,
        /// Caller's group.
        own_gid: u32,
    },
}

/// What a program would miss.
const REFUSED: [&str; 10] = [
    "hooks.prestart",
    "hooks.createRuntime",
    "hooks.createContainer",
    "hooks.startContainer",
    "hooks.poststart",
    "hooks.poststop",
    "linux.sysctl",
    "linux.timeOffsets",
    "linux.netDevices",
    "linux.personality",
];

/// What is left out, with a warning.
const IGNORED: [&str; 17] = [
    "process.apparmorProfile",
    "process.selinuxLabel",
    "process.ioPriority",
    "process.scheduler",
    "process.execCPUAffinity",
    "linux.seccomp",
    "linux.rootfsPropagation",
    "linux.mountLabel",
    "linux.intelRdt",
    "linux.memoryPolicy",
    "linux.resources.memory",
    "linux.resources.cpu",
    "linux.resources.pids",
    "linux.resources.blockIO",
    "linux.resources.hugepageLimits",
    "linux.resources.network",
    "linux.resources.rdma",
];

impl Bundle {
    /// Reads a bundle.
    ///
    /// # Errors
    ///
    /// A configuration that cannot be read or is not understood, or that asks for what cannot be done.
    pub fn open(directory: &Path) -> Result<Self, BundleError> {
        let read = |path: &Path| {
            let path = path.to_owned();
            move |source| BundleError::Read { path, source }
        };
        let directory = fs::canonicalize(directory).map_err(read(directory))?;
        let path = directory.join(CONFIG);
        let mut text = Vec::new();
        fs::File::open(&path)
            .and_then(|file| file.take(MAX_CONFIG).read_to_end(&mut text))
            .map_err(read(&path))?;
        let malformed = |source| BundleError::Malformed {
            path: path.clone(),
            source,
        };
        let raw: Value = serde_json::from_slice(&text).map_err(malformed)?;
        let spec: Spec = serde_json::from_slice(&text).map_err(malformed)?;
        if !spec.version.starts_with("1.") {
            return Err(BundleError::Version {
                version: spec.version,
            });
        }
        if let Some(field) = REFUSED.into_iter().find(|field| asks_for(&raw, field)) {
            return Err(BundleError::Unsupported { field });
        }
        let root = spec
            .root
            .as_ref()
            .ok_or(BundleError::Lacks { field: "root" })?;
        let process = spec
            .process
            .clone()
            .ok_or(BundleError::Lacks { field: "process" })?;
        if process.args.as_ref().is_none_or(Vec::is_empty) {
            return Err(BundleError::Lacks {
                field: "process.args",
            });
        }
        // A bundle without it gets a container with no namespaces but those of users and mounts.
        let linux = spec.linux.clone().unwrap_or_default();
        let map = map(&linux, &process)?;
        let namespaces = namespaces(&linux)?;
        if !namespaces.contains(UnshareFlags::NEWUTS)
            && (spec.hostname.is_some() || spec.domainname.is_some())
        {
            return Err(BundleError::Unsupported {
                field: "hostname without a UTS namespace",
            });
        }
        let mut ignored: Vec<&str> = IGNORED
            .into_iter()
            .filter(|field| asks_for(&raw, field))
            .collect();
        let has_groups = process
            .user
            .additional_gids
            .as_ref()
            .is_some_and(|gids| !gids.is_empty());
        if has_groups && map != IdMap::Identity {
            // A namespace of one group can have no others; those of the caller are kept.
            ignored.push("process.user.additionalGids");
        }
        Ok(Self {
            root: directory.join(&root.path),
            readonly: root.readonly.unwrap_or(false),
            directory,
            process,
            linux,
            map,
            namespaces,
            ignored,
            spec,
        })
    }

    /// The command line.
    #[must_use]
    pub fn command(&self) -> Vec<OsString> {
        self.process
            .args
            .iter()
            .flatten()
            .map(OsString::from)
            .collect()
    }

    /// The environment, as `NAME=VALUE`.
    pub fn environment(&self) -> impl Iterator<Item = &OsStr> {
        self.process.env.iter().flatten().map(OsStr::new)
    }
}

/// Whether a configuration has something other than nothing at a path of names.
fn asks_for(config: &Value, path: &str) -> bool {
    let found = path
        .split('.')
        .try_fold(config, |value, name| value.get(name));
    match found {
        None | Some(Value::Null) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(fields)) => !fields.is_empty(),
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    }
}

/// Users inside: as the mappings say, which for an ordinary user can only be one; without mappings, who the program is to run as.
fn map(linux: &Linux, process: &Process) -> Result<IdMap, BundleError> {
    let (own_uid, own_gid) = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let (uid, gid) = (process.user.uid, process.user.gid);
    let wrong_user = BundleError::User {
        uid,
        gid,
        own_uid,
        own_gid,
    };
    let single = |mappings: &Option<Vec<IdMapping>>, own| match mappings.as_deref() {
        None | Some([]) => Ok(None),
        Some([one]) if one.size == 1 && one.host_id == own => Ok(Some(one.container_id)),
        Some(_) => Err(BundleError::Unsupported {
            field: "linux.uidMappings of more than the caller",
        }),
    };
    if own_uid == 0 {
        let is_identity = |mappings: &Option<Vec<IdMapping>>| {
            mappings
                .iter()
                .flatten()
                .all(|mapping| mapping.host_id == mapping.container_id)
        };
        if is_identity(&linux.uid_mappings) && is_identity(&linux.gid_mappings) {
            return Ok(IdMap::Identity);
        }
    }
    let mapped = (
        single(&linux.uid_mappings, own_uid)?.unwrap_or(uid),
        single(&linux.gid_mappings, own_gid)?.unwrap_or(gid),
    );
    if mapped == (uid, gid) {
        Ok(IdMap::Single { uid, gid })
    } else {
        Err(wrong_user)
    }
}

fn namespaces(linux: &Linux) -> Result<UnshareFlags, BundleError> {
    let mut flags = UnshareFlags::empty();
    for namespace in linux.namespaces.iter().flatten() {
        if namespace.path.is_some() {
            return Err(BundleError::Unsupported {
                field: "linux.namespaces[].path",
            });
        }
        flags |= match namespace.kind {
            NamespaceKind::User | NamespaceKind::Mount => UnshareFlags::empty(),
            NamespaceKind::Pid => UnshareFlags::NEWPID,
            NamespaceKind::Network => UnshareFlags::NEWNET,
            NamespaceKind::Ipc => UnshareFlags::NEWIPC,
            NamespaceKind::Uts => UnshareFlags::NEWUTS,
            NamespaceKind::Cgroup => UnshareFlags::NEWCGROUP,
            NamespaceKind::Time => {
                return Err(BundleError::Unsupported {
                    field: "linux.namespaces of type time",
                });
            }
        };
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(config: &str) -> Result<Bundle, BundleError> {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join(CONFIG), config).unwrap();
        Bundle::open(scratch.path())
    }

    fn config(process: &str, rest: &str) -> String {
        format!(
            r#"{{"ociVersion":"1.0.2","root":{{"path":"rootfs"}},"process":{{"user":{{"uid":{},"gid":{}}},"cwd":"/","args":["sh"]{process}}}{rest}}}"#,
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        )
    }

    #[test]
    fn what_a_bundle_says() {
        let bundle = open(&config(
            r#","env":["A=1"],"apparmorProfile":"x""#,
            r#","hostname":"h","linux":{"namespaces":[{"type":"uts"},{"type":"mount"},{"type":"pid"}],"resources":{"devices":[{"allow":false}],"memory":{"limit":1}}}"#,
        ))
        .unwrap();
        assert!(bundle.root.ends_with("rootfs") && bundle.root.is_absolute());
        assert_eq!(bundle.command(), ["sh"]);
        assert_eq!(bundle.environment().collect::<Vec<_>>(), ["A=1"]);
        assert_eq!(
            bundle.namespaces,
            UnshareFlags::NEWUTS | UnshareFlags::NEWPID
        );
        assert_eq!(
            bundle.ignored,
            ["process.apparmorProfile", "linux.resources.memory"]
        );
        let bare = open(&config("", "")).unwrap();
        assert_eq!(bare.namespaces, UnshareFlags::empty());
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for (config, word) in [
            ("{", "is not the configuration"),
            ("3", "is not the configuration"),
            (r#"{"ociVersion":"2.0"}"#, "version `2.0`"),
            (r#"{"ociVersion":"1.0.0"}"#, "no `root`"),
            (
                r#"{"ociVersion":"1.0.0","root":{"path":"r"}}"#,
                "no `process`",
            ),
            (
                &config("", r#","hooks":{"prestart":[{"path":"/x"}]}"#),
                "hooks.prestart",
            ),
            (
                &config("", r#","linux":{"sysctl":{"kernel.shmmax":"1"}}"#),
                "linux.sysctl",
            ),
            (&config("", r#","hostname":"h""#), "hostname"),
            (
                &config(
                    "",
                    r#","linux":{"namespaces":[{"type":"network","path":"/x"}]}"#,
                ),
                "linux.namespaces[].path",
            ),
            (
                &config(
                    "",
                    r#","linux":{"uidMappings":[{"containerID":0,"hostID":100000,"size":65536}]}"#,
                ),
                "uidMappings",
            ),
        ] {
            let error = open(config).unwrap_err().to_string();
            assert!(error.contains(word), "{config}: {error}");
        }
    }
}
