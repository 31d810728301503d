//! Programs that give passwords: docker's credential helpers, and the commands in enroot's file.
//!
//! What such a program reads and prints is secret: it goes through files without a name and pipes, never through arguments, and is never shown, not even when the
//! program fails. The program stays in our process group, so that it may ask on the terminal, and is killed with all that it started when it
//! takes too long.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use cista_images::registry::Secret;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::sys;

/// How long a program may take: long enough for a person to type a passphrase.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// Most bytes that a program may print: tokens of cloud services have some kilobytes.
const MAX_OUTPUT: u64 = 256 << 10;

/// Why a program gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It cannot be started.
    #[error("cannot start it")]
    Start(#[source] io::Error),
    /// Talking to it failed.
    #[error("cannot talk to it")]
    Pipe(#[source] io::Error),
    /// It did not end in time.
    #[error("it did not end within {} s", .0.as_secs())]
    Late(Duration),
    /// It printed more than any password has.
    #[error("it prints more than {} KiB", MAX_OUTPUT >> 10)]
    TooMuch,
    /// It printed something that is no text.
    #[error("it prints something that is no UTF-8 text")]
    NoText,
}

/// How a program ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// All that it printed, less the space at the end.
    pub(super) output: Secret,
}

/// Runs words of a shell, and gives what they expand to, joined by single spaces.
///
/// The shell gets them on standard input, since a command line can be read by everybody; the commands themselves read `/dev/null`. As they
/// are words, patterns of file names in them stay what they are (`set -f`).
pub(super) fn expand(
    words: &Secret,
    environment: Vec<(OsString, OsString)>,
) -> Result<Ended, ProgramError> {
    let mut command = Command::new("/bin/sh");
    command.env_clear().envs(environment).current_dir("/");
    let script = format!(
        "{{ set -f; set -- {}\nprintf '%s' \"$*\"; }} </dev/null\n",
        words.expose()
    );
    run(command, &Secret::new(script), TIME_LIMIT)
}

/// Runs `docker-credential-NAME VERB` (docker-login, "Credential helper protocol") with a text on its standard input.
///
/// It gets our whole environment, as from docker, for its keyring may need any of it, but for the password that is meant for us.
pub(super) fn helper(name: &str, verb: &str, input: &Secret) -> Result<Ended, ProgramError> {
    let mut command = Command::new(format!("docker-credential-{name}"));
    command.arg(verb).env_remove("CISTA_PASSWORD");
    run(command, input, TIME_LIMIT)
}

fn run(mut command: Command, input: &Secret, limit: Duration) -> Result<Ended, ProgramError> {
    let deadline = Instant::now() + limit;
    let mut child = Guard(
        sys::child::spawn_bound(
            command
                .stdin(in_memory(input).map_err(ProgramError::Pipe)?)
                .stdout(Stdio::piped())
                // It may tell there what it was given.
                .stderr(Stdio::null()),
        )
        .map_err(ProgramError::Start)?,
    );
    let output = child.listen(deadline, limit)?;
    let status = child.0.wait().map_err(ProgramError::Pipe)?;
    let output = String::from_utf8(output).map_err(|_| ProgramError::NoText)?;
    Ok(Ended {
        status,
        output: Secret::new(output.trim_end()),
    })
}

/// A file that exists in memory only: unlike a pipe it takes a text of any length from a writer who does not wait for the reader.
fn in_memory(text: &Secret) -> io::Result<File> {
    let mut file = File::from(memfd_create("input", MemfdFlags::CLOEXEC)?);
    file.write_all(text.expose().as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// A program that is killed when it is given up.
struct Guard(Child);

impl Guard {
    /// Reads what the program prints until it ends. What others hold open, such as agents that it leaves behind, is not waited for.
    fn listen(&mut self, deadline: Instant, limit: Duration) -> Result<Vec<u8>, ProgramError> {
        let pipe = |errno: Errno| ProgramError::Pipe(errno.into());
        let mut stdout = self
            .0
            .stdout
            .take()
            .ok_or(ProgramError::Pipe(io::ErrorKind::NotConnected.into()))?;
        let pidfd = pidfd_open(Pid::from_child(&self.0), PidfdFlags::empty()).map_err(pipe)?;
        fcntl_setfl(&stdout, OFlags::NONBLOCK).map_err(pipe)?;
        let (mut output, mut open) = (Vec::new(), true);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ProgramError::Late(limit));
            }
            let wait = Timespec::try_from(left).ok();
            let mut events = vec![PollFd::new(&pidfd, PollFlags::IN)];
            if open {
                events.push(PollFd::new(&stdout, PollFlags::IN));
            }
            match poll(&mut events, wait.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(pipe(errno)),
            }
            let ended = !events[0].revents().is_empty();
            drop(events);
            let room = (MAX_OUTPUT + 1).saturating_sub(output.len() as u64);
            match (&mut stdout).take(room).read_to_end(&mut output) {
                Ok(_) => open = false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(ProgramError::Pipe(error)),
            }
            if output.len() as u64 > MAX_OUTPUT {
                return Err(ProgramError::TooMuch);
            }
            if ended {
                return Ok(output);
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

/// Kills a process with all that it has started, and waits for it.
pub(crate) fn end(child: &mut Child) {
    // It has been waited for, and its number may be another process's by now.
    if !matches!(child.try_wait(), Ok(None)) {
        return;
    }
    for descendant in descendants(child.id()) {
        // One that has just ended is what is wanted.
        let _ = kill_process(descendant, Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// The processes that a process has started, and those that these have (proc_pid_task_children(5)), as far as the kernel tells.
fn descendants(pid: u32) -> Vec<Pid> {
    let (mut found, mut pending) = (Vec::new(), vec![pid]);
    // A bound, should a program make processes faster than they are listed.
    while let Some(parent) = pending.pop().filter(|_| found.len() < 1000) {
        let path = format!("/proc/{parent}/task/{parent}/children");
        let children = std::fs::read_to_string(path).unwrap_or_default();
        for child in children.split_whitespace() {
            if let Some(child) = child.parse().ok().and_then(Pid::from_raw) {
                pending.push(child.as_raw_nonzero().get().unsigned_abs());
                found.push(child);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(words: &str) -> String {
        let environment = vec![
            ("PATH".into(), "/usr/bin:/bin".into()),
            ("GIVEN".into(), "a  b".into()),
        ];
        let ended = expand(&Secret::new(words), environment).unwrap();
        assert!(ended.status.success(), "{words}");
        ended.output.expose().to_owned()
    }

    #[test]
    fn words_are_expanded() {
        for (words, expected) in [
            ("$GIVEN", "a b"),
            ("\"$GIVEN\"", "a  b"),
            ("$(printf 'x\\n')", "x"),
            ("$(echo '{\"a\": \"b\"}' | tr -d ' ')", "{\"a\":\"b\"}"),
            ("$(echo '*') # comment", "*"),
            ("$(echo -n)", ""),
            ("$HOME$CISTA_PASSWORD", ""),
            ("$(cat)", ""),
            ("$(echo --)", "--"),
        ] {
            assert_eq!(expanded(words), expected, "{words}");
        }
    }

    #[test]
    fn broken_words_fail_without_telling_them() {
        let ended = expand(&Secret::new("$(echo hunter2"), Vec::new()).unwrap();
        assert!(!ended.status.success());
        assert!(!format!("{ended:?}").contains("hunter2"));
    }

    #[test]
    fn programs_are_bounded_in_time_and_output() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 98765 & sleep 98765"]);
        let limit = Duration::from_millis(300);
        let started = Instant::now();
        let error = run(command, &Secret::new(""), limit).unwrap_err();
        assert!(matches!(error, ProgramError::Late(_)), "{error}");
        assert!(started.elapsed() < Duration::from_secs(20));
        let left = Command::new("pgrep").args(["-f", "^sleep 98765$"]).output();
        assert_eq!(String::from_utf8_lossy(&left.unwrap().stdout), "");

        let mut command = Command::new("/bin/sh");
        command.args(["-c", "yes"]);
        let error = run(command, &Secret::new(""), TIME_LIMIT).unwrap_err();
        assert!(matches!(error, ProgramError::TooMuch), "{error}");
    }

    #[test]
    fn agents_that_stay_are_not_waited_for() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "cat; sleep 3 & printf ' there'"]);
        let started = Instant::now();
        let ended = run(command, &Secret::new("who is"), TIME_LIMIT).unwrap();
        assert_eq!(ended.output.expose(), "who is there");
        assert!(started.elapsed() < Duration::from_secs(3));
    }
}
