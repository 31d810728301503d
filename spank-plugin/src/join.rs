//! A task enters the container: as the user, just before slurmstepd executes it.
//!
//! The kernel gives the right to: the job's user has made the user namespace. So nothing has to be believed of the holder, which is the user's own.
//! What `cista start` leaves a program of, a task is left of too: no_new_privs, the seccomp filter, no capabilities unless it is root inside.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::ffi::process;
use crate::ffi::slurm::Spank;
use crate::gpus::{self, Numbering};
use crate::holder::name_of;
use crate::options::Options;
use crate::wire;

/// Languages of the node, of which the container knows nothing.
const LANGUAGES: [&str; 3] = ["LANG", "LANGUAGE", "LC_ALL"];

/// What PMIx calls its modules, and what a client calls them.
const PMIX_MODULES: [(&str, &str); 3] = [
    ("PMIX_SECURITY_MODE", "PMIX_MCA_psec"),
    ("PMIX_GDS_MODULE", "PMIX_MCA_gds"),
    ("PMIX_PTL_MODULE", "PMIX_MCA_ptl"),
];

/// What the numbers of a task are for PyTorch.
const PYTORCH: [(&str, &str); 2] = [("RANK", "SLURM_PROCID"), ("LOCAL_RANK", "SLURM_LOCALID")];

/// The container, as the holder tells it.
#[derive(Default)]
struct Container {
    root: Option<OwnedFd>,
    directory: Option<OwnedFd>,
    /// With the user namespace first, which gives the right to the others.
    namespaces: Vec<OwnedFd>,
    variables: Vec<(OsString, OsString)>,
    /// What GPUs are called in it.
    numberings: Vec<Numbering>,
    filter: Option<Vec<u8>>,
    keeps_capabilities: bool,
}

/// Enters the container.
///
/// # Errors
///
/// A text for the user. The process is then no longer what it was, and must end.
pub(crate) fn join(
    spank: &Spank,
    files: Vec<OwnedFd>,
    options: &Options,
    environment: &[OsString],
) -> Result<(), String> {
    let container = Container::read(files)?;
    set_environment(spank, &container, options, environment)?;
    container
        .enter()
        .map_err(|(what, error)| format!("cannot {what}: {error}"))
}

impl Container {
    fn read(files: Vec<OwnedFd>) -> Result<Self, String> {
        let strange = || {
            "`cista` gave an answer that the plugin does not understand: are both of one release?"
                .to_owned()
        };
        let mut files = files.into_iter();
        let text = files.next().ok_or_else(strange)?;
        let records = wire::read(text)
            .map_err(|error| format!("cannot read what `cista` has answered: {error}"))?
            .ok_or_else(strange)?;
        let mut container = Self::default();
        for (key, value) in records {
            match key.as_str() {
                "file" => {
                    let file = files.next().ok_or_else(strange)?;
                    match value.as_bytes() {
                        b"root" => container.root = Some(file),
                        b"directory" => container.directory = Some(file),
                        b"namespace" => container.namespaces.push(file),
                        _ => return Err(strange()),
                    }
                }
                "variable" => {
                    let name = name_of(&value).to_owned();
                    let value = value.as_bytes().get(name.len() + 1..).unwrap_or_default();
                    let value = OsStr::from_bytes(value).to_owned();
                    container.variables.push((name, value));
                }
                "note-gpus" => container.numberings.extend(Numbering::parse(&value)),
                "filter" => container.filter = Some(bytes(&value).ok_or_else(strange)?),
                "capabilities" => container.keeps_capabilities = value == "keep",
                // Of a later release, and not needed to be safe: such records have other names.
                key if key.starts_with("note-") => {}
                _ => return Err(strange()),
            }
        }
        if container.namespaces.len() < 2 || container.filter.is_none() {
            return Err(strange());
        }
        Ok(container)
    }

    fn enter(self) -> Result<(), (&'static str, io::Error)> {
        let step = |what| move |error: rustix::io::Errno| (what, io::Error::from(error));
        for namespace in &self.namespaces {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), None)
                .map_err(step("enter the namespaces of the container"))?;
        }
        if let Some(root) = &self.root {
            rustix::process::fchdir(root)
                .and_then(|()| rustix::process::chroot("."))
                .map_err(step("enter the root of the container"))?;
        }
        if let Some(directory) = &self.directory {
            rustix::process::fchdir(directory)
                .map_err(step("enter the working directory in the container"))?;
        }
        rustix::thread::set_no_new_privs(true).map_err(step("set no_new_privs"))?;
        process::install_filter(&self.filter.unwrap_or_default())
            .map_err(|error| ("install the seccomp filter", error))?;
        if self.keeps_capabilities {
            return Ok(());
        }
        drop_capabilities().map_err(step("drop capabilities"))
    }
}

fn drop_capabilities() -> rustix::io::Result<()> {
    // EINVAL is the first number that the kernel has no capability for.
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    rustix::thread::set_capabilities(None, sets)
}

/// The job's variables, with those of the container in place of theirs but for the names that the user wants to keep.
fn set_environment(
    spank: &Spank,
    container: &Container,
    options: &Options,
    environment: &[OsString],
) -> Result<(), String> {
    let job = |name: &OsStr| {
        let of_name = environment
            .iter()
            .find(|assignment| name_of(assignment) == name)?;
        let value = &of_name.as_bytes()[(name.len() + 1).min(of_name.len())..];
        Some(OsStr::from_bytes(value).to_owned())
    };
    let is_kept = |name: &OsStr| options.environment.contains(name) && job(name).is_some();
    let set = |name: &OsStr, value: &OsStr| {
        if spank.set_variable(name, value) {
            Ok(())
        } else {
            Err(format!("cannot set the variable `{}`", name.display()))
        }
    };
    for name in LANGUAGES.map(OsStr::new) {
        if !is_kept(name) {
            spank.remove_variable(name);
        }
    }
    let variables = &container.variables;
    for (name, value) in gpus::translate(environment, &container.numberings) {
        set(OsStr::new(&name), OsStr::new(&value))?;
    }
    let mut has_pytorch = job(OsStr::new("PYTORCH_VERSION")).is_some();
    for (name, value) in variables {
        has_pytorch |= name == "PYTORCH_VERSION";
        if !is_kept(name) {
            set(name, value)?;
        }
    }
    if job(OsStr::new("PMIX_RANK")).is_some() {
        for (module, name) in PMIX_MODULES {
            if let Some(value) = job(OsStr::new(module)) {
                set(OsStr::new(name), &value)?;
            }
        }
    }
    if has_pytorch {
        for (name, number) in PYTORCH {
            let is_set = job(OsStr::new(name)).is_some()
                || variables.iter().any(|(variable, _)| variable == name);
            if let (false, Some(value)) = (is_set, job(OsStr::new(number))) {
                set(OsStr::new(name), &value)?;
            }
        }
    }
    Ok(())
}

/// Bytes that are written as hexadecimal digits, a whole number of instructions.
fn bytes(digits: &OsStr) -> Option<Vec<u8>> {
    let digits = digits.as_bytes();
    if !digits.len().is_multiple_of(2 * process::INSTRUCTION) {
        return None;
    }
    digits
        .chunks_exact(2)
        .map(|pair| {
            let text = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(text, 16).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_whole() {
        assert_eq!(bytes(OsStr::new("0600000000FF007f")).unwrap()[5], 0xff);
        for bad in ["06", "060000000000000g", "0600000000000000060"] {
            assert_eq!(bytes(OsStr::new(bad)), None, "{bad}");
        }
        assert_eq!(bytes(OsStr::new("")), Some(vec![]));
    }

    #[test]
    fn an_answer_without_a_filter_is_none() {
        for records in [
            &[][..],
            &[("capabilities", "keep")],
            &[("filter", "")],
            &[("file", "namespace"), ("filter", "")],
            &[("unknown", "")],
        ] {
            let mut text = wire::Text::new();
            for (key, value) in records {
                text.add(key, value);
            }
            let file = text.into_file().unwrap();
            assert!(Container::read(vec![file]).is_err(), "{records:?}");
        }
        assert!(Container::read(Vec::new()).is_err());
    }
}
