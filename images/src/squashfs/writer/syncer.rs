//! Sends what was written to the disk while more is being written.
//!
//! An image counts only once it is on stable storage, so whoever writes one ends with `fsync`. If that is the first word the
//! disk hears of it, everything waits for all of it. A thread that calls `fdatasync(2)` every now and then keeps the
//! disk busy from the start, and leaves the last call little to do.
//!
//! An error of the disk is reported by one `fdatasync` only, the first on an open file after it happened: hence
//! none may be lost here.

use std::fs::File;
use std::io;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};

use super::WriteError;

/// How much is written between two calls, in bytes.
const INTERVAL: usize = 32 << 20;

/// A thread beside the one that writes; it begins to exist with the first interval.
#[derive(Debug)]
pub(super) struct Syncer {
    unsynced: usize,
    thread: Option<(Sender<()>, JoinHandle<io::Result<()>>)>,
}

impl Syncer {
    pub(super) fn new() -> Self {
        Self {
            unsynced: 0,
            thread: None,
        }
    }

    /// Takes note that more was written to `file`, always the same one.
    pub(super) fn wrote(&mut self, bytes: usize, file: &File) -> Result<(), WriteError> {
        self.unsynced += bytes;
        if self.unsynced < INTERVAL {
            return Ok(());
        }
        self.unsynced = 0;
        let (wake, _) = match &mut self.thread {
            Some(thread) => thread,
            None => {
                let file = file.try_clone().map_err(WriteError::Write)?;
                let (wake, woken) = bounded(1);
                let thread = std::thread::Builder::new()
                    .name("sync".to_owned())
                    .spawn(move || woken.iter().try_for_each(|()| file.sync_data()))
                    .map_err(WriteError::Spawn)?;
                self.thread.insert((wake, thread))
            }
        };
        // Full: the thread is busy and will be again. Closed: it met an error, which `finish` reports.
        let _ = wake.try_send(());
        Ok(())
    }

    /// Waits for the thread, and reports its error.
    pub(super) fn finish(self) -> Result<(), WriteError> {
        let Some((wake, thread)) = self.thread else {
            return Ok(());
        };
        drop(wake);
        match thread.join() {
            Ok(result) => result.map_err(WriteError::Write),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}
