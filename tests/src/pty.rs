//! A terminal (pty(7)), and a program that has it as its controlling terminal, as after a login.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::error::{HarnessError, IoContext as _};
use crate::program::{Captured, Program, Running};
use crate::user::User;

const MULTIPLEXER: &str = "/dev/ptmx";

/// A terminal with a program on it.
#[derive(Debug)]
pub struct Terminal {
    controller: File,
    output: Captured,
    program: Running,
}

impl Terminal {
    /// Starts a program on a new terminal of 100 columns and 40 rows that belongs to `user`. The program has to be one that
    /// begins with [`ON_TERMINAL`].
    pub fn start(program: Program, user: &User) -> Result<Self, HarnessError> {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .context("open", MULTIPLEXER)?;
        grantpt(&controller).context("grant", MULTIPLEXER)?;
        unlockpt(&controller).context("unlock", MULTIPLEXER)?;
        let size = Winsize {
            ws_col: 100,
            ws_row: 40,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&controller, size).context("set the size of", MULTIPLEXER)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let terminal: OwnedFd =
            ioctl_tiocgptpeer(&controller, flags).context("open the terminal of", MULTIPLEXER)?;
        let owner = rustix::fs::Uid::from_raw(user.uid);
        rustix::fs::fchown(&terminal, Some(owner), None).context("give away", MULTIPLEXER)?;
        let terminal = File::from(terminal);
        let copy = || terminal.try_clone().context("duplicate", MULTIPLEXER);
        let program = program
            .stdin_file(copy()?)
            .stdout_file(copy()?)
            .stderr_file(copy()?)
            .spawn()?;
        let controller = File::from(controller);
        let reader = controller.try_clone().context("duplicate", MULTIPLEXER)?;
        Ok(Self {
            controller,
            output: Captured::of(Some(reader)),
            program,
        })
    }

    /// Types.
    pub fn send(&mut self, text: &str) -> Result<(), HarnessError> {
        self.controller
            .write_all(text.as_bytes())
            .context("type on", MULTIPLEXER)
    }

    /// Waits until the screen has shown a text since the last text that was waited for.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<String, HarnessError> {
        let find = |bytes: &[u8]| String::from_utf8_lossy(bytes).find(text);
        let mut buffer = self
            .output
            .wait_until(limit, |buffer| find(&buffer.bytes).is_some())
            .map_err(|printed| HarnessError::Silent {
                program: "the program on the terminal".into(),
                expected: text.to_owned(),
                limit,
                printed,
            })?;
        let shown = String::from_utf8_lossy(&buffer.bytes).into_owned();
        let end = shown.find(text).unwrap_or(0) + text.len();
        buffer.bytes = shown.as_bytes()[end..].to_vec();
        Ok(shown[..end].to_owned())
    }

    /// The program.
    pub fn program(&mut self) -> &mut Running {
        &mut self.program
    }

    /// Waits for the program's end and returns its exit status.
    pub fn wait(self) -> Result<Option<i32>, HarnessError> {
        Ok(self.program.wait()?.code())
    }
}

/// The first words of a command line that leads a session of its own and has its stdin as the controlling terminal
/// (setsid(1)); the process id stays the same.
pub const ON_TERMINAL: [&str; 2] = ["setsid", "--ctty"];
