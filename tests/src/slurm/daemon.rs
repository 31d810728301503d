//! A daemon of the cluster, which dies with us whatever happens.
//!
//! The kernel kills it when the thread that started it ends (`PR_SET_PDEATHSIG`, set by setpriv(1)), which a panic, a Ctrl-C or a kill
//! -9 of ours causes. So that thread has to live as long as the daemon: it is this file's keeper.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::HarnessError;
use crate::program::Program;

/// The first words of the command line of a program that dies with the thread that starts it.
pub(super) const WITH_US: [&str; 3] = ["setpriv", "--pdeathsig", "KILL"];

/// A program that runs until this is dropped.
#[derive(Debug)]
pub(super) struct Daemon {
    pid: u32,
    /// Closing it tells the keeper to kill the program.
    stop: Option<mpsc::Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Starts a program that begins with [`WITH_US`], and waits until it has printed a text, if one is given.
    pub(super) fn start(
        program: Program,
        ready: Option<(&'static str, Duration)>,
    ) -> Result<Self, HarnessError> {
        let (stop, stopped) = mpsc::channel::<()>();
        let (report, started) = mpsc::channel();
        let keeper = std::thread::spawn(move || {
            let running = program.spawn().and_then(|running| {
                if let Some((text, limit)) = ready {
                    running.wait_for_stdout(text, limit)?;
                }
                Ok(running)
            });
            match running {
                Ok(running) => {
                    if report.send(Ok(running.pid())).is_ok() {
                        // Returns when the handle is dropped.
                        let _ = stopped.recv();
                    }
                }
                Err(error) => drop(report.send(Err(error))),
            }
        });
        let pid = started.recv().map_err(|_| HarnessError::Malformed {
            what: "the start of a daemon".into(),
            why: "its keeper is gone".into(),
        })??;
        Ok(Self {
            pid,
            stop: Some(stop),
            keeper: Some(keeper),
        })
    }

    /// Its process id, that of the first program of its command line.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(keeper) = self.keeper.take() {
            // A panic of the keeper leaves nothing to do: the daemon dies with its thread.
            let _ = keeper.join();
        }
    }
}
