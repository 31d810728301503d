//! What a task is told of its container: descriptors, and a text that says what they are and what goes with them.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{MemfdFlags, SealFlags};

use super::request::{END, VERSION};
use crate::container::join::Handles;
use crate::container::seccomp;

/// An answer: the text as a file, then the descriptors that it names, in order.
#[derive(Debug)]
pub struct Answer {
    /// The files, the text first.
    pub files: Vec<OwnedFd>,
}

impl Answer {
    /// The answer for a container. `host` has the variables of the node's side, and `is_own` says of a variable that it is the task's own.
    ///
    /// # Errors
    ///
    /// The text cannot be written.
    pub fn new(handles: Handles, is_own: &dyn Fn(&OsStr) -> bool) -> io::Result<Self> {
        let mut text = VERSION.to_vec();
        text.push(0);
        let mut add = |key: &str, value: &[u8]| {
            text.extend_from_slice(key.as_bytes());
            text.push(b'=');
            text.extend_from_slice(value);
            text.push(0);
        };
        let mut files = Vec::new();
        for namespace in handles.namespaces {
            add("file", b"namespace");
            files.push(namespace);
        }
        add("file", b"root");
        files.push(handles.root);
        add("file", b"directory");
        files.push(handles.directory);
        for (name, value) in handles.environment.iter() {
            if !is_own(name) && !value.as_bytes().contains(&0) {
                let mut assignment = OsString::from(name);
                assignment.push("=");
                assignment.push(value);
                add("variable", assignment.as_bytes());
            }
        }
        for numbering in &handles.numberings {
            add("note-gpus", numbering.as_bytes());
        }
        add("filter", filter(handles.fakes_ownership).as_bytes());
        if handles.root_inside {
            add("capabilities", b"keep");
        }
        text.extend_from_slice(END);
        text.push(0);

        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(rustix::fs::memfd_create(c"cista-step", flags)?);
        file.write_all(&text)?;
        // All tasks get this very file.
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        files.insert(0, file.into());
        Ok(Self { files })
    }
}

/// The seccomp filter, its instructions in hexadecimal digits as they are in memory.
fn filter(fakes_ownership: bool) -> String {
    seccomp::filter(fakes_ownership)
        .iter()
        .flat_map(|instruction| {
            let mut bytes = [0; 8];
            bytes[..2].copy_from_slice(&instruction.code.to_ne_bytes());
            bytes[2..4].copy_from_slice(&[instruction.jt, instruction.jf]);
            bytes[4..].copy_from_slice(&instruction.k.to_ne_bytes());
            bytes
        })
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_written_whole() {
        let text = filter(true);
        assert_eq!(text.len(), 16 * seccomp::filter(true).len());
        assert!(text.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
