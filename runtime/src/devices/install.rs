//! From edits to mounts, in the mounted root of a container.
//!
//! Everything is a mount or is made in memory. A named container that is written to keeps what is made in it, so a link to something granted
//! becomes a mount there: with the container end the mounts, and a driver that is another one tomorrow finds no link to yesterday's.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;

use super::grant::{Directory, Entry, Grant, Mount};
use super::host::Host;
use super::linker_cache;
use super::place::Placed;
use crate::config::Dev;
use crate::container::fstab::{self, CreateOption, FstabError, Kind};
use crate::container::layers::Scratch;
use crate::container::mounts::{self, MountError, Mounter};
use crate::container::seed::Seed;
use crate::container::usual;
use crate::sys;

/// Why a container does not get what it was granted.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A mount failed.
    #[error("a granted device or file is not in the container")]
    Mount(#[from] MountError),
    /// Options of a mount are not understood.
    #[error("a granted mount is not understood")]
    Options(#[from] FstabError),
    /// A link cannot be made.
    #[error("cannot make the link `{path}` in the container")]
    Symlink {
        /// Path in the container.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file of our making cannot be written.
    #[error("cannot make `{path}` for the container")]
    Generate {
        /// Path in the container.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// The mounted root, as far as it matters here.
#[derive(Debug)]
pub struct Target<'a> {
    /// Mounts below the root.
    pub mounter: &'a Mounter<'a>,
    /// Memory of the container.
    pub scratch: &'a Scratch,
    /// What the upper layer has already; None where it has nothing.
    pub seed: Option<&'a Seed>,
    /// Whether what is made in the root outlives the container.
    pub is_kept: bool,
    /// Whether the container may keep files of ours; otherwise they are mounted over its own.
    pub keeps_files: bool,
    /// What `/dev` is.
    pub dev: Dev,
}

/// Name of the directory in the scratch that has what is made here.
const MADE: &str = "granted";

/// Puts everything in its place.
///
/// # Errors
///
/// The first thing that is not there or finds no place.
pub fn install(
    grant: &Grant,
    placed: &Placed,
    host: &Host,
    target: &Target<'_>,
) -> Result<(), InstallError> {
    let edits = &grant.edits;
    let installer = Installer { host, target };
    for device in &edits.devices {
        if target.dev == Dev::Host && host.is_real() && device.path == device.host_path {
            continue;
        }
        let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        if device.is_read_only {
            flags |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        installer.bind(&device.host_path, &device.path, flags, false)?;
    }
    for mount in &edits.mounts {
        installer.mount(mount)?;
    }
    for (path, host_path) in &placed.libraries {
        installer.bind(host_path, path, read_only(), false)?;
    }
    if !(edits.directories.is_empty() && edits.files.is_empty()) {
        make_directory(target.scratch.root(), Path::new(MADE)).map_err(|source| {
            InstallError::Generate {
                path: MADE.into(),
                source,
            }
        })?;
    }
    for (number, directory) in edits.directories.iter().enumerate() {
        installer.directory(directory, &format!("{MADE}/{number}"))?;
    }
    for (number, file) in edits.files.iter().enumerate() {
        installer.file(&file.path, &file.content, &format!("{MADE}/file-{number}"))?;
    }
    let cache_path = Path::new(linker_cache::PATH);
    if let Some(cache) = &placed.linker_cache
        && target
            .seed
            .is_none_or(|seed| seed.place(cache_path).is_none())
    {
        let rootfs = target.mounter.rootfs;
        let failed = |source| InstallError::Generate {
            path: cache_path.to_owned(),
            source,
        };
        if target.keeps_files {
            // A mount would be in the way of the image's own ldconfig.
            rootfs.write(cache_path, cache).map_err(failed)?;
        } else {
            make_directory(target.scratch.root(), Path::new(MADE)).map_err(failed)?;
            installer.file(cache_path, cache, &format!("{MADE}/linker-cache"))?;
        }
    }
    for link in &placed.symlinks {
        if target
            .seed
            .is_some_and(|seed| seed.place(&link.path).is_some())
        {
            continue;
        }
        let source = target
            .is_kept
            .then(|| granted(&link.path, &link.target, grant, placed))
            .flatten();
        match source {
            Some(host_path) => installer.bind(&host_path, &link.path, read_only(), true)?,
            None => {
                let rootfs = target.mounter.rootfs;
                rootfs.symlink(&link.path, &link.target).map_err(|source| {
                    InstallError::Symlink {
                        path: link.path.clone(),
                        source,
                    }
                })?;
            }
        }
    }
    Ok(())
}

fn read_only() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
}

/// The file of the host that a link leads to, where it is granted.
fn granted(link: &Path, target: &Path, grant: &Grant, placed: &Placed) -> Option<PathBuf> {
    let mut wanted = link.to_owned();
    // A link may lead to another one that is granted.
    let mut next = target.to_owned();
    for _ in 0..4 {
        wanted = normal(&wanted.parent()?.join(next));
        let library = placed.libraries.iter().find(|(path, _)| *path == wanted);
        let mount = grant.edits.mounts.iter().find(|it| it.path == wanted);
        if let Some(host_path) = library
            .map(|(_, host_path)| host_path)
            .or(mount.map(|mount| &mount.host_path))
        {
            return Some(host_path.clone());
        }
        let link = placed.symlinks.iter().find(|it| it.path == wanted)?;
        next = link.target.clone();
    }
    None
}

/// A path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(result.pop()),
            Component::CurDir => {}
            other => result.push(other),
        }
    }
    result
}

struct Installer<'a> {
    host: &'a Host,
    target: &'a Target<'a>,
}

impl Installer<'_> {
    fn source(&self, path: &Path, recursive: bool) -> Result<OwnedFd, MountError> {
        let failed = |source| MountError::Source {
            path: path.to_owned(),
            source,
        };
        let file = self.host.source(path).map_err(failed)?;
        mounts::clone(&file, Path::new(""), recursive).map_err(|error| failed(error.into()))
    }

    /// What to make where a mount point is missing: nothing in what is the host's.
    fn create(&self, path: &Path) -> CreateOption {
        let is_below = |above: &str| path.starts_with(above);
        if is_below("/proc") || is_below("/sys") || is_below("/dev") && self.target.dev == Dev::Host
        {
            CreateOption::No
        } else {
            CreateOption::Auto
        }
    }

    fn entry(&self, path: &Path, flags: MountAttrFlags) -> fstab::Entry {
        let seeded = self.target.seed.and_then(|seed| seed.place(path));
        fstab::Entry {
            target: seeded.unwrap_or(path).to_owned(),
            create: self.create(path),
            ..usual::entry("", CreateOption::Auto, false, flags)
        }
    }

    /// Mounts a file of the host. With `anew`, in place of a link that is there.
    fn bind(
        &self,
        host_path: &Path,
        path: &Path,
        flags: MountAttrFlags,
        anew: bool,
    ) -> Result<(), MountError> {
        if anew && self.target.mounter.rootfs.is_link(path) {
            // Where the removal fails, the mount is made where the link leads.
            let _ = self.target.mounter.rootfs.remove_link(path);
        }
        let entry = self.entry(path, flags);
        let source = self.source(host_path, false)?;
        self.target.mounter.place(source, &entry, false)
    }

    fn mount(&self, mount: &Mount) -> Result<(), InstallError> {
        let mut options = mount.options.join(",");
        if mount.kind.is_none() && !mount.options.iter().any(|it| it == "bind" || it == "rbind") {
            options.push_str(",rbind");
        }
        let fields = [
            mount.host_path.as_os_str(),
            mount.path.as_os_str(),
            OsStr::new(mount.kind.as_deref().unwrap_or("none")),
            OsStr::new(options.trim_start_matches(',')),
        ];
        let parsed = fstab::parse_fields(fields)?;
        let place = self.entry(&mount.path, parsed.set);
        let entry = fstab::Entry {
            target: place.target,
            create: place.create,
            ..parsed
        };
        let source = match entry.kind {
            Kind::Bind { recursive } => Some(self.source(&mount.host_path, recursive)?),
            _ => None,
        };
        self.target.mounter.mount(&entry, source)?;
        Ok(())
    }

    /// Makes a directory in the scratch and mounts it. The host's parts are mounted on it then.
    ///
    /// Where the kernel has no such directory, there is nothing to hide, and nothing can be made.
    fn directory(&self, directory: &Directory, name: &str) -> Result<(), InstallError> {
        if self.is_missing_in_kernel(&directory.path) {
            return Ok(());
        }
        let failed = |source| InstallError::Generate {
            path: directory.path.clone(),
            source,
        };
        let scratch = self.target.scratch;
        let place = Path::new(name);
        make_directory(scratch.root(), place).map_err(failed)?;
        let mut of_host = Vec::new();
        for (path, entry) in &directory.entries {
            let path = normal(path);
            let mut above = PathBuf::new();
            let parents = path.parent().unwrap_or(Path::new(""));
            for component in parents.components() {
                above.push(component);
                make_directory(scratch.root(), &place.join(&above)).map_err(failed)?;
            }
            let inside = place.join(&path);
            match entry {
                Entry::Directory => make_directory(scratch.root(), &inside).map_err(failed)?,
                Entry::File(content) => write(scratch.root(), &inside, content).map_err(failed)?,
                Entry::Symlink(target) => {
                    rustix::fs::symlinkat(target, scratch.root(), &inside)
                        .map_err(|error| failed(error.into()))?;
                }
                Entry::Host(host_path) => {
                    let source = self.source(host_path, true)?;
                    let is_directory = rustix::fs::fstat(&source).is_ok_and(|status| {
                        rustix::fs::FileType::from_raw_mode(status.st_mode)
                            == rustix::fs::FileType::Directory
                    });
                    match is_directory {
                        true => make_directory(scratch.root(), &inside),
                        false => write(scratch.root(), &inside, b""),
                    }
                    .map_err(failed)?;
                    of_host.push((path, source));
                }
            }
        }
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = scratch.part(place)?;
        let kept = mount.try_clone().map_err(failed)?;
        let entry = self.entry(&directory.path, flags);
        self.target.mounter.place(mount, &entry, false)?;
        for (path, source) in of_host {
            let open = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&kept, &path, open, Mode::empty())
                .and_then(|place| mounts::attach(&source, place.as_fd()))
                .map_err(|error| failed(error.into()))?;
        }
        sys::mount::set_attributes(
            &kept,
            MountAttrFlags::MOUNT_ATTR_RDONLY,
            MountAttrFlags::empty(),
            false,
        )
        .map_err(failed)
    }

    fn is_missing_in_kernel(&self, path: &Path) -> bool {
        (path.starts_with("/proc") || path.starts_with("/sys"))
            && self.target.mounter.rootfs.file_type(path).is_none()
    }

    fn file(&self, path: &Path, content: &[u8], name: &str) -> Result<(), InstallError> {
        if self.is_missing_in_kernel(path) {
            return Ok(());
        }
        let scratch = self.target.scratch;
        write(scratch.root(), Path::new(name), content).map_err(|source| {
            InstallError::Generate {
                path: path.to_owned(),
                source,
            }
        })?;
        let mount = scratch.part(Path::new(name))?;
        let entry = self.entry(path, read_only());
        Ok(self.target.mounter.place(mount, &entry, false)?)
    }
}

/// Makes a directory unless it is there.
fn make_directory(at: &OwnedFd, path: &Path) -> io::Result<()> {
    match rustix::fs::mkdirat(at, path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn write(at: &OwnedFd, path: &Path, content: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(at, path, flags, Mode::from_raw_mode(0o444))?;
    io::Write::write_all(&mut std::fs::File::from(file), content)
}
