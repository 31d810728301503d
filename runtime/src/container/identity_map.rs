//! The user namespace of a container, who is who inside, and with it the mount namespace.
//!
//! An ordinary user may map one id, the own one: either to itself or to root (user_namespaces(7), "Defining user and group ID
//! mappings"). The group map needs setgroups(2) to be denied first. Root maps every id that it has to itself, so that files of all owners
//! look as they are; such a map must be written by a process outside the namespace that has CAP_SETUID there.

use std::fs;
use std::io;
use std::path::Path;

use rustix::thread::UnshareFlags;

use crate::slurm::helper::Helper;
use crate::sys::{namespace, process};

/// Which ids exist in the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdMap {
    /// The caller alone, with these ids inside.
    Single {
        /// User id inside.
        uid: u32,
        /// Group id inside.
        gid: u32,
    },
    /// Every id of the caller's own namespace, unchanged.
    Identity,
}

/// Why there is no user namespace.
#[derive(Debug, thiserror::Error)]
pub enum UserNamespaceError {
    /// unshare(2) failed.
    #[error("cannot create user and mount namespaces")]
    Create(#[source] io::Error),
    /// The ids could not be mapped.
    #[error("cannot write `{path}`")]
    Map {
        /// The file of `/proc`.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The caller's own ids could not be read.
    #[error("cannot read `{path}`")]
    OwnMap {
        /// The file of `/proc`.
        path: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The process that writes root's maps failed.
    #[error("the process that maps the ids failed")]
    Helper(#[source] io::Error),
}

/// Moves the calling process, which must have one thread, into a new user namespace with these ids, and a new mount namespace; `further` are
/// namespaces to be made besides.
///
/// # Errors
///
/// The step that failed.
pub fn enter(map: IdMap, further: UnshareFlags) -> Result<(), UserNamespaceError> {
    enter_with_groups(map, further, None)
}

/// The same, with all groups of the caller where a helper can map them.
///
/// # Errors
///
/// The step that failed.
pub fn enter_with_groups(
    map: IdMap,
    further: UnshareFlags,
    helper: Option<&Helper>,
) -> Result<(), UserNamespaceError> {
    match map {
        IdMap::Single { uid, gid } => {
            let (outer_uid, outer_gid) = (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            );
            namespace::new_user_and_mount(further)
                .map_err(|error| UserNamespaceError::Create(error.into()))?;
            let own = Path::new("/proc/self");
            write_map(own, "setgroups", "deny")?;
            let root_inside = gid == 0 && outer_gid != 0;
            if !helper.is_some_and(|helper| helper.map_groups(root_inside)) {
                write_map(own, "gid_map", &format!("{gid} {outer_gid} 1\n"))?;
            }
            write_map(own, "uid_map", &format!("{uid} {outer_uid} 1\n"))
        }
        IdMap::Identity => {
            let uids = identity_of("/proc/self/uid_map")?;
            let gids = identity_of("/proc/self/gid_map")?;
            let (go, start) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .map_err(|error| UserNamespaceError::Helper(error.into()))?;
            let mut start = Some(start);
            let parent = Path::new("/proc").join(std::process::id().to_string());
            let helper = process::spawn_helper(|| {
                // The child's copy of the writing end, which would hide the end of file below.
                drop(start.take());
                // The byte says that the namespace is there; an end of file that it will never be.
                let mut byte = [0];
                if !matches!(rustix::io::read(&go, &mut byte), Ok(1)) {
                    return 0;
                }
                let written = write_map(&parent, "gid_map", &gids)
                    .and_then(|()| write_map(&parent, "uid_map", &uids));
                match written {
                    Err(UserNamespaceError::Map { source, .. }) => {
                        source.raw_os_error().unwrap_or(libc::EIO)
                    }
                    _ => 0,
                }
            })
            .map_err(UserNamespaceError::Helper)?;
            let created = namespace::new_user_and_mount(further);
            if let Some(start) = start.filter(|_| created.is_ok()) {
                rustix::io::write(&start, b"+")
                    .map_err(|error| UserNamespaceError::Helper(error.into()))?;
            }
            let status = helper.wait().map_err(UserNamespaceError::Helper)?;
            created.map_err(|error| UserNamespaceError::Create(error.into()))?;
            match status {
                0 => Ok(()),
                status => Err(UserNamespaceError::Helper(io::Error::from_raw_os_error(
                    status,
                ))),
            }
        }
    }
}

fn write_map(process: &Path, name: &str, content: &str) -> Result<(), UserNamespaceError> {
    let path = process.join(name);
    // Not `fs::write`, which truncates: the kernel wants one write, and has nothing to truncate.
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| io::Write::write_all(&mut file, content.as_bytes()))
        .map_err(|source| UserNamespaceError::Map {
            path: path.display().to_string(),
            source,
        })
}

/// The map that gives every id of this namespace the same number in a child.
fn identity_of(path: &'static str) -> Result<String, UserNamespaceError> {
    fs::read_to_string(path)
        .map(|map| identity_map(&map))
        .map_err(|source| UserNamespaceError::OwnMap { path, source })
}

fn identity_map(map: &str) -> String {
    let mut lines = String::new();
    for line in map.lines() {
        let mut fields = line.split_ascii_whitespace();
        if let (Some(inside), Some(_), Some(count)) = (fields.next(), fields.next(), fields.next())
        {
            lines.push_str(&format!("{inside} {inside} {count}\n"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_map_keeps_the_inner_numbers() {
        assert_eq!(
            identity_map("         0          0 4294967295\n"),
            "0 0 4294967295\n"
        );
        assert_eq!(
            identity_map("0 1000 1\n1 100000 65536\n"),
            "0 0 1\n1 1 65536\n"
        );
    }
}
