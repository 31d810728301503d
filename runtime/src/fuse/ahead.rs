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
const IDLE: Duration = if cfg!(test) {
    Duration::from_millis(100)
} else {
    Duration::from_secs(10)
};

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
#[derive(Default)]
pub(super) struct Ahead {
    state: Mutex<State>,
    wake: Condvar,
    /// Counts what keeps the cache alive.
    uses: AtomicU64,
}

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the cache is in use.
    pub(super) fn used(&self) {
        self.uses.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds jobs, perhaps none, for at most `most` helpers. Returns true when the caller should start one.
    pub(super) fn add(&self, jobs: impl IntoIterator<Item = Job>, most: usize) -> bool {
        // Choosing jobs may read the image.
        let jobs: Vec<Job> = jobs.into_iter().collect();
        let added = jobs.len();
        let mut state = self.lock();
        state.jobs.extend(jobs);
        while state.jobs.len() > QUEUE {
            state.jobs.pop_front();
        }
        let watch = std::mem::take(&mut state.unwatched);
        let start = state.helpers == 0 || (added > 0 && state.waiting == 0 && state.helpers < most);
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

    /// Makes the caller a helper, which is to call [`Self::help`] then. False when there are `most` already.
    pub(super) fn enlist(&self, most: usize) -> bool {
        let mut state = self.lock();
        let room = state.helpers < most;
        if room {
            state.helpers += 1;
        }
        room
    }

    /// Whether the helpers are to end.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
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
            decode(reader, &job);
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
            let mut idle = false;
            state = if state.unwatched {
                let waited = self.wake.wait(state);
                waited.unwrap_or_else(PoisonError::into_inner)
            } else {
                let waited = self.wake.wait_timeout(state, IDLE);
                let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                idle = timeout.timed_out() && uses == self.uses.load(Ordering::Relaxed);
                state
            };
            state.waiting -= 1;
            if idle {
                state.unwatched = true;
                // It takes a while, and somebody may come.
                drop(state);
                reader.shrink_cache(0);
                sys::heap::give_back();
                state = self.lock();
            }
        }
    }
}

/// Decodes an extent into the cache, unless the kernel has it already.
pub(super) fn decode(reader: &Reader, job: &Job) {
    // Whoever asks for the block gets the error.
    if !job.file.is_handed_out(job.number)
        && let Ok(extent) = reader.extent(&job.file.map, job.number)
        && let Some(block) = super::content::block(&extent)
    {
        drop(reader.cached(&block));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use cista_images::cancel::Cancel;
    use cista_images::squashfs::reader::Extent;
    use cista_images::squashfs::writer::{Options, Writer};
    use cista_images::tree::{Inode, Kind, Metadata, Tree};

    use super::super::content::OpenFiles;
    use super::*;

    /// A file of eight blocks.
    fn image() -> Reader {
        let block_size = 4096;
        let options = Options {
            block_size,
            ..Options::default()
        };
        let mut writer =
            Writer::new(tempfile::tempfile().unwrap(), options, Cancel::new()).unwrap();
        let bytes: Vec<u8> = (0..8 * block_size).map(|n| (n / 100) as u8).collect();
        let metadata = Metadata {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: None,
        };
        let mut tree = Tree::new(metadata.clone());
        let kind = Kind::File(writer.add_file(&bytes).unwrap());
        let id = tree.add(Inode { metadata, kind }).unwrap();
        tree.link(Tree::ROOT, b"file", id);
        let file = writer.finish(&tree).unwrap().file;
        Reader::open(file, 0).unwrap().with_cache(1 << 20)
    }

    fn eventually(what: impl Fn() -> bool) {
        let start = Instant::now();
        while !what() {
            assert!(start.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn decodes_what_the_kernel_has_not_got_and_gives_it_back_when_idle() {
        let reader = image();
        let inode = reader.walk(b"file").unwrap().unwrap();
        let file = OpenFiles::default().open(5, &reader, || Ok(inode)).unwrap();
        let is_cached = |number| match reader.extent(&file.map, number).unwrap() {
            Extent::Block(block) => reader.is_cached(&block),
            extent => panic!("{extent:?} is no block"),
        };
        let job = |number| Job {
            file: Arc::clone(&file),
            number,
        };
        assert!(file.hand_out(2, 4096, 4096));
        assert_eq!(file.wanted(&reader, 0, 4).collect::<Vec<_>>(), [0, 1, 3]);
        let ahead = Ahead::default();
        std::thread::scope(|scope| {
            assert!(ahead.add([job(1), job(2), job(3)], 1));
            scope.spawn(|| ahead.help(&reader));
            eventually(|| is_cached(1) && is_cached(3));
            assert!(!is_cached(2));
            // Twice: the helper must begin to watch again after it has slept for good.
            for number in [4, 5] {
                eventually(|| reader.cached_bytes() == 0);
                assert!(!ahead.add([job(number)], 1));
                eventually(|| is_cached(number));
            }
            eventually(|| reader.cached_bytes() == 0);
            // What others decode is watched as well, though it gives the helper nothing to do.
            let Extent::Block(block) = reader.extent(&file.map, 6).unwrap() else {
                panic!("no block");
            };
            drop(reader.cached(&block).unwrap());
            ahead.used();
            assert!(!ahead.add([], 1));
            eventually(|| reader.cached_bytes() == 0);
            ahead.close();
        });
    }

    #[test]
    fn a_block_read_in_parts_counts_as_handed_out_once_it_is_whole() {
        let reader = image();
        let inode = reader.walk(b"file").unwrap().unwrap();
        let file = OpenFiles::default().open(5, &reader, || Ok(inode)).unwrap();
        assert!(!file.hand_out(0, 1000, 4096));
        assert!(!file.is_handed_out(0));
        assert!(file.hand_out(0, 3096, 4096));
        assert!(file.is_handed_out(0));
        // Asked for again: the kernel has dropped it.
        assert!(!file.hand_out(0, 96, 4096));
        assert!(!file.is_handed_out(0));
        assert_eq!(
            [
                file.streak(&(0..10)),
                file.streak(&(10..20)),
                file.streak(&(30..40))
            ],
            [1, 2, 0]
        );
    }
}
