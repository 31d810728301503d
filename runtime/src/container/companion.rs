//! Hooks of devices for which something has to stay beside a container: `poststart`, when its program has been executed, and `poststop`, when it has ended (OCI runtime
//! specification, "POSIX-platform Hooks").
//!
//! The process that starts a container becomes its program, and there is no daemon. So another process waits, the *companion*: forked before the namespaces, as the
//! server of an image is, it is nobody's child, ignores the job's signals, has the rights of the user on the host and no more, and ends after the
//! last hook. Containers without such hooks have none.
//!
//! It learns by a pipe that the program is about to be executed, or that this has failed; execve(2) closes the pipe. The end of the program is told by a
//! pidfd (pidfd_open(2)). As the specification wants, a hook that fails is a warning, and the container and other hooks go on. Who kills
//! the companion too (Slurm at the end of a step, `systemctl kill`) keeps `poststop` from being run: what they undo must not need it. That is why steps of Slurm refuse such
//! hooks, see [`NoCompanion`].

use std::io::{self, Read as _};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::PipeFlags;
use rustix::process::{PidfdFlags, pidfd_open};

use super::device_hooks::{self, Moment};
use crate::devices::grant::{Hook, Stage};
use crate::{sys, ui};

/// What the pipe says: the program is about to be executed.
const STARTING: u8 = b's';
/// It could not be.
const FAILED: u8 = b'f';

/// A hook that needs a companion, where there cannot be one.
#[derive(Debug, thiserror::Error)]
#[error(
    "the hook `{path}` of a device runs at `{stage}`, and a step of Slurm ends with all its processes: nothing is there to run it"
)]
pub struct NoCompanion {
    /// The hook.
    pub path: PathBuf,
    /// When it runs.
    pub stage: Stage,
}

/// The process beside a container, as the one that becomes the program knows it.
#[derive(Debug)]
pub(super) struct Companion {
    pipe: OwnedFd,
}

impl Companion {
    /// Starts one for the calling process. `directory` is where the bundle of the hooks is made.
    ///
    /// # Errors
    ///
    /// There is no process for it.
    pub(super) fn start(hooks: Vec<Hook>, directory: PathBuf) -> io::Result<Self> {
        let pid = rustix::process::getpid();
        let program = pidfd_open(pid, PidfdFlags::empty())?;
        let (reader, pipe) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let keep = [2, reader.as_raw_fd(), program.as_raw_fd()];
        // They are the new process's alone to close.
        let files = ManuallyDrop::new((reader, program));
        let starting = sys::process::spawn_detached(c"cista-companion", &keep, || {
            let (reader, program) = ManuallyDrop::into_inner(files);
            if !has_started(reader) {
                return;
            }
            let pid = pid.as_raw_pid();
            let tell = |stage, moment| {
                let hooks: Vec<Hook> = of_stage(&hooks, stage);
                run(&hooks, &directory, pid, moment);
            };
            tell(Stage::Poststart, Moment::Running);
            while poll(&mut [PollFd::new(&program, PollFlags::IN)], None)
                .is_err_and(|error| error == rustix::io::Errno::INTR)
            {}
            tell(Stage::Poststop, Moment::Stopped);
        })?;
        starting.wait_for_start()?;
        Ok(Self { pipe })
    }

    /// The program is executed next.
    pub(super) fn tell_start(&self) {
        // Without a companion there is nobody to tell.
        let _ = rustix::io::write(&self.pipe, &[STARTING]);
    }

    /// The program could not be executed.
    pub(super) fn tell_failure(&self) {
        let _ = rustix::io::write(&self.pipe, &[FAILED]);
    }
}

/// Hooks of a stage, in their order.
pub(super) fn of_stage(hooks: &[Hook], stage: Stage) -> Vec<Hook> {
    let hooks = hooks.iter().filter(|hook| hook.stage == stage);
    hooks.cloned().collect()
}

/// Waits for the end of the pipe, which has said before what became of the program.
fn has_started(pipe: OwnedFd) -> bool {
    let mut told = Vec::new();
    let read = std::fs::File::from(pipe).take(2).read_to_end(&mut told);
    read.is_ok() && told == [STARTING]
}

/// Runs hooks, each with a bundle that lasts as long as they do. Their failures are warnings.
fn run(hooks: &[Hook], directory: &Path, pid: i32, moment: Moment) {
    if hooks.is_empty() {
        return;
    }
    let bundle = directory.join(format!("hooks-{pid}"));
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let made = std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::create_dir(&bundle))
        .or_else(|error| match error.kind() {
            // Of a process of the same number that was killed.
            io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        });
    if let Err(error) = made {
        ui::warning(format_args!(
            "cannot run the `{moment}` hooks of devices: cannot make `{}`: {error}",
            bundle.display()
        ));
        return;
    }
    for hook in hooks {
        let one = std::slice::from_ref(hook);
        if let Err(error) = device_hooks::run_beside(one, &bundle, &root, pid, moment) {
            ui::warning(ui::chain(&error));
        }
    }
    let _ = std::fs::remove_dir_all(&bundle);
}
