//! Work that nobody waits for yet: blocks that will be wanted soon are decoded, and what was decoded but not asked for goes
//! to the page cache.
//!
//! Helper threads appear with the first job, and sleep for good while there is none: an idle mount costs no wake-ups.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use cista_images::squashfs::reader::{CachedBlock, Reader, StoredBlock};

use super::connection::Connection;

/// Jobs that may wait; more are dropped, the oldest first.
const QUEUE: usize = 64;

/// A job.
pub(super) enum Job {
    /// Decode a block into the cache.
    Decode(StoredBlock),
    /// Put part of a block into the page cache.
    Store {
        /// The file.
        nodeid: u64,
        /// Where the part begins in the file.
        offset: u64,
        /// The block.
        content: CachedBlock,
        /// The part.
        range: Range<usize>,
    },
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Helpers that wait for a job.
    waiting: usize,
    helpers: usize,
    closed: bool,
}

/// The queue between the threads that answer and the helpers.
#[derive(Default)]
pub(super) struct Ahead {
    state: Mutex<State>,
    wake: Condvar,
}

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds jobs. Returns true when the caller should start one more helper, of which there may be `most`.
    pub(super) fn add(&self, jobs: impl IntoIterator<Item = Job>, most: usize) -> bool {
        let mut state = self.lock();
        let before = state.jobs.len();
        state.jobs.extend(jobs);
        let added = state.jobs.len().saturating_sub(before);
        if added == 0 || state.closed {
            return false;
        }
        while state.jobs.len() > QUEUE {
            state.jobs.pop_front();
        }
        let (waiting, helpers) = (state.waiting, state.helpers);
        let start = waiting == 0 && helpers < most;
        if start {
            state.helpers += 1;
        }
        drop(state);
        if waiting > 0 {
            if added > 1 {
                self.wake.notify_all();
            } else {
                self.wake.notify_one();
            }
        }
        start
    }

    /// The helper that [`Self::add`] asked for could not be started.
    pub(super) fn not_started(&self) {
        self.lock().helpers -= 1;
    }

    /// Tells the helpers to end.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_all();
    }

    /// What a helper does, until the queue is closed.
    pub(super) fn help(&self, reader: &Reader, connection: &Connection) {
        loop {
            let job = {
                let mut state = self.lock();
                loop {
                    if state.closed {
                        return;
                    }
                    if let Some(job) = state.jobs.pop_front() {
                        break job;
                    }
                    state.waiting += 1;
                    state = self
                        .wake
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                    state.waiting -= 1;
                }
            };
            match job {
                // Whoever asks for the block gets the error.
                Job::Decode(block) => drop(reader.cached(&block)),
                Job::Store {
                    nodeid,
                    offset,
                    content,
                    range,
                } => {
                    if let Some(content) = content.get(range) {
                        // A file that the kernel does not know any more, or no memory: the content is asked for again.
                        let _ = connection.store(nodeid, offset, content);
                    }
                }
            }
        }
    }
}
