//! The configuration script of `start --conf` and `batch`: functions in bash that say how a container is started.
//!
//! - `environ` prints variables, one `NAME=VALUE` a line
//! - `mounts` prints mounts in the dialect of [`fstab`](super::fstab)
//! - `hooks` is a hook; see [`hooks`](super::hooks)
//! - `rc` is the command script that replaces the image's: its lines are run in the container, by the container's shell
//!
//! One bash reads the script once, with the container's command line as its arguments, and then runs the functions as it is told to, so that what one
//! of them sets another one sees. As with enroot it runs under `set -euo pipefail`: a command that fails stops the start. Bash is
//! needed for this feature alone.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;

/// What bash runs: reads the script, then for each line of requests the function that it names, and answers each with a line.
const DRIVER: &str = r#"
set -euo pipefail
shopt -s lastpipe
__cista_script=$1 __cista_requests=$2 __cista_answers=$3
shift 3
source "$__cista_script"
printf '\n' >&"$__cista_answers"
while IFS=' ' read -r -u "$__cista_requests" __cista_step __cista_file; do
    if declare -F "$__cista_step" >/dev/null; then
        if [ "$__cista_step" = rc ]; then
            declare -f rc >"$__cista_file"
        else
            "$__cista_step" >"$__cista_file"
        fi
    fi
    printf '\n' >&"$__cista_answers"
done
"#;

/// A function of the script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Variables.
    Environ,
    /// Mounts.
    Mounts,
    /// A hook.
    Hooks,
    /// The command script.
    Rc,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Environ => "environ",
            Self::Mounts => "mounts",
            Self::Hooks => "hooks",
            Self::Rc => "rc",
        }
    }
}

/// What is wrong with the script.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// There is no bash, or it cannot be executed.
    #[error("cannot execute `bash`, which configuration scripts need")]
    Bash(#[source] io::Error),
    /// The script cannot be talked to.
    #[error("cannot talk to the configuration script `{path}`")]
    Talk {
        /// The script.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It failed while it was read.
    #[error("the configuration script `{path}` failed: {status}")]
    Read {
        /// The script.
        path: PathBuf,
        /// How bash ended.
        status: ExitStatus,
    },
    /// One of its functions failed.
    #[error("`{function}` of the configuration script `{path}` failed: {status}")]
    Function {
        /// The function.
        function: &'static str,
        /// The script.
        path: PathBuf,
        /// How bash ended.
        status: ExitStatus,
    },
}

/// A script that was read and waits for requests.
#[derive(Debug)]
pub struct Script {
    path: PathBuf,
    bash: Child,
    requests: File,
    answers: File,
}

impl Script {
    /// Has bash read a script. `prepare` gives it its environment.
    ///
    /// # Errors
    ///
    /// No bash, or a script that fails.
    pub fn start(
        path: &Path,
        arguments: &[OsString],
        prepare: &dyn Fn(&mut Command),
    ) -> Result<Self, ScriptError> {
        let talk = |source: rustix::io::Errno| ScriptError::Talk {
            path: path.to_owned(),
            source: source.into(),
        };
        // The ends of bash are passed on by its execution, ours are not.
        let pipe = || rustix::pipe::pipe_with(PipeFlags::empty());
        let close_later = |end: &OwnedFd| rustix::io::fcntl_setfd(end, FdFlags::CLOEXEC);
        let (requests_read, requests) = pipe().map_err(talk)?;
        let (answers, answers_write) = pipe().map_err(talk)?;
        close_later(&requests).map_err(talk)?;
        close_later(&answers).map_err(talk)?;
        let mut command = Command::new("bash");
        prepare(&mut command);
        command
            .args(["-c", DRIVER, "cista"])
            .arg(path)
            .arg(requests_read.as_raw_fd().to_string())
            .arg(answers_write.as_raw_fd().to_string())
            .args(arguments)
            .env_remove("BASH_ENV")
            .stdout(Stdio::null());
        let bash = command.spawn().map_err(ScriptError::Bash)?;
        drop((requests_read, answers_write));
        let mut script = Self {
            path: path.to_owned(),
            bash,
            requests: requests.into(),
            answers: answers.into(),
        };
        if script.has_answered() {
            return Ok(script);
        }
        let status = script.wait()?;
        Err(ScriptError::Read {
            path: script.path,
            status,
        })
    }

    /// Runs a function, if the script has it; its output goes to a file.
    ///
    /// # Errors
    ///
    /// It failed, or ended the script.
    pub fn run(&mut self, step: Step, output: &Path) -> Result<(), ScriptError> {
        let request = format!("{} {}\n", step.name(), output.display());
        // Where bash is gone there is no answer either.
        let _ = self.requests.write_all(request.as_bytes());
        if self.has_answered() {
            return Ok(());
        }
        let status = self.wait()?;
        Err(ScriptError::Function {
            function: step.name(),
            path: self.path.clone(),
            status,
        })
    }

    /// Lets bash end.
    ///
    /// # Errors
    ///
    /// It failed at the end.
    pub fn finish(self) -> Result<(), ScriptError> {
        let Self {
            path,
            mut bash,
            requests,
            answers,
        } = self;
        // The end of the requests is the end of bash.
        drop((requests, answers));
        match bash.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(ScriptError::Read { path, status }),
            Err(source) => Err(ScriptError::Talk { path, source }),
        }
    }

    fn has_answered(&mut self) -> bool {
        let mut line = [0];
        matches!(self.answers.read(&mut line), Ok(1))
    }

    fn wait(&mut self) -> Result<ExitStatus, ScriptError> {
        self.bash.wait().map_err(|source| ScriptError::Talk {
            path: self.path.clone(),
            source,
        })
    }
}
