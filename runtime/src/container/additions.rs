//! What the administrator and the user add to every container: `environ.d/*.env`, `mounts.d/*.fstab` and `hooks.d/*.sh`.
//!
//! They stand in the system's directory of settings and in the user's, and are taken in that order, and in each in the order of
//! their names. The image adds mounts of its own, by its `/etc/fstab`. All of it is read before the namespaces exist: where a
//! directory is missing, nothing in it is asked for, and a start without additions pays nothing.
//!
//! Called as `enroot` these are enroot's directories. The files that enroot installs itself (`10-system.fstab`,
//! `20-config.fstab`, `10-shadow.sh`, …) do what every container of ours has anyway, so they are passed over: mounts where
//! they say what is mounted already, hooks by their names.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::fstab::{self, Entry, FstabError, Kind};
use super::named::Content;
use super::rootfs::Rootfs;
use super::start::Root;
use super::unmounted::Unmounted;
use super::usual;
use super::view::View;
use crate::config::file::FileError;
use crate::config::{Dialect, Sources, host_variable, sources};

/// The longest file that is read, in bytes.
pub const MAX_FILE: u64 = 4 << 20;

/// The mounts of an image.
const FSTAB: &str = "etc/fstab";

/// Hooks of enroot that are native here.
pub const NATIVE_HOOKS: [&str; 11] = [
    "10-aptfix.sh",
    "10-cgroups.sh",
    "10-devices.sh",
    "10-home.sh",
    "10-localtime.sh",
    "10-shadow.sh",
    "50-slurm-pmi.sh",
    "50-slurm-pmix.sh",
    "50-slurm-pytorch.sh",
    "98-nvidia.sh",
    "99-mellanox.sh",
];

/// Those of them that an administrator puts there to have PMI.
const PMI_HOOKS: [&str; 2] = ["50-slurm-pmi.sh", "50-slurm-pmix.sh"];

/// What is added to a container.
#[derive(Clone, Debug, Default)]
pub struct Additions {
    /// Contents of `*.env` files, in order.
    pub environment: Vec<Vec<u8>>,
    /// Mounts of `*.fstab` files, in order.
    pub mounts: Vec<Entry>,
    /// Programs to run before the root is switched, in order.
    pub hooks: Vec<PathBuf>,
    /// Whether enroot's optional hook for PMI is there, which is native here.
    pub slurm_pmi: bool,
}

/// Why the additions cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdditionsError {
    /// A directory or a file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A mount is not understood.
    #[error(transparent)]
    Mount(#[from] FstabError),
    /// The image's mounts cannot be read.
    #[error("cannot read `/etc/fstab` of the image")]
    Image(#[source] io::Error),
}

/// The files of a directory of settings that add something, in order.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) environment: Vec<PathBuf>,
    pub(super) mounts: Vec<PathBuf>,
    pub(super) hooks: Vec<PathBuf>,
}

impl Directory {
    pub(super) fn list(directory: &Path) -> Result<Self, FileError> {
        let mut hooks = sources::names(&directory.join("hooks.d"), "sh")?;
        hooks.retain(|path| is_executable(path));
        Ok(Self {
            environment: sources::names(&directory.join("environ.d"), "env")?,
            mounts: sources::names(&directory.join("mounts.d"), "fstab")?,
            hooks,
        })
    }
}

impl Additions {
    /// Reads what the directories of settings have.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or is not understood.
    pub fn load(sources: &Sources) -> Result<Self, AdditionsError> {
        let mut additions = Self::default();
        let directories = [&sources.system_directory, &sources.user_directory];
        for directory in directories.into_iter().flatten() {
            let files = Directory::list(directory)?;
            for path in files.environment {
                additions.environment.push(read(&path)?);
            }
            for path in files.mounts {
                let entries = fstab::parse_file(&path, &read(&path)?, &host_variable)?;
                additions.mounts.extend(entries);
            }
            additions.hooks.extend(files.hooks);
        }
        if sources.dialect() == Dialect::Enroot {
            additions.mounts.retain(|entry| !usual::has(entry));
            additions.hooks.retain(|path| {
                let name = path.file_name().unwrap_or_default();
                additions.slurm_pmi |= PMI_HOOKS.iter().any(|hook| name == *hook);
                !NATIVE_HOOKS.iter().any(|native| name == *native)
            });
        }
        Ok(additions)
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut content))
        .and_then(|length| match length as u64 > MAX_FILE {
            true => Err(io::Error::from_raw_os_error(libc::EFBIG)),
            false => Ok(content),
        })
        .map_err(|source| FileError::Read {
            path: path.to_owned(),
            source,
        })
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|status| status.is_file() && status.permissions().mode() & 0o111 != 0)
}

/// The mounts of an image's `/etc/fstab`, or of the one that replaced it in a named container. What is for the disks of a machine, as in the
/// file of a distribution, is left out.
///
/// # Errors
///
/// A file that cannot be read or is not understood.
pub(super) fn image_mounts(
    root: &Root,
    unmounted: Option<&Unmounted<'_>>,
) -> Result<Vec<Entry>, AdditionsError> {
    let content = match (unmounted, root) {
        (Some(image), _) => View::Unmounted(image).read(Path::new(FSTAB), MAX_FILE),
        (None, Root::Container(container)) => match &container.content {
            Content::Tree(tree) => {
                Rootfs::open_at(tree).and_then(|tree| tree.read(Path::new(FSTAB), MAX_FILE))
            }
            Content::Image(_) => Ok(None),
        },
        (None, Root::Image(_)) => Ok(None),
    };
    match content.map_err(AdditionsError::Image)? {
        Some(text) => {
            let mut entries = fstab::parse_file(Path::new("/etc/fstab"), &text, &host_variable)?;
            entries.retain(|entry| !is_of_a_machine(entry));
            Ok(entries)
        }
        None => Ok(Vec::new()),
    }
}

/// Whether an entry mounts a disk, the root, or swap space.
fn is_of_a_machine(entry: &Entry) -> bool {
    let source = entry.source.as_os_str().as_bytes();
    let is_tagged = [&b"UUID="[..], b"LABEL=", b"PARTUUID=", b"PARTLABEL="]
        .iter()
        .any(|tag| source.starts_with(tag));
    let is_disk = source.starts_with(b"/dev/") && matches!(entry.kind, Kind::Filesystem { .. });
    let target = entry.target.as_os_str();
    is_tagged || is_disk || target == "/" || target == "swap" || target == "none"
}
