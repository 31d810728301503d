//! Running programs the way a user would: as a certain user, with a time limit, and with what they print kept.
//!
//! Waiting is done on a pidfd (pidfd_open(2)), so that the time a program took is known to the microsecond and a
//! program that hangs fails its test instead of hanging it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::error::HarnessError;
use crate::process;
use crate::user::User;

/// How long a program may run unless its test says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);

/// How often the memory of a program is looked at, when it is measured.
const MEMORY_INTERVAL: Duration = Duration::from_millis(5);

/// A program to run.
#[derive(Debug)]
pub struct Program {
    command: Command,
    label: String,
    timeout: Duration,
    input: Input,
    shown: bool,
    stdout_given: bool,
    stderr_given: bool,
    measured: bool,
}

#[derive(Debug)]
enum Input {
    Nothing,
    Bytes(Vec<u8>),
    Pipe,
    Given,
}

impl Program {
    /// A program by path, or by name on the search path.
    #[must_use]
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let name = Path::new(program.as_ref())
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Self {
            command: Command::new(program),
            label: name,
            timeout: DEFAULT_TIMEOUT,
            input: Input::Nothing,
            shown: false,
            stdout_given: false,
            stderr_given: false,
            measured: false,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        // The label is for messages: a dozen words are enough.
        if self.label.len() < 200 {
            self.label.push(' ');
            self.label.push_str(&arg.as_ref().to_string_lossy());
        }
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Takes a variable away from its environment.
    #[must_use]
    pub fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Replaces its whole environment.
    #[must_use]
    pub fn env_only(mut self, variables: impl IntoIterator<Item = (String, OsString)>) -> Self {
        self.command.env_clear().envs(variables);
        self
    }

    /// Sets its working directory.
    #[must_use]
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Runs it as a user, without any supplementary group. Nothing changes where we are that user.
    #[must_use]
    pub fn user(mut self, user: &User) -> Self {
        if !user.is_current() {
            // The standard library clears the supplementary groups when root sets a uid.
            self.command.gid(user.gid).uid(user.uid);
        }
        self
    }

    /// Gives it these bytes on stdin, then the end of file. By default stdin is `/dev/null`.
    #[must_use]
    pub fn stdin_bytes(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Gives it an open pipe on stdin; see [`Running::write`] and [`Running::close_stdin`].
    #[must_use]
    pub fn stdin_pipe(mut self) -> Self {
        self.input = Input::Pipe;
        self
    }

    /// Gives it a file on stdin.
    #[must_use]
    pub fn stdin_file(mut self, file: impl Into<Stdio>) -> Self {
        self.command.stdin(file);
        self.input = Input::Given;
        self
    }

    /// Writes its stdout to a file instead of keeping it.
    #[must_use]
    pub fn stdout_file(mut self, file: File) -> Self {
        self.command.stdout(file);
        self.stdout_given = true;
        self
    }

    /// Gives it a file on stderr, a terminal for instance, instead of keeping what it writes there.
    #[must_use]
    pub fn stderr_file(mut self, file: File) -> Self {
        self.command.stderr(file);
        self.stderr_given = true;
        self
    }

    /// Lets the user see what it prints, instead of keeping it.
    #[must_use]
    pub fn shown(mut self) -> Self {
        self.shown = true;
        self
    }

    /// Limits its time.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Puts it into a process group of its own, as a shell does with a job.
    #[must_use]
    pub fn own_group(mut self) -> Self {
        self.command.process_group(0);
        self
    }

    /// Watches how much memory it takes; see [`Outcome::peak_memory`].
    #[must_use]
    pub fn measured(mut self) -> Self {
        self.measured = true;
        self
    }

    /// Runs it to its end, however it ends.
    pub fn run(self) -> Result<Outcome, HarnessError> {
        self.spawn()?.wait()
    }

    /// Runs it to its end, which has to be status 0.
    pub fn check(self) -> Result<Outcome, HarnessError> {
        let program = self.label.clone();
        let outcome = self.run()?;
        if outcome.status.success() {
            Ok(outcome)
        } else {
            Err(HarnessError::Status {
                program,
                status: outcome.status,
                stderr: tail(&outcome.stderr),
            })
        }
    }

    /// Runs it to its end, which has to be status 0, and returns its stdout without the space around it.
    pub fn text(self) -> Result<String, HarnessError> {
        Ok(self.check()?.text())
    }

    /// Runs it to its end, which has to be status 0, without keeping what it prints, and says how long it took. Less stands
    /// between the clock and the program than with [`Self::run`].
    pub fn time(mut self) -> Result<Duration, HarnessError> {
        let spawn_error = |source| HarnessError::Spawn {
            program: self.label.clone(),
            source,
        };
        self.command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let start = Instant::now();
        let mut child = spawn(&mut self.command).map_err(spawn_error)?;
        let status = child.wait().map_err(spawn_error)?;
        let wall = start.elapsed();
        if status.success() {
            Ok(wall)
        } else {
            Err(HarnessError::Status {
                program: self.label.clone(),
                status,
                stderr: "not kept".into(),
            })
        }
    }

    /// Starts it.
    pub fn spawn(mut self) -> Result<Running, HarnessError> {
        match self.input {
            Input::Nothing => self.command.stdin(Stdio::null()),
            Input::Bytes(_) | Input::Pipe => self.command.stdin(Stdio::piped()),
            Input::Given => &mut self.command,
        };
        if !self.shown && !self.stderr_given {
            self.command.stderr(Stdio::piped());
        }
        if !self.shown && !self.stdout_given {
            self.command.stdout(Stdio::piped());
        }
        let started = Instant::now();
        let mut child = spawn(&mut self.command).map_err(|source| HarnessError::Spawn {
            program: self.label.clone(),
            source,
        })?;
        let mut stdin = child.stdin.take();
        if let Input::Bytes(bytes) = self.input
            && let Some(mut pipe) = stdin.take()
        {
            // A program may end without having read its stdin; that is for the test to judge by its status.
            std::thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        let stdout = Captured::of(child.stdout.take());
        let stderr = Captured::of(child.stderr.take());
        let memory = self.measured.then(|| MemoryWatch::start(child.id()));
        Ok(Running {
            child,
            label: self.label,
            started,
            timeout: self.timeout,
            stdin,
            stdout,
            stderr,
            memory,
        })
    }
}

/// Starts a program, which may have been written a moment ago: another test's thread that forks meanwhile has the file open for writing
/// until its child executes something (ETXTBSY).
fn spawn(command: &mut Command) -> std::io::Result<Child> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match command.spawn() {
            Err(error)
                if error.kind() == std::io::ErrorKind::ExecutableFileBusy
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// A program that runs. It is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    label: String,
    started: Instant,
    timeout: Duration,
    stdin: Option<ChildStdin>,
    stdout: Captured,
    stderr: Captured,
    memory: Option<MemoryWatch>,
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<(), HarnessError> {
        kill_process(self.kernel_pid(), signal).map_err(|source| HarnessError::Spawn {
            program: format!("kill {}", self.label),
            source: source.into(),
        })
    }

    /// Writes to its stdin.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), HarnessError> {
        let program = &self.label;
        let pipe = self.stdin.as_mut().ok_or_else(|| HarnessError::Missing {
            what: format!("the stdin of `{program}`"),
            hint: "start it with `stdin_pipe`".into(),
        })?;
        pipe.write_all(bytes)
            .and_then(|()| pipe.flush())
            .map_err(|source| HarnessError::Spawn {
                program: program.clone(),
                source,
            })
    }

    /// Ends its stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until its stdout contains a text, and returns all that it has printed so far.
    pub fn wait_for_stdout(&self, expected: &str, limit: Duration) -> Result<String, HarnessError> {
        self.wait_for(&self.stdout, expected, limit)
    }

    /// Waits until its stderr contains a text, and returns all that it has printed there so far.
    pub fn wait_for_stderr(&self, expected: &str, limit: Duration) -> Result<String, HarnessError> {
        self.wait_for(&self.stderr, expected, limit)
    }

    fn wait_for(
        &self,
        stream: &Captured,
        expected: &str,
        limit: Duration,
    ) -> Result<String, HarnessError> {
        stream
            .wait_until(limit, |buffer| {
                String::from_utf8_lossy(&buffer.bytes).contains(expected)
            })
            .map(|buffer| String::from_utf8_lossy(&buffer.bytes).into_owned())
            .map_err(|printed| HarnessError::Silent {
                program: self.label.clone(),
                expected: expected.to_owned(),
                limit,
                printed,
            })
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end, and for the end of what it prints.
    pub fn wait(mut self) -> Result<Outcome, HarnessError> {
        let deadline = self.started + self.timeout;
        let pid = self.kernel_pid();
        let spawn_error = |source: std::io::Error| HarnessError::Spawn {
            program: self.label.clone(),
            source,
        };
        // None where `is_running` has seen its end.
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Some(pidfd),
            Err(rustix::io::Errno::SRCH) => None,
            Err(errno) => return Err(spawn_error(errno.into())),
        };
        while let Some(pidfd) = &pidfd {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(HarnessError::Timeout {
                    program: self.label.clone(),
                    limit: self.timeout,
                    stdout: tail(&self.stdout.lock().bytes),
                    stderr: tail(&self.stderr.lock().bytes),
                });
            }
            let mut events = [PollFd::new(pidfd, PollFlags::IN)];
            match poll(&mut events, Some(&timespec(left))) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => break,
                Err(errno) => return Err(spawn_error(errno.into())),
            }
        }
        let wall = self.started.elapsed();
        let peak_memory = self.memory.take().map(MemoryWatch::stop);
        let status = self.child.wait().map_err(spawn_error)?;
        self.stdin = None;
        for stream in [&self.stdout, &self.stderr] {
            if stream
                .wait_until(Duration::from_secs(5), |buffer| buffer.closed)
                .is_err()
            {
                return Err(HarnessError::OutputHeld {
                    program: self.label.clone(),
                });
            }
        }
        let stdout = std::mem::take(&mut self.stdout.lock().bytes);
        let stderr = std::mem::take(&mut self.stderr.lock().bytes);
        Ok(Outcome {
            status,
            stdout,
            stderr,
            wall,
            peak_memory,
        })
    }

    fn kernel_pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a program ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit status.
    pub status: ExitStatus,
    /// All that it wrote on stdout.
    pub stdout: Vec<u8>,
    /// All that it wrote on stderr.
    pub stderr: Vec<u8>,
    /// From before its start to its end.
    pub wall: Duration,
    /// The most memory that it had resident, in bytes, as far as was seen every 5 ms; None unless asked for.
    pub peak_memory: Option<u64>,
}

impl Outcome {
    /// Its exit status, if it exited.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it, if one did.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Its stdout as text, without the space around it.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Its stderr as text.
    #[must_use]
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// What a stream of a program has brought so far.
#[derive(Debug)]
pub(crate) struct Captured {
    shared: Arc<(Mutex<Buffer>, Condvar)>,
}

/// The bytes that came, and whether more can come.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) closed: bool,
}

impl Captured {
    pub(crate) fn of(stream: Option<impl Read + Send + 'static>) -> Self {
        let shared = Arc::new((
            Mutex::new(Buffer {
                bytes: Vec::new(),
                closed: stream.is_none(),
            }),
            Condvar::new(),
        ));
        if let Some(mut stream) = stream {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                let mut piece = vec![0; 1 << 16];
                loop {
                    let got = stream.read(&mut piece);
                    let mut buffer = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                    match got {
                        Ok(length @ 1..) => buffer.bytes.extend_from_slice(&piece[..length]),
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                        Ok(0) | Err(_) => buffer.closed = true,
                    }
                    shared.1.notify_all();
                    if buffer.closed {
                        return;
                    }
                }
            });
        }
        Self { shared }
    }

    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a condition holds; gives what came instead when the time is up or nothing more can come.
    pub(crate) fn wait_until(
        &self,
        limit: Duration,
        condition: impl Fn(&Buffer) -> bool,
    ) -> Result<MutexGuard<'_, Buffer>, String> {
        let (buffer, _) = self
            .shared
            .1
            .wait_timeout_while(self.lock(), limit, |buffer| {
                !condition(buffer) && !buffer.closed
            })
            .unwrap_or_else(PoisonError::into_inner);
        if condition(&buffer) {
            Ok(buffer)
        } else {
            Err(tail(&buffer.bytes))
        }
    }
}

/// Looks at a process's memory again and again. The kernel keeps the peak, so only what the process adds in its last
/// few milliseconds can be missed.
#[derive(Debug)]
struct MemoryWatch {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl MemoryWatch {
    fn start(pid: u32) -> Self {
        let watch = Self {
            peak: Arc::new(AtomicU64::new(0)),
            stop: Arc::new(AtomicBool::new(false)),
        };
        let (peak, stop) = (Arc::clone(&watch.peak), Arc::clone(&watch.stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if let Some(bytes) = process::peak_memory(pid) {
                    peak.fetch_max(bytes, Ordering::Relaxed);
                }
                std::thread::sleep(MEMORY_INTERVAL);
            }
        });
        watch
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.peak.load(Ordering::Relaxed)
    }
}

/// The end of an output, for messages.
fn tail(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(4000)..]).into_owned()
}

fn timespec(duration: Duration) -> Timespec {
    // A wait of longer than i64 seconds is no wait that a test has.
    Timespec::try_from(duration).unwrap_or(Timespec {
        tv_sec: i64::MAX,
        tv_nsec: 0,
    })
}
