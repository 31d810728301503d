//! What every container has mounted: the kernel's file systems, a private `/dev`, memory at `/tmp`, `/var/run` and `/var/lock`, and a few files of the
//! host. These are the mounts of enroot's `10-system.fstab` and `20-config.fstab`.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::mount::MountAttrFlags;

use super::devices;
use super::fstab::{CreateOption, Entry, Kind};
use super::layers::{self, Scratch};
use super::mounts::{self, MountError, Mounter};
use super::namespaces::{self, Namespaces};
use super::seed::Seed;
use crate::config::Dev;

/// File systems of the kernel, with what is mounted on them.
const KERNEL: [&str; 2] = ["/proc", "/sys"];

/// The devices.
const DEV: &str = "/dev";

/// Where control groups are in `/sys`.
pub(super) const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// Where version 2 is on a system that has both.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// Directories that are in memory: name in the scratch, and mount point.
const MEMORY: [(&str, &str); 4] = [
    (layers::DEV, DEV),
    (layers::TMP, "/tmp"),
    (layers::RUN, "/var/run"),
    (layers::LOCK, "/var/lock"),
];

/// Files of the host, read-only, where the host has them.
const FILES: [&str; 5] = [
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    TIME_ZONE,
    "/etc/machine-id",
];

/// In many images a symbolic link to the file of a time zone, which must not become that of another.
const TIME_ZONE: &str = "/etc/localtime";

/// Mount points that are directories.
pub fn directories() -> impl Iterator<Item = &'static Path> {
    let memory = MEMORY.iter().map(|(_, target)| target);
    KERNEL.iter().chain(memory).map(Path::new)
}

/// Mount points that are files.
pub fn files() -> impl Iterator<Item = &'static Path> {
    FILES.iter().map(Path::new).filter(|path| path.exists())
}

/// Whether an entry mounts what every container has mounted anyway, as the files that enroot installs do.
#[must_use]
pub fn has(entry: &Entry) -> bool {
    let is_one_of = |paths: &[&str]| paths.iter().any(|path| entry.target == Path::new(path));
    match &entry.kind {
        Kind::Bind { .. } if entry.source == entry.target && !entry.is_inside => {
            let is_read_only = entry.set.contains(MountAttrFlags::MOUNT_ATTR_RDONLY);
            is_one_of(&["/proc", DEV, "/dev/shm"])
                || is_read_only && (is_one_of(&["/sys"]) || is_one_of(&FILES))
        }
        Kind::Filesystem { name, options } => {
            let is_plain = options.iter().all(|(option, _)| option == "mode");
            name == "tmpfs" && is_plain && is_one_of(&["/tmp", "/var/run", "/var/lock"])
        }
        _ => false,
    }
}

/// Where a command script is mounted that replaces the image's.
#[must_use]
pub fn rc() -> Entry {
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    entry("/etc/rc", CreateOption::File, false, flags)
}

/// What is taken of the host.
#[derive(Debug)]
pub struct Taken {
    kernel: Vec<(Entry, OwnedFd)>,
    /// What `/dev` has of its own, by name.
    dev: Vec<(&'static str, OwnedFd)>,
    files: Vec<(Entry, OwnedFd)>,
}

/// The control groups of this process, as proc(5) has them.
#[must_use]
pub fn control_groups() -> String {
    std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// Takes what containers get of the host, as detached copies; makes what belongs to namespaces of their own instead. `control_groups` are
/// this process's.
///
/// # Errors
///
/// A host without `/proc` or `/sys`; a kernel that does not allow a `/proc` for a pid namespace.
pub fn take(
    dev: Dev,
    namespaces: Namespaces,
    control_groups: &str,
    tell: &dyn Fn(&str),
) -> Result<Taken, MountError> {
    let restricted = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let read_only = restricted | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mut taken = Taken {
        kernel: Vec::with_capacity(KERNEL.len()),
        dev: if namespaces.ipc {
            namespaces::ipc()?.into()
        } else {
            Vec::new()
        },
        files: Vec::with_capacity(FILES.len()),
    };
    for path in KERNEL {
        let flags = if path == "/proc" {
            restricted
        } else {
            read_only
        };
        let bind = |path| entry(path, CreateOption::Directory, true, flags);
        if path == "/proc" && namespaces.pid {
            let entry = entry(
                path,
                CreateOption::Directory,
                false,
                MountAttrFlags::empty(),
            );
            taken.kernel.push((entry, namespaces::proc(flags)?));
            continue;
        }
        if path == "/sys" && namespaces.net {
            if let Some((mount, groups)) = namespaces::sys(flags) {
                let entry = entry(
                    path,
                    CreateOption::Directory,
                    false,
                    MountAttrFlags::empty(),
                );
                taken.kernel.push((entry, mount));
                taken
                    .kernel
                    .extend(groups.map(|groups| (bind(CONTROL_GROUPS), groups)));
                continue;
            }
            tell("`/sys` shows the interfaces of the host: the kernel allows no other here");
        }
        let entry = bind(path);
        if let Some(source) = mounts::source(&entry)? {
            taken.kernel.push((entry, source));
        }
    }
    if dev == Dev::Host {
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let bind = entry(DEV, CreateOption::Directory, true, flags);
        if let Some(source) = mounts::source(&bind)? {
            taken.kernel.push((bind, source));
        }
        for (name, mount) in taken.dev.drain(..) {
            let path = format!("{DEV}/{name}");
            if Path::new(&path).is_dir() {
                let entry = entry(&path, CreateOption::No, false, MountAttrFlags::empty());
                taken.kernel.push((entry, mount));
            }
        }
    }
    taken.kernel.extend(group_mounts(control_groups, read_only));
    for path in FILES {
        let entry = entry(path, CreateOption::File, false, read_only);
        match mounts::source(&entry) {
            Ok(Some(source)) => taken.files.push((entry, source)),
            Ok(None) => {}
            Err(MountError::Source { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(taken)
}

pub(crate) fn entry(
    path: &str,
    create: CreateOption,
    recursive: bool,
    set: MountAttrFlags,
) -> Entry {
    Entry {
        source: path.into(),
        is_inside: false,
        target: path.into(),
        kind: Kind::Bind { recursive },
        create,
        set,
        clear: MountAttrFlags::empty(),
        optional: false,
        silent: false,
        pass: -1,
        propagation: None,
        place: None,
    }
}

/// Mounts all of it. What `seed` has a place for is mounted there; `keeps_changes` where the root is not thrown away.
///
/// # Errors
///
/// A mount that failed; a file of the host that finds no place is told by `warn`.
pub fn mount(
    mounter: &Mounter<'_>,
    scratch: &Scratch,
    taken: Taken,
    seed: Option<&Seed>,
    keeps_changes: bool,
    warn: &dyn Fn(MountError),
) -> Result<(), MountError> {
    let mount = |mut entry: Entry, source: OwnedFd| {
        if let Some(place) = seed.and_then(|seed| seed.place(&entry.target)) {
            entry.target = place.to_owned();
        }
        mounter.mount(&entry, Some(source))
    };
    let has_host_dev = taken
        .kernel
        .iter()
        .any(|(entry, _)| entry.target == Path::new(DEV));
    for (entry, source) in taken.kernel {
        let optional = entry.optional;
        match mount(entry, source) {
            Err(_) if optional => {}
            result => result?,
        }
    }
    for (name, target) in MEMORY {
        if name == layers::DEV && has_host_dev {
            continue;
        }
        let source = scratch.part(Path::new(name))?;
        if name != layers::DEV {
            let flags = MountAttrFlags::empty();
            mount(entry(target, CreateOption::Directory, false, flags), source)?;
            continue;
        }
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let inside = source.try_clone().map_err(|source| MountError::Source {
            path: target.into(),
            source,
        })?;
        mount(entry(target, CreateOption::Directory, false, flags), source)?;
        devices::populate(inside.as_fd(), &taken.dev)?;
    }
    for (entry, source) in taken.files {
        let is_placed = seed.is_some_and(|seed| seed.place(&entry.target).is_some());
        if !is_placed && mounter.rootfs.is_link(&entry.target) {
            if !keeps_changes {
                // Where the removal fails, the mount says why.
                let _ = mounter.rootfs.remove_link(&entry.target);
            } else if entry.target == Path::new(TIME_ZONE) {
                continue;
            }
        }
        if let Err(error) = mount(entry, source) {
            warn(error);
        }
    }
    Ok(())
}

/// The control groups of this process, each at the place of its hierarchy: a program that looks for its limits finds its own (cgroups(7)). What
/// is at the root of its hierarchy, or is not mounted where it usually is, stays as it is.
fn group_mounts(control_groups: &str, flags: MountAttrFlags) -> Vec<(Entry, OwnedFd)> {
    own_groups(control_groups)
        .filter_map(|(controllers, path)| {
            let place = match controllers {
                "" if !Path::new(UNIFIED).exists() => CONTROL_GROUPS.to_owned(),
                "" => UNIFIED.to_owned(),
                name => format!("{CONTROL_GROUPS}/{}", name.trim_start_matches("name=")),
            };
            let bind = Entry {
                source: format!("{place}{path}").into(),
                optional: true,
                ..entry(&place, CreateOption::No, false, flags)
            };
            let source = mounts::source(&bind).ok()??;
            Some((bind, source))
        })
        .collect()
}

/// Controllers and path of each line of `/proc/PID/cgroup` that is not at the root of its hierarchy.
fn own_groups(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let is_inside = path.starts_with('/') && path != "/" && !path.starts_with("/..");
        is_inside.then_some((controllers, path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::fstab;

    #[test]
    fn what_enroot_installs_is_mounted_anyway() {
        for (line, expected) in [
            (
                "/proc /proc none x-create=dir,rbind,rw,nosuid,nodev,noexec",
                true,
            ),
            (
                "/sys /sys none x-create=dir,rbind,ro,nosuid,nodev,noexec",
                true,
            ),
            ("/sys /sys none x-create=dir,rbind,rw", false),
            (
                "tmpfs /tmp tmpfs x-create=dir,rw,nosuid,nodev,mode=755",
                true,
            ),
            ("tmpfs /tmp tmpfs size=1G", false),
            ("/etc/hosts /etc/hosts none x-create=file,bind,ro", true),
            ("/etc/site /etc/hosts none x-create=file,bind,ro", false),
            ("/scratch /scratch none rbind", false),
        ] {
            let entry = fstab::parse_line(line.as_bytes(), &|_| None)
                .unwrap()
                .unwrap();
            assert_eq!(has(&entry), expected, "{line}");
        }
    }

    #[test]
    fn groups_below_the_root() {
        let text = "3:cpu,cpuacct:/job/1\n2:name=systemd:/x:y\n1:pids:/\n0::/slurm/step_0\nodd\n4:memory:/../x\n";
        let found: Vec<_> = own_groups(text).collect();
        assert_eq!(
            found,
            [
                ("cpu,cpuacct", "/job/1"),
                ("name=systemd", "/x:y"),
                ("", "/slurm/step_0")
            ]
        );
    }
}
