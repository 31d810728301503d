//! Hooks: programs of the administrator and the user that are run before the root is switched.
//!
//! A hook is an executable `hooks.d/*.sh`, or the function `hooks` of a [`script`](super::script). It runs in the container's namespaces with
//! every capability there, but on the host's files, with the host's environment and in the caller's working directory, and finds in its environment
//!
//! - `CISTA_PID`: the process that will be the container's program
//! - `CISTA_ROOTFS`: the container's root, mounted and writable; what is mounted below it stays
//! - `CISTA_ENVIRON`: a file with the container's variables, one `NAME=VALUE` a line, which it may change
//! - `CISTA_MOUNTS`: a file of mounts in the dialect of [`fstab`], empty, which it may append to
//!
//! and the same by the names that enroot gives them (`ENROOT_…`). Its standard output goes nowhere. One that fails stops the start.
//!
//! The root needs a path of the host for that. It gets one below the runtime directory of the user, on a tmpfs that only the container's mount
//! namespace sees; so it ends with the container, whatever happens.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountAttrFlags, UnmountFlags};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::additions::MAX_FILE;
use super::device_hooks;
use super::environment::Environment;
use super::fstab::{self, Entry, FstabError};
use super::layers;
use super::mounts::{self, MountError};
use super::rootfs::Rootfs;
use super::script::{Script, ScriptError, Step};
use super::start::Spec;
use crate::config::Config;
use crate::devices::grant::Hook;

/// Names in the directory of the stage.
const ROOTFS: &str = "rootfs";
const ENVIRON: &str = "environment";
const MOUNTS: &str = "fstab";
const SCRIPT_MOUNTS: &str = "mounts";
const RC: &str = "rc";

/// Why hooks could not be run, or stopped the start.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The runtime directory cannot be used.
    #[error("cannot use `{path}`, where the root is mounted for hooks")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The runtime directory is somebody else's.
    #[error("`{path}`, where the root is mounted for hooks, belongs to another user")]
    Owner {
        /// The directory.
        path: PathBuf,
    },
    /// Something cannot be mounted there.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A file for the hooks cannot be written or read.
    #[error("cannot use the file `{name}` of the hooks")]
    File {
        /// Its name.
        name: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The capabilities cannot be passed on.
    #[error("cannot give the hooks their capabilities")]
    Capabilities(#[source] io::Error),
    /// A hook cannot be executed.
    #[error("cannot execute the hook `{path}`")]
    Execute {
        /// The hook.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A hook failed.
    #[error("the hook `{path}` failed: {status}")]
    Failed {
        /// The hook.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
    },
    /// A hook took longer than it may.
    #[error("the hook `{path}` was killed: it took longer than {seconds} s")]
    Late {
        /// The hook.
        path: PathBuf,
        /// How long it may take.
        seconds: u32,
    },
    /// The configuration script failed.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// A mount that a hook or the script asks for is not understood.
    #[error(transparent)]
    Fstab(#[from] FstabError),
}

/// What hooks and the script ask for.
#[derive(Debug, Default)]
pub struct Wishes {
    /// Mounts, in order.
    pub mounts: Vec<Entry>,
    /// The command script that replaces the image's: a detached mount of the file.
    pub rc: Option<OwnedFd>,
}

/// What hooks have to be told, taken before the namespaces exist.
#[derive(Debug)]
pub struct Prepared {
    working_directory: OwnedFd,
    starter: i32,
}

/// Whether there is anything to run, besides what comes with devices.
#[must_use]
pub fn are_there(spec: &Spec) -> bool {
    !spec.additions.hooks.is_empty() || spec.script.is_some()
}

impl Prepared {
    /// Keeps the working directory, and the number of this process.
    ///
    /// # Errors
    ///
    /// It is not there any more.
    pub fn take() -> Result<Self, HookError> {
        let working_directory =
            rustix::fs::open(".", directory_flags(), Mode::empty()).map_err(|error| {
                HookError::Directory {
                    path: ".".into(),
                    source: error.into(),
                }
            })?;
        Ok(Self {
            working_directory,
            starter: rustix::process::getpid().as_raw_pid(),
        })
    }

    /// Runs the hooks of devices, the others, and the script: the root is moved to where they find it, and nothing of ours hides the host any
    /// more. `umask` is the caller's. Afterwards `environment` is what they made of it.
    ///
    /// # Errors
    ///
    /// The step that failed. The start must stop then.
    pub fn run(
        self,
        spec: &Spec,
        config: &Config,
        rootfs: &Rootfs,
        of_devices: &[Hook],
        environment: &mut Environment,
        umask: Mode,
    ) -> Result<Wishes, HookError> {
        let stage = Stage::open(&config.runtime_path, rootfs)?;
        rustix::process::fchdir(&self.working_directory).map_err(|error| HookError::Directory {
            path: ".".into(),
            source: error.into(),
        })?;
        stage.write(ENVIRON, &lines(environment.iter()))?;
        stage.write(MOUNTS, b"")?;
        let variables = stage.variables(config);
        let ours = rustix::process::umask(umask);
        let keep = pass_capabilities_on().map_err(HookError::Capabilities)?;
        let wishes = device_hooks::run(
            of_devices,
            self.starter,
            &stage.path,
            &stage.path.join(ROOTFS),
            environment,
        )
        .and_then(|()| stage.run_all(spec, &variables));
        keep_capabilities_back(keep).map_err(HookError::Capabilities)?;
        rustix::process::umask(ours);
        let wishes = wishes?;
        take_over(environment, &stage.read(ENVIRON)?);
        Ok(wishes)
    }
}

/// Where hooks find the root and their files.
struct Stage {
    path: PathBuf,
}

/// Variables that are set or, without a value, removed.
type Variables = Vec<(OsString, Option<OsString>)>;

impl Stage {
    fn open(path: &Path, rootfs: &Rootfs) -> Result<Self, HookError> {
        let failed = |source| HookError::Directory {
            path: path.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed)?;
        // Somebody else could make it something else again.
        let path = fs::canonicalize(path).map_err(failed)?;
        let directory =
            rustix::fs::open(&path, directory_flags() | OFlags::NOFOLLOW, Mode::empty())
                .map_err(|error| failed(error.into()))?;
        let status = rustix::fs::fstat(&directory).map_err(|error| failed(error.into()))?;
        if status.st_uid != rustix::process::geteuid().as_raw() {
            return Err(HookError::Owner { path });
        }
        let options = [("source", "cista"), ("mode", "0700")]
            .map(|(name, value)| (OsStr::new(name), Some(OsStr::new(value))));
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let memory = mounts::filesystem("tmpfs", options, flags)?;
        mounts::attach(&memory, &directory).map_err(|error| failed(error.into()))?;
        rustix::fs::mkdirat(&memory, ROOTFS, Mode::from_raw_mode(0o755))
            .map_err(|error| failed(error.into()))?;
        let place = rustix::fs::openat(&memory, ROOTFS, directory_flags(), Mode::empty())
            .map_err(|error| failed(error.into()))?;
        mounts::attach(rootfs.root(), &place).map_err(|error| failed(error.into()))?;
        // What the root is made of needs no path any more, and what it lay over is the host's.
        rustix::mount::unmount(layers::PLACE, UnmountFlags::DETACH)
            .map_err(|error| failed(error.into()))?;
        Ok(Self { path })
    }

    fn write(&self, name: &'static str, content: &[u8]) -> Result<(), HookError> {
        fs::File::create(self.path.join(name))
            .and_then(|mut file| file.write_all(content))
            .map_err(|source| HookError::File { name, source })
    }

    fn read(&self, name: &'static str) -> Result<Vec<u8>, HookError> {
        let read = || {
            let file = fs::File::open(self.path.join(name))?;
            let mut content = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(file, MAX_FILE + 1), &mut content)?;
            match content.len() as u64 > MAX_FILE {
                true => Err(io::Error::from_raw_os_error(libc::EFBIG)),
                false => Ok(content),
            }
        };
        match read() {
            // What was not written is empty.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            result => result.map_err(|source| HookError::File { name, source }),
        }
    }

    fn variables(&self, config: &Config) -> Variables {
        let mut variables = config.for_hooks();
        let path = |name: &str| self.path.join(name).into_os_string();
        let pid = rustix::process::getpid().as_raw_pid().to_string();
        for prefix in ["CISTA", "ENROOT"] {
            for (name, value) in [
                ("PID", OsString::from(&pid)),
                ("ROOTFS", path(ROOTFS)),
                ("ENVIRON", path(ENVIRON)),
                ("MOUNTS", path(MOUNTS)),
            ] {
                variables.push((format!("{prefix}_{name}").into(), Some(value)));
            }
        }
        variables
    }

    /// In enroot's order: the script's variables, the hooks of the directories, that of the script, its mounts and its command script.
    fn run_all(&self, spec: &Spec, variables: &Variables) -> Result<Wishes, HookError> {
        let mut wishes = Wishes::default();
        let prepare = |command: &mut Command| set(command, variables);
        let mut script = match &spec.script {
            Some(path) => Some(Script::start(path, &spec.command, &prepare)?),
            None => None,
        };
        if let Some(script) = &mut script {
            let mut content = self.read(ENVIRON)?;
            script.run(Step::Environ, &self.path.join(ENVIRON))?;
            content = [content, self.read(ENVIRON)?].concat();
            // The command line has the last word.
            content.push(b'\n');
            let own = spec.environment.iter();
            content.extend(lines(own.map(|(name, value)| (&**name, &**value))));
            let mut environment = Environment::default();
            environment.set_lines(&content, |_| None);
            self.write(ENVIRON, &lines(environment.iter()))?;
        }
        for hook in &spec.additions.hooks {
            run(hook, variables)?;
        }
        if let Some(script) = &mut script {
            script.run(Step::Hooks, Path::new("/dev/null"))?;
        }
        wishes.mounts = fstab::parse_file(Path::new(MOUNTS), &self.read(MOUNTS)?, &|_| None)?;
        if let Some(mut script) = script {
            script.run(Step::Mounts, &self.path.join(SCRIPT_MOUNTS))?;
            let path = Path::new("mounts()");
            let entries = fstab::parse_file(path, &self.read(SCRIPT_MOUNTS)?, &|_| None)?;
            wishes.mounts.extend(entries);
            script.run(Step::Rc, &self.path.join(RC))?;
            script.finish()?;
            if let Some(body) = body(&self.read(RC)?) {
                self.write(RC, &body)?;
                let path = self.path.join(RC);
                let mount = mounts::clone(rustix::fs::CWD, &path, false);
                wishes.rc = Some(mount.map_err(|error| HookError::File {
                    name: RC,
                    source: error.into(),
                })?);
            }
        }
        Ok(wishes)
    }
}

fn set(command: &mut Command, variables: &Variables) {
    for (name, value) in variables {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
}

fn run(path: &Path, variables: &Variables) -> Result<(), HookError> {
    let mut command = Command::new(path);
    set(&mut command, variables);
    let status = command
        .stdout(Stdio::null())
        .status()
        .or_else(|error| match error.raw_os_error() {
            // A script that does not say for which shell, as shells run it.
            Some(libc::ENOEXEC) => {
                let mut command = Command::new("/bin/sh");
                set(&mut command, variables);
                command.arg(path).stdout(Stdio::null()).status()
            }
            _ => Err(error),
        })
        .map_err(|source| HookError::Execute {
            path: path.to_owned(),
            source,
        })?;
    if status.success() {
        Ok(())
    } else {
        Err(HookError::Failed {
            path: path.to_owned(),
            status,
        })
    }
}

/// Variables as lines of a file. A value of several lines would be several variables: it is left out, and stays as it is.
fn lines<'a>(variables: impl Iterator<Item = (&'a OsStr, &'a OsStr)>) -> Vec<u8> {
    let mut text = Vec::new();
    for (name, value) in variables {
        if !value.as_bytes().contains(&b'\n') {
            text.extend_from_slice(name.as_bytes());
            text.push(b'=');
            text.extend_from_slice(value.as_bytes());
            text.push(b'\n');
        }
    }
    text
}

/// Makes an environment what the file says now.
fn take_over(environment: &mut Environment, file: &[u8]) {
    let mut changed = Environment::default();
    changed.set_lines(file, |_| None);
    for (name, value) in environment.iter() {
        if value.as_bytes().contains(&b'\n')
            && name.to_str().is_none_or(|name| changed.get(name).is_none())
        {
            changed.set(name, value);
        }
    }
    *environment = changed;
}

/// The lines between the braces of a function, as bash prints it. None where it printed none.
fn body(function: &[u8]) -> Option<Vec<u8>> {
    let lines: Vec<&[u8]> = function.trim_ascii().split(|&byte| byte == b'\n').collect();
    let inside = lines.get(2..lines.len().checked_sub(1)?)?;
    let mut script = inside.join(&b'\n');
    script.push(b'\n');
    Some(script)
}

fn directory_flags() -> OFlags {
    OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC
}

/// Lets programs that are executed keep the capabilities of this process, which else only root would. Returns what it was before.
fn pass_capabilities_on() -> io::Result<CapabilitySets> {
    let before = rustix::thread::capabilities(None)?;
    let passed = CapabilitySets {
        inheritable: before.permitted,
        ..before
    };
    rustix::thread::set_capabilities(None, passed)?;
    for capability in passed.permitted.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(before)
}

fn keep_capabilities_back(before: CapabilitySets) -> io::Result<()> {
    rustix::thread::clear_ambient_capability_set()?;
    let sets = CapabilitySets {
        inheritable: before.inheritable & CapabilitySet::all(),
        ..before
    };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_the_environment() {
        let mut environment = Environment::default();
        for (name, value) in [("A", "1"), ("B", "2"), ("C", "3\n4")] {
            environment.set(name, value);
        }
        let file = lines(environment.iter());
        assert_eq!(file, b"A=1\nB=2\n");
        take_over(&mut environment, b"A=5\nD=6\nENROOT_X=7\n");
        let strings = environment.strings();
        assert_eq!(
            strings,
            [c"A=5", c"C=3\n4", c"D=6"].map(std::ffi::CString::from)
        );
    }

    #[test]
    fn the_body_of_a_function() {
        let printed = b"rc () \n{ \n    cat /x;\n    exec bash\n}\n";
        assert_eq!(body(printed).unwrap(), b"    cat /x;\n    exec bash\n");
        assert_eq!(body(b""), None);
        assert_eq!(body(b"rc () \n"), None);
    }
}
