//! Decoding blocks that nobody waits for yet, on threads of their own.
//!
//! Helpers appear with the first job. While there is nothing to do they sleep; the last thing they do before they sleep for
//! good is to give the cache back, so that a long computation which has read all it needs neither pays for our memory
//! nor is disturbed by our wake-ups.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cista_images::squashfs::reader::Reader;

use super::content::OpenFile;
use crate::sys;

/// Jobs that may wait; more are dropped, the oldest first.
const QUEUE: usize = 64;
/// Without any READ for so long, the cache is given back.
const IDLE: Duration = Duration::from_secs(10);

/// An extent to decode into the cache.
pub(super) struct Job {
    pub(super) file: Arc<OpenFile>,
    pub(super) number: u64,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    helpers: usize,
    /// Helpers that wait for a job.
    waiting: usize,
    /// Nobody watches whether the cache is still needed.
    unwatched: bool,
    closed: bool,
}

/// The queue between the threads that answer and the helpers.
pub(super) struct Ahead {
    state: Mutex<State>,
    wake: Condvar,
    most: usize,
    /// Counts what keeps the cache alive.
    uses: AtomicU64,
}

impl Ahead {
    /// A queue for at most `most` helpers.
    pub(super) fn new(most: usize) -> Self {
        Self {
            state: Mutex::default(),
            wake: Condvar::new(),
            most,
            uses: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the cache is in use.
    pub(super) fn used(&self) {
        self.uses.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds jobs, perhaps none. Returns true when the caller should start a helper.
    pub(super) fn add(&self, jobs: impl IntoIterator<Item = Job>) -> bool {
        // Choosing jobs may read the image.
        let jobs: Vec<Job> = jobs.into_iter().collect();
        let added = jobs.len();
        let mut state = self.lock();
        state.jobs.extend(jobs);
        while state.jobs.len() > QUEUE {
            state.jobs.pop_front();
        }
        let watch = std::mem::take(&mut state.unwatched);
        let start =
            state.helpers == 0 || (added > 0 && state.waiting == 0 && state.helpers < self.most);
        if start {
            state.helpers += 1;
        }
        let waiting = state.waiting > 0;
        drop(state);
        if waiting && added > 1 {
            self.wake.notify_all();
        } else if waiting && (watch || added > 0) {
            self.wake.notify_one();
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
    pub(super) fn help(&self, reader: &Reader) {
        while let Some(job) = self.next(reader) {
            // Whoever asks for the block gets the error.
            if !job.file.is_handed_out(job.number)
                && let Ok(extent) = reader.extent(&job.file.map, job.number)
                && let Some(block) = super::content::block(&extent)
            {
                drop(reader.cached(&block));
            }
        }
    }

    /// Waits for the next job. None when the queue is closed.
    fn next(&self, reader: &Reader) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            let uses = self.uses.load(Ordering::Relaxed);
            state.waiting += 1;
            state = if state.unwatched {
                self.wake
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner)
            } else {
                let waited = self.wake.wait_timeout(state, IDLE);
                let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                if timeout.timed_out() && uses == self.uses.load(Ordering::Relaxed) {
                    state.unwatched = true;
                    reader.shrink_cache(0);
                    sys::heap::give_back();
                }
                state
            };
            state.waiting -= 1;
        }
    }
}
