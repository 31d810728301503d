//! What is granted: the edits of a container, and the decisions that led to them.
//!
//! The edits are those of the Container Device Interface (`containerEdits` of its specification, version 1.1), and a few things that its well-known
//! hooks do: links, the linker cache, files in place of those of `/proc`. Paths on the host are as the host has them: they are resolved
//! below the [`Host`](super::Host)'s root.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

/// What a container gets.
#[derive(Clone, Debug, Default)]
pub struct Grant {
    /// What changes in the container.
    pub edits: Edits,
    /// What was granted or not, in order, for `--explain-devices`.
    pub decisions: Vec<Decision>,
    /// What numbers of the host's GPUs are in the container, where they differ.
    pub numberings: Vec<Numbering>,
    /// Variables of the job that mean something else in the container.
    pub translations: Vec<Translation>,
    /// What everybody should know about it.
    pub warnings: Vec<String>,
    /// How many GPUs are granted.
    pub gpus: usize,
    /// Devices that are in [`Edits::devices`], by the names that options give them, such as `nvidia.com/gpu=0`.
    pub names: Vec<String>,
}

impl Grant {
    /// Notes that something is granted.
    pub fn yes(&mut self, subject: impl Into<String>, why: impl Into<String>) {
        self.decisions.push(Decision {
            subject: subject.into(),
            is_granted: true,
            why: why.into(),
        });
    }

    /// Notes that something is not granted.
    pub fn no(&mut self, subject: impl Into<String>, why: impl Into<String>) {
        self.decisions.push(Decision {
            subject: subject.into(),
            is_granted: false,
            why: why.into(),
        });
    }

    /// Adds a device node at its own path, and notes it. One that is there already is not added again.
    pub fn device(&mut self, path: impl AsRef<Path>, why: impl Into<String>) {
        let path = path.as_ref();
        if !self.edits.devices.iter().any(|node| node.path == path) {
            self.yes(path.display().to_string(), why);
            self.edits.devices.push(DeviceNode {
                path: path.to_owned(),
                host_path: path.to_owned(),
                is_read_only: false,
            });
        }
    }

    /// Adds a file or directory of the host, read-only, at its own path, and notes it.
    pub fn file(&mut self, path: impl AsRef<Path>, why: impl Into<String>) {
        let path = path.as_ref();
        if !self.edits.mounts.iter().any(|mount| mount.path == path) {
            self.yes(path.display().to_string(), why);
            self.edits.mounts.push(Mount::read_only(path, path));
        }
    }
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The device, file or library.
    pub subject: String,
    /// Whether the container gets it.
    pub is_granted: bool,
    /// Why, or why not.
    pub why: String,
}

impl fmt::Display for Decision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_granted {
            "granted"
        } else {
            "not granted"
        };
        write!(formatter, "{verdict:12} {}: {}", self.subject, self.why)
    }
}

/// A variable of the job that means something else in the container. It is translated where the container has the job's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The variable.
    pub name: &'static str,
    /// Its value in the job.
    pub from: String,
    /// Its value in the container.
    pub to: String,
}

/// The numbers of a vendor's GPUs: libraries number those that are there from 0, which in a container are some of the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbering {
    /// The variables by which libraries are told which GPUs to use.
    pub variables: &'static [&'static str],
    /// The number on the host, and the number in the container.
    pub numbers: Vec<(usize, usize)>,
    /// Whether the control group allows every GPU that there is.
    pub is_open: bool,
}

impl fmt::Display for Numbering {
    /// As the plugin of Slurm reads it: `CUDA_VISIBLE_DEVICES,GPU_DEVICE_ORDINAL open 4=0,6=1`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_open { "open" } else { "closed" };
        let numbers = self.numbers.iter();
        let numbers: Vec<String> = numbers
            .map(|(host, inside)| format!("{host}={inside}"))
            .collect();
        let (variables, numbers) = (self.variables.join(","), numbers.join(","));
        write!(formatter, "{variables} {state} {numbers}")
    }
}

impl Numbering {
    /// What a variable's value with the host's numbers is in the container. None where that is the same, or where the container does not have all of them.
    #[must_use]
    pub fn translate(&self, value: &str) -> Option<String> {
        let translated: Option<Vec<String>> = value
            .split(',')
            .map(|word| {
                // Of `1.0`, a part of a GPU, the GPU.
                let (number, part) = match word.trim().split_once('.') {
                    Some((number, part)) => (number, format!(".{part}")),
                    None => (word.trim(), String::new()),
                };
                let number: usize = number.parse().ok()?;
                let known = self.numbers.iter().find(|(host, _)| *host == number)?;
                Some(format!("{}{part}", known.1))
            })
            .collect();
        translated
            .map(|words| words.join(","))
            .filter(|translated| translated != value)
    }
}

/// What changes in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// Device nodes.
    pub devices: Vec<DeviceNode>,
    /// Files and directories of the host.
    pub mounts: Vec<Mount>,
    /// Shared libraries of the host, which go where the image has its libraries.
    pub libraries: Vec<Library>,
    /// Directories of the container whose libraries the dynamic linker should find: those that [`Self::mounts`] put there.
    pub library_directories: Vec<PathBuf>,
    /// Symbolic links.
    pub symlinks: Vec<Symlink>,
    /// Directories with a content of our making, such as a filtered view of one in `/proc` or `/sys`.
    pub directories: Vec<Directory>,
    /// Files with a content of our making, put over those that are there.
    pub files: Vec<GeneratedFile>,
    /// Variables, which the image's give way to.
    pub environment: Vec<(OsString, OsString)>,
    /// Groups that own devices. A user namespace of one user cannot add any; those that the user has are kept.
    pub groups: Vec<u32>,
    /// Programs of the host that have to be run.
    pub hooks: Vec<Hook>,
    /// Version of NVIDIA's driver, where the image's own CUDA compatibility libraries are to be used in place of the driver's when they are newer.
    pub cuda_compat: Option<String>,
}

impl Edits {
    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A device node: a mount of the host's, since a user namespace cannot make devices that work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    /// Path in the container.
    pub path: PathBuf,
    /// Path on the host.
    pub host_path: PathBuf,
    /// Whether it cannot be opened for writing (`permissions` without `w`).
    pub is_read_only: bool,
}

/// A mount of a file or directory of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Path in the container.
    pub path: PathBuf,
    /// Path on the host.
    pub host_path: PathBuf,
    /// Type of a new file system, such as `tmpfs`; None for a bind mount.
    pub kind: Option<String>,
    /// Options of mount(8) as CDI gives them: `ro`, `nosuid`, `nodev`, `rbind`, …
    pub options: Vec<String>,
}

impl Mount {
    /// A mount as drivers' files are mounted: read-only, without the power of devices and setuid programs.
    #[must_use]
    pub fn read_only(path: impl Into<PathBuf>, host_path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            host_path: host_path.into(),
            kind: None,
            options: ["ro", "nosuid", "nodev", "rbind"].map(str::to_owned).into(),
        }
    }
}

/// A shared library of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// The file on the host, without symbolic links.
    pub host_path: PathBuf,
    /// Whether it is for 32-bit programs.
    pub is_32_bit: bool,
    /// Where it goes below the image's library directory: nothing, or a name such as `vdpau`.
    pub below: Option<&'static str>,
    /// Names of symbolic links to it beside it: its soname, and what programs link to.
    pub links: Vec<String>,
}

/// A symbolic link in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symlink {
    /// Path in the container.
    pub path: PathBuf,
    /// What the link says.
    pub target: PathBuf,
}

/// A directory of our making, mounted read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Path in the container, which must be there where it is below `/proc` or `/sys`.
    pub path: PathBuf,
    /// What is in it, by path below it; directories above an entry are made.
    pub entries: Vec<(PathBuf, Entry)>,
}

/// What is in a directory of our making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory, which is empty but for other entries.
    Directory,
    /// A file.
    File(Vec<u8>),
    /// A symbolic link.
    Symlink(PathBuf),
    /// A file or directory of the host.
    Host(PathBuf),
}

/// A file of our making, mounted read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedFile {
    /// Path in the container.
    pub path: PathBuf,
    /// Its content.
    pub content: Vec<u8>,
}

/// When a hook runs (OCI runtime specification, "POSIX-platform Hooks"), in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// After the namespaces exist and before the root is switched; the older name of the next.
    Prestart,
    /// The same.
    CreateRuntime,
    /// The same, in the container's mount namespace.
    CreateContainer,
    /// In the container, a program of it, before the container's own.
    StartContainer,
    /// On the host, after the container's program has been executed.
    Poststart,
    /// On the host, after the container's program has ended.
    Poststop,
}

impl Stage {
    /// All of them, by their names.
    const NAMES: [(&'static str, Self); 6] = [
        ("prestart", Self::Prestart),
        ("createRuntime", Self::CreateRuntime),
        ("createContainer", Self::CreateContainer),
        ("startContainer", Self::StartContainer),
        ("poststart", Self::Poststart),
        ("poststop", Self::Poststop),
    ];

    /// The stage of a name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let known = Self::NAMES.iter().find(|(known, _)| *known == name);
        known.map(|(_, stage)| *stage)
    }

    /// Whether it is run while the container is made, on the host's files.
    #[must_use]
    pub fn is_before(self) -> bool {
        self < Self::StartContainer
    }

    /// Whether it is run when the container's program is, so that something has to stay beside it.
    #[must_use]
    pub fn is_beside(self) -> bool {
        self > Self::StartContainer
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Self::NAMES.iter().find(|(_, stage)| stage == self);
        formatter.write_str(known.map_or("", |(name, _)| name))
    }
}

/// A program that a device wants to be run, as in the OCI runtime specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// When it runs.
    pub stage: Stage,
    /// The program: of the host, or with `startContainer` of the container.
    pub path: PathBuf,
    /// Its arguments, the first one being its name.
    pub arguments: Vec<OsString>,
    /// Its environment, `NAME=VALUE`.
    pub environment: Vec<OsString>,
    /// Seconds that it may run.
    pub timeout: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_of_hooks() {
        for (name, is_before, is_beside) in [
            ("prestart", true, false),
            ("createContainer", true, false),
            ("startContainer", false, false),
            ("poststop", false, true),
        ] {
            let stage = Stage::parse(name).unwrap();
            assert_eq!(
                (stage.is_before(), stage.is_beside()),
                (is_before, is_beside),
                "{name}"
            );
            assert_eq!(stage.to_string(), name);
        }
        assert_eq!(Stage::parse("Poststop"), None);
    }
}
