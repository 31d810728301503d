//! From a specification to the container's program, as one linear sequence.
//!
//! The process that calls [`start`] becomes the program: same pid, same parent, same session, its signals and exit status untouched. (With a pid
//! namespace of its own, a child becomes it, and the process stands for that.) It has one thread until then. Nothing has to be cleaned up after a failure or a `kill -9`, at any step: mounts, tmpfs and server end with the namespaces.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountAttrFlags, UnmountFlags};

use super::accounts::{self, Identity};
use super::additions::{self, Additions, AdditionsError};
use super::companion::{Companion, NoCompanion};
use super::device_hooks;
use super::facts::Start;
use super::fstab::Entry;
use super::granted::{self, Granted};
use super::hooks::{self, HookError};
use super::identity_map::{self, IdMap, UserNamespaceError};
use super::image::{self, ImageError, Lower};
use super::layers::{self, Changes, Scratch};
use super::mounts::{self, MountError, Mounter};
use super::named::{Container, ContainerError, Content};
use super::namespaces::Namespaces;
use super::plan::{self, Plan, PlanError};
use super::privileges::{self, PrivilegeError};
use super::program::{self, ProgramError};
use super::rootfs::{Create, Rootfs};
use super::seed::Seed;
use super::standard::{self, Standard};
use super::unmounted::Unmounted;
use super::view::View;
use super::{home, loading, login, running, usual};
use crate::config::Config;
use crate::devices::grant::{Hook, Numbering};
use crate::devices::install::{InstallError, Target};
use crate::devices::{DeviceError, Request};
use crate::observe::{self, Phase};
use crate::slurm::helper::Helper;
use crate::sys;

/// What is to be started, and how.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What becomes the root file system.
    pub root: Root,
    /// Whether the root file system can be written to.
    pub writable: bool,
    /// Whether the user is root inside.
    pub remap_root: bool,
    /// Namespaces of its own besides those of users and mounts.
    pub namespaces: Namespaces,
    /// Mounts besides the usual ones, in order.
    pub mounts: Vec<Entry>,
    /// What is added to every container.
    pub additions: Additions,
    /// Devices that are asked for.
    pub devices: Request,
    /// The configuration script.
    pub script: Option<PathBuf>,
    /// The command script that replaces the image's.
    pub rc: Option<Vec<u8>>,
    /// Variables that win over the image's.
    pub environment: Vec<(OsString, OsString)>,
    /// The command line; empty for the image's own.
    pub command: Vec<OsString>,
    /// Open files that the program gets besides standard input, output and error.
    pub files: Vec<RawFd>,
    /// Whether the command line is executed as it is, without the image's entrypoint and its command script.
    pub without_entrypoint: bool,
    /// Who can do for an ordinary user what only root can.
    pub helper: Option<Helper>,
}

/// A container that is ready: this process is in it, and could become its program.
#[derive(Debug)]
pub struct Ready {
    /// What the image and the specification say about the program.
    pub(crate) plan: Plan,
    /// How the image is mounted: `fuse`, `kernel`, or `tree` for an unpacked one.
    pub mount: &'static str,
    /// Whether the user is root inside.
    pub root_inside: bool,
    /// Whether changes of owners are faked, since there is one user only.
    pub fakes_ownership: bool,
    /// What the host's GPUs are called in it, where that differs.
    pub numberings: Vec<Numbering>,
    /// Hooks of devices that are run in it before its program (`startContainer`).
    pub(crate) hooks: Vec<Hook>,
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
    /// No namespaces.
    #[error(transparent)]
    UserNamespace(#[from] UserNamespaceError),
    /// The loopback interface cannot be brought up.
    #[error("cannot bring up the loopback interface of the network namespace")]
    Loopback(#[source] io::Error),
    /// There is no process in the new pid namespace.
    #[error("cannot make a process in the new pid namespace")]
    Fork(#[source] io::Error),
    /// The scratch file system cannot be made.
    #[error("cannot prepare the root file system")]
    Scratch(#[source] MountError),
    /// The root file system cannot be put together.
    #[error("cannot make the root file system")]
    Root(#[source] MountError),
    /// What the image says is not understood.
    #[error(transparent)]
    Plan(#[from] PlanError),
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
    /// What is added to every container cannot be used.
    #[error(transparent)]
    Additions(#[from] AdditionsError),
    /// Devices cannot be granted.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// What was granted is not in the container.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// A hook stopped the start.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// Hooks of devices that come later cannot be run.
    #[error(transparent)]
    NoCompanion(#[from] NoCompanion),
    /// There is no process that runs hooks of devices later.
    #[error("cannot start the process that runs the hooks of devices")]
    Companion(#[source] io::Error),
    /// A mount of a file failed.
    #[error("{place}")]
    Entry {
        /// The file and line.
        place: String,
        /// What went wrong.
        source: MountError,
    },
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
    let starter = rustix::process::getpid().as_raw_pid();
    let mut companion = None;
    let mut attend = |hooks| -> Result<(), StartError> {
        let directory = config.runtime_path.clone();
        companion = Some(Companion::start(hooks, directory).map_err(StartError::Companion)?);
        Ok(())
    };
    let Ready {
        mut plan,
        mount: _,
        root_inside,
        fakes_ownership,
        numberings: _,
        hooks,
    } = prepare_attended(spec, config, tell, warn, &mut attend)?;
    sys::process::close_on_exec_but(&spec.files).map_err(StartError::CloseFiles)?;
    privileges::give_up(root_inside, fakes_ownership)?;
    device_hooks::run_inside(&hooks, starter)?;
    if config.login_shell {
        plan.line = login::line(&plan.line, &plan.environment);
    }
    if let Some(companion) = &companion {
        companion.tell_start();
    }
    let error = program::execute(&plan.line, &plan.environment, &plan.absent);
    if let Some(companion) = &companion {
        companion.tell_failure();
    }
    Err(error.into())
}

/// Makes a container and moves the calling process into it, up to the point at which it would become the program. Hooks that need a
/// [`companion`](super::companion) cannot be run for it.
///
/// # Errors
///
/// As [`start`].
pub fn prepare(
    spec: &Spec,
    config: &Config,
    tell: &dyn Fn(&str),
    warn: &dyn Fn(&str),
) -> Result<Ready, StartError> {
    prepare_attended(spec, config, tell, warn, &mut |hooks| {
        let first = hooks.into_iter().next();
        first.map_or(Ok(()), |Hook { path, stage, .. }| {
            Err(NoCompanion { path, stage }.into())
        })
    })
}

/// As [`prepare`]; `attend` gets the hooks that need a companion, where there are some.
fn prepare_attended(
    spec: &Spec,
    config: &Config,
    tell: &dyn Fn(&str),
    warn: &dyn Fn(&str),
    attend: &mut dyn FnMut(Vec<Hook>) -> Result<(), StartError>,
) -> Result<Ready, StartError> {
    observe::begin(Phase::Mount);
    // Who we are, here and inside. The host's databases must be asked before the namespaces change.
    let (uid, gid) = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let host_identity = accounts::host_identity(uid, gid);
    let mut identity = if spec.remap_root {
        accounts::root_identity(host_identity.user.shell)
    } else {
        host_identity
    };
    if spec.helper.is_some() {
        accounts::add_groups(&mut identity);
    }
    let map = id_map(uid, gid, spec.remap_root);
    let (inner_uid, inner_gid) = (identity.user.uid, identity.user.gid);

    // Open the image, so that what is there now is what is used.
    let source = image::Source::open(&spec.root)?;
    let lock = match &spec.root {
        Root::Container(container)
            if spec.writable && matches!(container.content, Content::Image(_)) =>
        {
            let lock = container.lock_for_writing(&config.runtime_path)?;
            if lock.is_none() {
                warn(&format!(
                    "neither `{}` nor the run-time directory has file locks: nothing keeps another start from writing to the container at the same time",
                    container.directory.display()
                ));
            }
            lock
        }
        _ => None,
    };

    // What is mounted besides the usual: by the image, the administrator, the user, the command line.
    let unmounted = source.unmounted(&spec.root)?;
    let mut entries = additions::image_mounts(&spec.root, unmounted.as_ref())?;
    let standard = Standard::load(config, spec);
    entries.extend(standard.mounts);
    entries.extend_from_slice(&spec.additions.mounts);
    entries.sort_by_key(|entry| entry.pass);
    entries.extend_from_slice(&spec.mounts);

    // What the image says, read from the file where that tells all, and the devices that are asked for.
    let mut early = match &unmounted {
        Some(image) => early_plan(spec, image, &identity)?,
        None => None,
    };
    let mut granted = granted::decide(spec, config, unmounted.as_ref(), early.as_ref())?;
    if let (Some(plan), Some(image)) = (&mut early, &unmounted) {
        let is_known = match &mut granted {
            Some(granted) => granted.plant(config, plan, image)?,
            None => true,
        };
        if is_known && entries.is_empty() {
            plan.find_program(image);
        }
    }
    drop(unmounted);

    let all_device_hooks = granted.as_ref().map_or(&[][..], Granted::hooks);
    let (device_hooks, later): (Vec<Hook>, Vec<Hook>) = all_device_hooks
        .iter()
        .cloned()
        .partition(|hook| hook.stage.is_before());
    let (beside, inside): (Vec<Hook>, Vec<Hook>) =
        later.into_iter().partition(|hook| hook.stage.is_beside());
    if !beside.is_empty() {
        attend(beside)?;
    }
    let hooks = match hooks::are_there(spec) || !device_hooks.is_empty() {
        true => Some(hooks::Prepared::take()?),
        false => None,
    };

    // The server of the image is started before the namespaces: outside of the mount namespace, which it would keep alive itself, and
    // outside of the user namespace, where a container could get at it. It gets its device later.
    let program = early.as_ref().and_then(|plan| plan.program.clone());
    let lower = image::prepare(
        source,
        config,
        (inner_uid, inner_gid),
        lock,
        program.clone(),
        spec.helper.as_ref(),
        tell,
    )?;

    // Everything we make has exactly the mode we say.
    let umask = rustix::process::umask(Mode::empty());

    // In a namespace of their own, they would be called otherwise.
    let control_groups = usual::control_groups();

    // The namespaces, which give the right to do all that follows.
    identity_map::enter_with_groups(map, spec.namespaces.flags(), spec.helper.as_ref())?;
    if spec.namespaces.net {
        sys::network::loopback_up().map_err(StartError::Loopback)?;
    }
    if spec.namespaces.pid {
        // What follows happens in another process, whose children the helpers are not.
        lower.reap()?;
        sys::supervise::split(true).map_err(StartError::Fork)?;
    }

    // What is wanted of the host, before anything of ours hides it.
    let usual_sources = usual::take(config.dev, spec.namespaces, &control_groups, tell)?;
    let sources: Vec<_> = entries.iter().map(mounts::source).collect();

    // The root file system.
    let scratch = Scratch::mount(config.scratch_size).map_err(StartError::Scratch)?;
    let seed = early.as_ref().and_then(|plan| plan.seed.as_ref());
    let layout = assemble(spec, config, &lower, &scratch, seed, tell, warn)?;
    let rootfs = Rootfs::new(layout.root);
    if let Some(program) = &program {
        loading::announce(&rootfs, program);
    }
    let mount = layout.method;

    // What the root says, before anything is put over its files.
    let mut plan = match early {
        Some(plan) => plan,
        None => {
            let is_adapted = match &spec.root {
                Root::Container(container) => container.is_adapted(),
                Root::Image(_) => false,
            };
            Plan::for_view(spec, View::Mounted(&rootfs), &identity, is_adapted)?
        }
    };

    // What every container has, then what this one was asked to have.
    for file in &plan.files {
        if !(layout.is_seeded && file.is_seeded) {
            write_file(&rootfs, &scratch, layout.keeps_files, file)?;
        } else if let Some(directory) = Path::new(file.path)
            .parent()
            .filter(|it| *it != Path::new("/etc"))
        {
            // The first look at a directory of the upper layer makes overlayfs note where it comes from, which changes the times of those
            // above it. Better now than under the eyes of a program.
            let _ = View::Mounted(&rootfs).file_type(directory);
        }
    }
    let mounter = Mounter { rootfs: &rootfs };
    let seed = plan.seed.as_ref().filter(|_| layout.is_seeded);
    observe::begin(Phase::Devices);
    usual::mount(
        &mounter,
        &scratch,
        usual_sources,
        seed,
        layout.keeps_files,
        &|error| {
            warn(&chain(&error));
        },
    )?;
    observe::begin(Phase::Mount);
    for volume in &plan.volumes {
        mount_volume(&rootfs, volume)?;
    }
    if !layout.is_seeded && home::is_possible(&plan.home) {
        // A program that needs it will say so.
        if let Err(error) = home::make(&rootfs, &plan.home) {
            tell(&format!("cannot make `{}`: {error}", plan.home.display()));
        }
    }
    if let Some(granted) = &mut granted {
        observe::begin(Phase::Devices);
        let target = Target {
            mounter: &mounter,
            scratch: &scratch,
            seed,
            is_kept: layout.is_kept,
            keeps_files: layout.is_kept && layout.keeps_files,
            dev: config.dev,
        };
        granted.install(spec, config, &target, warn)?;
        observe::begin(Phase::Mount);
    }
    let mut entries = entries.iter().zip(sources).peekable();
    let volumes = plan.volumes.clone();
    let mut mount_while = |is_wanted: &dyn Fn(&Entry) -> bool| {
        while let Some((entry, source)) = entries.next_if(|(entry, _)| is_wanted(entry)) {
            if !(entry.is_inside && volumes.contains(&entry.target)) {
                mount_entry(&mounter, entry, source, warn)?;
            }
        }
        Ok::<_, StartError>(())
    };

    // What comes before the hooks, the hooks, and what they ask for; then the rest, the command line last.
    mount_while(&|entry| entry.pass < 0 && entry.place.is_some())?;
    let rc = match &spec.rc {
        Some(content) => Some(rc_file(&scratch, content)?),
        None => None,
    };
    if let Some(granted) = &granted {
        granted.set_variables(&mut plan.environment);
    }
    for (name, value) in standard.variables {
        plan.environment.set(name, value);
    }
    // The command line has the last word.
    for (name, value) in &spec.environment {
        plan.environment.set(name, value);
    }
    let mut wishes = hooks::Wishes::default();
    if let Some(hooks) = hooks {
        observe::begin(Phase::Hooks);
        let environment = &mut plan.environment;
        wishes = hooks.run(spec, config, &rootfs, &device_hooks, environment, umask)?;
        observe::begin(Phase::Mount);
    }
    mount_while(&|entry| entry.place.is_some())?;
    for entry in &wishes.mounts {
        mount_entry(&mounter, entry, mounts::source(entry), warn)?;
    }
    mount_while(&|_| true)?;
    if let Some(mount) = rc.or(wishes.rc) {
        mounter.place(mount, &usual::rc(), false)?;
        plan.line = Start::Script.command_line(&spec.command, OsStr::new(""));
    }
    if let Some(granted) = &granted {
        granted.translate(&mut plan.environment);
    }
    if config.slurm_pytorch {
        standard::tell_pytorch(&mut plan.environment);
    }
    for (name, value) in std::mem::take(&mut plan.login) {
        plan.environment.set_default(name, value);
    }
    if let Some(directory) = &plan.working_directory {
        // As enroot's command script does; where it cannot be made, entering it says so.
        let _ = rootfs.create(directory, Create::Directory);
    }

    // Nothing more is written: the root becomes read-only, and then the root.
    observe::begin(Phase::Exec);
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
    enter_directory(&plan)?;

    // The program's state, as a bare program has it.
    lower.reap()?;
    // The last that we do with files of our own, and the last before a closed standard error may end us.
    observe::ready();
    rustix::process::umask(umask);
    sys::sigpipe::restore();
    Ok(Ready {
        plan,
        mount,
        root_inside: inner_uid == 0,
        fakes_ownership: matches!(map, IdMap::Single { .. }),
        numberings: granted.map_or_else(Vec::new, Granted::into_numberings),
        hooks: inside,
    })
}

/// What the image and the container's changes say, before they are mounted. None where that cannot be read without the rights that a container has.
fn early_plan(
    spec: &Spec,
    image: &Unmounted<'_>,
    identity: &Identity,
) -> Result<Option<Plan>, PlanError> {
    match &spec.root {
        Root::Image(_) => Plan::for_image(spec, image, identity, false).map(Some),
        // What is written there stays, so it has no seed.
        Root::Container(container) if spec.writable => {
            let view = View::Unmounted(image);
            Ok(Plan::for_view(spec, view, identity, container.is_adapted()).ok())
        }
        Root::Container(container) => {
            Ok(Plan::for_image(spec, image, identity, container.is_adapted()).ok())
        }
    }
}

/// A command script as a detached mount of a file.
fn rc_file(scratch: &Scratch, content: &[u8]) -> Result<OwnedFd, StartError> {
    let name = Path::new(layers::FILES).join("rc");
    write_at(scratch.root(), &name, content).map_err(|source| StartError::File {
        path: "/etc/rc".into(),
        source,
    })?;
    Ok(scratch.part(&name)?)
}

/// Mounts an entry with what was taken for it. One that may fail says so, unless it is to be silent.
fn mount_entry(
    mounter: &Mounter<'_>,
    entry: &Entry,
    source: Result<Option<OwnedFd>, MountError>,
    warn: &dyn Fn(&str),
) -> Result<(), StartError> {
    let Err(error) = source.and_then(|source| mounter.mount(entry, source)) else {
        return Ok(());
    };
    let error = match &entry.place {
        Some(place) => StartError::Entry {
            place: place.clone(),
            source: error,
        },
        None => StartError::Mount(error),
    };
    if !entry.optional {
        return Err(error);
    }
    if !entry.silent {
        warn(&chain(&error));
    }
    Ok(())
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
    /// Whether its upper layer has the seed.
    is_seeded: bool,
    /// Whether files can be written to it; otherwise they are bound over it.
    keeps_files: bool,
    /// How the image is mounted: `fuse`, `kernel`, or `tree` for an unpacked one.
    method: &'static str,
    /// Whether what is made in it outlives the container.
    is_kept: bool,
}

/// Puts the root file system together: as an overlay where there is an immutable lower layer, otherwise as it is.
fn assemble(
    spec: &Spec,
    config: &Config,
    lower: &Lower,
    scratch: &Scratch,
    seed: Option<&Seed>,
    tell: &dyn Fn(&str),
    warn: &dyn Fn(&str),
) -> Result<Layout, StartError> {
    let direct = |tree| layers::direct(tree).map_err(StartError::Root);
    let changes = match &spec.root {
        Root::Image(_) => Changes::Memory,
        Root::Container(container) => match &container.content {
            // A tree is all there is to it: written to where it is, as enroot does.
            Content::Tree(_) if spec.writable => {
                return Ok(Layout {
                    root: direct(lower.mount(config, tell, warn)?.mount)?,
                    is_seeded: false,
                    keeps_files: true,
                    method: "tree",
                    is_kept: true,
                });
            }
            Content::Tree(_) => Changes::Memory,
            Content::Image(_) if spec.writable => Changes::Container(&container.directory),
            Content::Image(_) => Changes::MemoryAbove(&container.directory),
        },
    };
    let name = running::source_name(&spec.root);
    let attempt = lower.mount(config, tell, warn).and_then(|lower| {
        if matches!(changes, Changes::Container(_)) && !lower.is_served {
            image::check_unserved(&spec.root)?;
        }
        scratch
            .overlay(&lower.mount, changes, seed, &name)
            .map(|root| (root, lower.method))
            .map_err(StartError::Root)
    });
    match attempt {
        Ok((root, method)) => Ok(Layout {
            root,
            is_seeded: seed.is_some(),
            keeps_files: spec.writable,
            method,
            is_kept: matches!(changes, Changes::Container(_)),
        }),
        // Without an overlay, an unpacked tree can still be the root where nothing has to be kept.
        Err(error) if changes == Changes::Memory && !spec.writable => Ok(Layout {
            root: direct(lower.unpacked(config, error, tell, warn)?)?,
            is_seeded: false,
            keeps_files: false,
            method: "tree",
            is_kept: true,
        }),
        Err(error) => Err(error),
    }
}

/// Writes a file into the root, or binds it over that of a root that keeps nothing.
fn write_file(
    rootfs: &Rootfs,
    scratch: &Scratch,
    keeps_files: bool,
    file: &plan::File,
) -> Result<(), StartError> {
    let path = Path::new(file.path);
    let failed = |source| StartError::File {
        path: path.to_owned(),
        source,
    };
    if keeps_files {
        return rootfs.write(path, &file.content).map_err(failed);
    }
    let name = Path::new(layers::FILES).join(path.file_name().unwrap_or_default());
    write_at(scratch.root(), &name, &file.content).map_err(failed)?;
    let target = rootfs.create(path, Create::MountFile).map_err(failed)?;
    let mount = scratch.part(&name)?;
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
    sys::mount::set_attributes(&mount, read_only, MountAttrFlags::empty(), false)
        .map_err(failed)?;
    mounts::attach(mount, &target).map_err(|error| {
        MountError::Attach {
            path: path.to_owned(),
            source: error.into(),
        }
        .into()
    })
}

fn write_at(directory: &OwnedFd, name: &Path, content: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644))?;
    io::Write::write_all(&mut std::fs::File::from(file), content)
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
pub(crate) fn switch_root(rootfs: &Rootfs, tell: &dyn Fn(&str)) -> rustix::io::Result<()> {
    rustix::process::fchdir(rootfs.root())?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => {
            // The old root, with all that is mounted on it, now lies on top of the new one. "." is the new root, and umount2 takes
            // what is topmost there.
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

fn enter_directory(plan: &Plan) -> Result<(), StartError> {
    let enter = |path: &Path| {
        rustix::process::chdir(path).map_err(|error| StartError::Directory {
            path: path.to_owned(),
            source: error.into(),
        })
    };
    match &plan.working_directory {
        Some(directory) => enter(directory),
        // Without a record of it, the user's home, as a login does.
        None => enter(&plan.home).or_else(|_| enter(Path::new("/"))),
    }
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
pub(crate) fn tree_mount(path: &Path) -> Result<OwnedFd, MountError> {
    mounts::clone(CWD, path, true).map_err(|error| MountError::Source {
        path: path.to_owned(),
        source: error.into(),
    })
}
