//! Questions on a terminal. A password is typed unseen: the terminal's echo is off for as long, whatever ends the question (termios(3)).

use std::io::{self, IsTerminal as _, Read as _};
use std::os::fd::AsFd as _;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::sys;

/// How often a question looks whether Ctrl-C was pressed.
const INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Longest answer, in bytes; the kernel's own limit for a line is 4096.
const MAX_ANSWER: usize = 16 << 10;

/// Whether there is somebody to ask: stdin is a terminal.
#[must_use]
pub fn is_possible() -> bool {
    io::stdin().is_terminal()
}

/// Asks for a line.
///
/// # Errors
///
/// `Interrupted` after Ctrl-C, `UnexpectedEof` after Ctrl-D.
pub fn ask(question: &str) -> io::Result<String> {
    eprint!("{question}");
    read_line()
}

/// Asks for a line that is not shown.
///
/// # Errors
///
/// As [`ask`].
pub fn ask_unseen(question: &str) -> io::Result<String> {
    // Ctrl-C must not end the process before the echo is back.
    sys::signal::cancel_on_signals()?;
    let _unseen = Unseen::begin()?;
    eprint!("{question}");
    read_line()
}

struct Unseen {
    before: Termios,
}

impl Unseen {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut unseen = before.clone();
        unseen.local_modes.remove(LocalModes::ECHO);
        // The end of the line is seen.
        unseen.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Flush, &unseen)?;
        Ok(Self { before })
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        // A terminal that has gone needs no echo.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Reads to the end of the line. Not through a buffer: what is typed behind it is not ours.
fn read_line() -> io::Result<String> {
    let mut line = Vec::new();
    let stdin = io::stdin();
    loop {
        let mut events = [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)];
        let ready = poll(&mut events, Some(&INTERVAL));
        if sys::signal::received().is_some() {
            eprintln!();
            return Err(io::ErrorKind::Interrupted.into());
        }
        match ready {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        // In canonical mode the kernel gives no more than one line.
        let mut piece = [0; 4096];
        let read = rustix::io::read(stdin.as_fd(), &mut piece)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(&piece[..read]);
        if line.ends_with(b"\n") || line.len() > MAX_ANSWER {
            break;
        }
    }
    text_of(line)
}

/// All of stdin, less the end of its last line.
///
/// # Errors
///
/// Where stdin cannot be read, or is too long or no text.
pub fn read_password() -> io::Result<String> {
    let mut text = Vec::new();
    let limit = MAX_ANSWER as u64 + 1;
    io::stdin().lock().take(limit).read_to_end(&mut text)?;
    text_of(text)
}

fn text_of(mut line: Vec<u8>) -> io::Result<String> {
    if line.len() > MAX_ANSWER {
        return Err(io::Error::other("it is longer than 16 KiB"));
    }
    while matches!(line.last(), Some(b'\n' | b'\r')) {
        line.pop();
    }
    String::from_utf8(line).map_err(|_| io::Error::other("it is no UTF-8 text"))
}
