//! From a specification to the container's program, as one linear sequence.
//!
//! The process that calls [`start`] becomes the program: same pid, same parent, same session, its signals and exit status untouched. It has
//! one thread until then. Nothing has to be cleaned up after a failure or a `kill -9`, at any step: mounts, tmpfs and server end with the namespaces.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountAttrFlags, UnmountFlags};

use super::accounts::{self, Identity};
use super::environment::DEFAULT_PATH;
use super::facts::{self, Facts, FactsError};
use super::fstab::{CreateOption, Entry, Kind};
use super::identity_map::{self, IdMap, UserNamespaceError};
use super::image::{self, ImageError, Lower};
use super::layers::{self, Changes, Scratch};
use super::mounts::{self, MountError, Mounter};
use super::named::{Container, ContainerError, Content};
use super::privileges::{self, PrivilegeError};
use super::program::{self, ProgramError};
use super::rootfs::{Create, Rootfs};
use super::{devices, home, running};
use crate::config::Config;
use crate::sys::{self, namespace};

/// What is to be started, and how.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What becomes the root file system.
    pub root: Root,
    /// Whether the root file system can be written to.
    pub writable: bool,
    /// Whether the user is root inside.
    pub remap_root: bool,
    /// Mounts besides the usual ones, in order.
    pub mounts: Vec<Entry>,
    /// Variables that win over the image's.
    pub environment: Vec<(OsString, OsString)>,
    /// The command line; empty for the image's own.
    pub command: Vec<OsString>,
}

/// What becomes the root file system.
#[derive(Clone, Debug)]
pub enum Root {
    /// An image file; changes end with the container.
    Image(PathBuf),
    /// A named container.
    Container(Container),
}

/// The step that failed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The named container cannot be used.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The working directory cannot be opened.
    #[error("cannot open the working directory")]
    WorkingDirectory(#[source] io::Error),
    /// No user namespace.
    #[error(transparent)]
    UserNamespace(#[from] UserNamespaceError),
    /// No mount namespace.
    #[error("cannot create a mount namespace")]
    MountNamespace(#[source] io::Error),
    /// The scratch file system cannot be made.
    #[error("cannot prepare the root file system")]
    Scratch(#[source] MountError),
    /// The root file system cannot be put together.
    #[error("cannot make the root file system")]
    Root(#[source] MountError),
    /// The image does not say how to run it.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// A file that every container gets cannot be made.
    #[error("cannot make `{path}` in the container")]
    File {
        /// Path in the container.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The root could not be made read-only.
    #[error("cannot make the root file system read-only")]
    ReadOnly(#[source] io::Error),
    /// The root could not be switched.
    #[error("cannot switch to the root file system")]
    Switch(#[source] io::Error),
    /// The image's working directory cannot be entered.
    #[error("cannot change to the directory `{path}` in the container")]
    Directory {
        /// Path in the container.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Privileges could not be given up.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    /// Open files could not be closed.
    #[error("cannot close the files that the program must not get")]
    CloseFiles(#[source] io::Error),
    /// The program could not be executed.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// Longest `/etc/passwd`, `/etc/group` and `/etc/default/useradd` of an image that are read, in bytes.
const MAX_ACCOUNTS: u64 = 16 << 20;

/// Starts a container: becomes its program. Returns only an error. `tell` gets what `--verbose` shows, `warn` what everybody should see.
///
/// # Errors
///
/// The step that failed. The process is then no longer what it was (namespaces, root, working directory): it can say so and end.
pub fn start(
    spec: &Spec,
    config: &Config,
    tell: &dyn Fn(&str),
    warn: &dyn Fn(&str),
) -> Result<Infallible, StartError> {
    // Who we are, here and inside. The host's databases must be asked before the namespaces change.
    let (uid, gid) = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let host_identity = accounts::host_identity(uid, gid);
    let identity = if spec.remap_root {
        accounts::root_identity(host_identity.user.shell)
    } else {
        host_identity
    };
    let map = id_map(uid, gid, spec.remap_root);
    let (inner_uid, inner_gid) = (identity.user.uid, identity.user.gid);

    // Open everything of the host that is named by a path, so that what is there now is what is used.
    let host = rustix::fs::open(
        ".",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| StartError::WorkingDirectory(error.into()))?;
    let source = image::Source::open(&spec.root)?;
    let lock = match &spec.root {
        Root::Container(container)
            if spec.writable && matches!(container.content, Content::Image(_)) =>
        {
            container.lock_for_writing()?
        }
        _ => None,
    };

    // Everything we make has exactly the mode we say.
    let umask = rustix::process::umask(Mode::empty());

    // The user namespace first: it gives the right to do all that follows.
    identity_map::enter(map)?;

    // The server of the image is started between the two namespaces: inside the user namespace, since /dev/fuse must be opened where it is mounted,
    // and outside the mount namespace, which it would otherwise keep alive itself.
    let lower = image::prepare(source, config, (inner_uid, inner_gid), lock, tell, warn)?;
    if spec.writable {
        image::check_unserved(&lower, &spec.root)?;
    }
    namespace::new_mount().map_err(|error| StartError::MountNamespace(error.into()))?;

    // The root file system.
    let scratch = Scratch::mount(config.scratch_size).map_err(StartError::Scratch)?;
    let layout = assemble(spec, config, lower, &scratch, tell, warn)?;
    let rootfs = Rootfs::new(layout.root);

    let is_adapted = match &spec.root {
        Root::Container(container) => container.is_adapted(),
        Root::Image(_) => false,
    };

    // What the image says, before anything is put over its files.
    let facts = facts::read(&rootfs, is_adapted, crate::config::host_variable)?;

    // What every container has, then what this one was asked to have.
    let shell = write_accounts(&rootfs, &scratch, layout.keeps_files, &identity)?;
    let mounter = Mounter {
        rootfs: &rootfs,
        host: host.as_fd(),
    };
    mount_usual(&mounter, &scratch)?;
    for volume in &facts.volumes {
        mount_volume(&rootfs, volume)?;
    }
    let home_directory = PathBuf::from(OsString::from_vec(identity.user.home.clone()));
    if accounts::is_home(&home_directory) {
        home::make(&rootfs, &home_directory).map_err(|source| StartError::File {
            path: home_directory.clone(),
            source,
        })?;
    }
    for entry in &spec.mounts {
        match mounter.mount(entry) {
            Err(error) if entry.optional => {
                if !entry.silent {
                    warn(&chain(&error));
                }
            }
            result => result?,
        }
    }
    if let Some(directory) = &facts.working_directory {
        // As enroot's command script does; where it cannot be made, entering it says so.
        let _ = rootfs.create(directory, Create::Directory);
    }

    // Nothing more is written: the root becomes read-only, and then the root.
    if !spec.writable {
        sys::mount::set_attributes(
            rootfs.root(),
            MountAttrFlags::MOUNT_ATTR_RDONLY,
            MountAttrFlags::empty(),
            false,
        )
        .map_err(StartError::ReadOnly)?;
    }
    switch_root(&rootfs, tell).map_err(|error| StartError::Switch(error.into()))?;
    enter_directory(&facts, &home_directory)?;

    // The program's state, as a bare program has it.
    rustix::process::umask(umask);
    sys::sigpipe::restore();
    let (line, environment) = command(spec, facts, &identity, &shell);
    sys::process::close_on_exec_above_stderr().map_err(StartError::CloseFiles)?;
    privileges::give_up(inner_uid == 0, matches!(map, IdMap::Single { .. }))?;
    Err(program::execute(&line, &environment).into())
}

/// The ids of the user namespace. Root that may map other users' ids maps them all; everybody else has the one.
fn id_map(uid: u32, gid: u32, remap_root: bool) -> IdMap {
    let may_map_all = uid == 0
        && rustix::thread::capabilities(None).is_ok_and(|sets| {
            sets.effective.contains(
                rustix::thread::CapabilitySet::SETUID | rustix::thread::CapabilitySet::SETGID,
            )
        });
    if may_map_all {
        IdMap::Identity
    } else if remap_root {
        IdMap::Single { uid: 0, gid: 0 }
    } else {
        IdMap::Single { uid, gid }
    }
}

/// A root file system that is in place.
struct Layout {
    /// Its root, mounted over `/`.
    root: OwnedFd,
    /// Whether files can be written to it; otherwise they are bound over it.
    keeps_files: bool,
}

/// Puts the root file system together: as an overlay where there is an immutable lower layer, otherwise as it is.
fn assemble(
    spec: &Spec,
    config: &Config,
    lower: Lower,
    scratch: &Scratch,
    tell: &dyn Fn(&str),
    warn: &dyn Fn(&str),
) -> Result<Layout, StartError> {
    let container = match &spec.root {
        Root::Container(container) => Some(container),
        Root::Image(_) => None,
    };
    let changes = match container {
        // A tree is all there is to it: written to where it is, as enroot does.
        Some(Container {
            content: Content::Tree(_),
            ..
        }) if spec.writable => {
            let tree = lower.mount(tell)?;
            return Ok(Layout {
                root: layers::direct(tree).map_err(StartError::Root)?,
                keeps_files: true,
            });
        }
        Some(Container {
            content: Content::Image(_),
            directory,
            ..
        }) if spec.writable => Changes::Container(directory),
        Some(Container {
            content: Content::Image(_),
            directory,
            ..
        }) => Changes::MemoryAbove(directory),
        _ => Changes::Memory,
    };
    let name = running::source_name(&spec.root);
    let attempt = lower
        .mount(tell)
        .map_err(StartError::from)
        .and_then(|mount| {
            scratch
                .overlay(&mount, changes, &name)
                .map_err(StartError::Root)
        });
    match attempt {
        Ok(root) => Ok(Layout {
            root,
            keeps_files: spec.writable,
        }),
        // Without an overlay, an unpacked tree can still be the root where nothing has to be kept.
        Err(error) if changes == Changes::Memory && !spec.writable => {
            let tree = lower.unpacked(config, error, tell, warn)?;
            Ok(Layout {
                root: layers::direct(tree).map_err(StartError::Root)?,
                keeps_files: false,
            })
        }
        Err(error) => Err(error),
    }
}

/// Writes the container's `/etc/passwd` and `/etc/group`; returns the user's shell.
fn write_accounts(
    rootfs: &Rootfs,
    scratch: &Scratch,
    keeps_files: bool,
    identity: &Identity,
) -> Result<Vec<u8>, StartError> {
    let read = |path: &str| {
        rootfs
            .read(Path::new(path), MAX_ACCOUNTS)
            .map(Option::unwrap_or_default)
            .map_err(|source| StartError::File {
                path: path.into(),
                source,
            })
    };
    let is_executable = |shell: &[u8]| rootfs.is_executable(Path::new(OsStr::from_bytes(shell)));
    let mut shell = identity.user.shell.clone();
    if !shell.starts_with(b"/") || !is_executable(&shell) {
        let useradd = read("/etc/default/useradd")?;
        shell = accounts::choose_shell(&shell, Some(&useradd), is_executable);
    }
    let debian = rootfs.file_type(Path::new("/etc/debian_version")).is_some();
    let old_passwd = read("/etc/passwd")?;
    let old_group = read("/etc/group")?;
    for (path, old, new) in [
        (
            "/etc/passwd",
            &old_passwd,
            accounts::passwd(identity, &shell, &old_passwd, debian),
        ),
        (
            "/etc/group",
            &old_group,
            accounts::group(identity, &old_group, debian),
        ),
    ] {
        if *old == new {
            continue;
        }
        let path = Path::new(path);
        let failed = |source| StartError::File {
            path: path.to_owned(),
            source,
        };
        if keeps_files {
            rootfs.write(path, &new).map_err(failed)?;
        } else {
            let name = Path::new(layers::FILES).join(path.file_name().unwrap_or_default());
            write_at(scratch.root(), &name, &new).map_err(failed)?;
            let target = rootfs.create(path, Create::File).map_err(failed)?;
            let mount = scratch.part(&name)?;
            sys::mount::set_attributes(
                &mount,
                MountAttrFlags::MOUNT_ATTR_RDONLY,
                MountAttrFlags::empty(),
                false,
            )
            .map_err(failed)?;
            mounts::attach(mount, &target).map_err(|error| MountError::Attach {
                path: path.to_owned(),
                source: error.into(),
            })?;
        }
    }
    Ok(shell)
}

fn write_at(directory: &OwnedFd, name: &Path, content: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644))?;
    io::Write::write_all(&mut std::fs::File::from(file), content)
}

/// The mounts of every container; those of enroot's `10-system.fstab` and `20-config.fstab`, with a private `/dev`.
fn mount_usual(mounter: &Mounter<'_>, scratch: &Scratch) -> Result<(), MountError> {
    let restricted = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let read_only = restricted | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let entry = |path: &str, create, recursive, set| Entry {
        source: path.into(),
        target: path.into(),
        kind: Kind::Bind { recursive },
        create,
        set,
        clear: MountAttrFlags::empty(),
        optional: false,
        silent: false,
        pass: -1,
    };
    mounter.mount(&entry("/proc", CreateOption::Directory, true, restricted))?;
    mounter.mount(&entry("/sys", CreateOption::Directory, true, read_only))?;

    let no_flags = MountAttrFlags::empty();
    for (name, target, flags) in [
        (
            layers::DEV,
            "/dev",
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        ),
        (layers::TMP, "/tmp", no_flags),
        (layers::RUN, "/var/run", no_flags),
        (layers::LOCK, "/var/lock", no_flags),
    ] {
        let mount = scratch.part(Path::new(name))?;
        let dev = (name == layers::DEV).then(|| mount.try_clone()).transpose();
        mounter.place(
            mount,
            &entry(target, CreateOption::Directory, false, flags),
            false,
        )?;
        let dev = dev.map_err(|source| MountError::Source {
            path: target.into(),
            source,
        })?;
        if let Some(dev) = dev {
            devices::populate(dev.as_fd())?;
        }
    }

    for path in [
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
        "/etc/localtime",
        "/etc/machine-id",
    ] {
        match mounter.mount(&entry(path, CreateOption::File, false, read_only)) {
            // A host need not have them.
            Err(MountError::Source { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}

/// Keeps a directory writable that the image calls a volume, also when the root is not.
fn mount_volume(rootfs: &Rootfs, path: &Path) -> Result<(), MountError> {
    let directory =
        rootfs
            .create(path, Create::Directory)
            .map_err(|source| MountError::Target {
                path: path.to_owned(),
                source,
            })?;
    mounts::clone(&directory, Path::new(""), false)
        .and_then(|mount| mounts::attach(mount, &directory))
        .map_err(|error| MountError::Attach {
            path: path.to_owned(),
            source: error.into(),
        })
}

/// Makes the container's root the root, and lets go of the host's.
fn switch_root(rootfs: &Rootfs, tell: &dyn Fn(&str)) -> rustix::io::Result<()> {
    rustix::process::fchdir(rootfs.root())?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => {
            // The old root now lies on top of the new one, and the scratch on top of that; "." is the new root, and umount2 takes what is
            // topmost there.
            rustix::mount::unmount(".", UnmountFlags::DETACH)?;
            rustix::mount::unmount(".", UnmountFlags::DETACH)
        }
        // A host that runs from its initramfs has a root that cannot be moved. Its mounts stay in the namespace, out of reach by path.
        Err(rustix::io::Errno::INVAL) => {
            tell("the host's root cannot be moved (initramfs): using chroot");
            rustix::process::chroot(".")
        }
        Err(error) => Err(error),
    }
}

fn enter_directory(facts: &Facts, home_directory: &Path) -> Result<(), StartError> {
    let enter = |path: &Path| {
        rustix::process::chdir(path).map_err(|error| StartError::Directory {
            path: path.to_owned(),
            source: error.into(),
        })
    };
    match &facts.working_directory {
        Some(directory) => enter(directory),
        // Without a record of it, the user's home, as a login does.
        None => enter(home_directory).or_else(|_| enter(Path::new("/"))),
    }
}

/// The command line and the environment of the program.
fn command(
    spec: &Spec,
    facts: Facts,
    identity: &Identity,
    shell: &[u8],
) -> (Vec<OsString>, super::environment::Environment) {
    let text = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    let mut environment = facts.environment;
    if let Some(terminal) = crate::config::host_variable(OsStr::new("TERM")) {
        environment.set("TERM", terminal);
    }
    for (name, value) in &spec.environment {
        environment.set(name, value);
    }
    environment.set_default("HOME", text(&identity.user.home));
    environment.set_default("USER", text(&identity.user.name));
    environment.set_default("LOGNAME", text(&identity.user.name));
    environment.set_default("SHELL", text(shell));
    environment.set_default("PATH", DEFAULT_PATH);
    let line = facts
        .start
        .command_line(&spec.command, OsStr::from_bytes(shell));
    (line, environment)
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// A tree of the host as a detached mount.
pub(super) fn tree_mount(path: &Path) -> Result<OwnedFd, MountError> {
    mounts::clone(CWD, path, true).map_err(|error| MountError::Source {
        path: path.to_owned(),
        source: error.into(),
    })
}
