//! What is served, and who works where while a container starts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, Scope};

use cista_images::squashfs::reader::{Inode, ReadError, Reader};
use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};

use super::ahead::Ahead;
use super::connection::Connection;
use super::content::OpenFiles;
use super::early::{Early, Known};
use super::nodes::Nodes;
use super::{Foresight, Options};

/// Stack of a thread; nothing here recurses or keeps much on it.
pub(super) const STACK: usize = 256 << 10;
/// Most threads that answer, and most that decode ahead: what a kernel can copy in parallel is used up long before.
const MAX_THREADS: usize = 16;

/// An image and what was read of it.
pub(super) struct Image {
    pub(super) reader: Reader,
    pub(super) nodes: Nodes,
    pub(super) files: OpenFiles,
    pub(super) ahead: Ahead,
    threads_asked: Option<usize>,
    threads: OnceLock<usize>,
    /// The mounted device, once there is one.
    kernel: OnceLock<Connection>,
    /// Whether the foreseen files are still being decoded and given to the kernel.
    starting: AtomicBool,
    /// The files that the kernel has looked up while that is so.
    known: Known,
}

impl Image {
    pub(super) fn new(reader: Reader, options: &Options) -> Self {
        Self {
            nodes: Nodes {
                root: reader.root_ref(),
                uid: options.uid,
                gid: options.gid,
            },
            reader,
            files: OpenFiles::default(),
            ahead: Ahead::default(),
            threads_asked: options.threads,
            threads: OnceLock::new(),
            kernel: OnceLock::new(),
            starting: AtomicBool::new(false),
            known: Known::default(),
        }
    }

    pub(super) fn inode(&self, nodeid: u64) -> Result<Inode, ReadError> {
        self.reader.inode(self.nodes.reference(nodeid))
    }

    /// Whether what is read now was foreseen, for the most part. Then it comes from one process, one READ after the other, and more
    /// threads would cost the start more than they bring.
    pub(super) fn is_starting(&self) -> bool {
        self.starting.load(Ordering::Relaxed)
    }

    /// Begins to decode the beginnings of files that will be read soon, on a thread of its own. To be called by the thread that will answer.
    pub(super) fn foresee<'scope>(
        &'scope self,
        foresight: Foresight,
        scope: &'scope Scope<'scope, '_>,
    ) {
        self.starting.store(true, Ordering::Relaxed);
        let sharing = Sharing::of(foresight.reader_processor);
        let theirs = sharing.clone();
        // Without this thread, everything is only slower.
        let started = Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, move || {
                let keep_out = theirs.map(Sharing::keep_out);
                Early::new(self, (foresight.files)(&self.reader)).provide(
                    &self.kernel,
                    &self.known,
                    foresight.patience,
                );
                drop(keep_out);
                self.starting.store(false, Ordering::Relaxed);
                if self.ahead.enlist(self.threads()) {
                    self.ahead.help(&self.reader);
                }
            });
        match (started, sharing) {
            (Ok(_), Some(sharing)) => sharing.move_in(),
            (Ok(_), None) => {}
            (Err(_), _) => self.starting.store(false, Ordering::Relaxed),
        }
    }

    /// Threads that may answer requests, and as many that may decode ahead. To find out how many processors there are takes a few files to be
    /// read, for which a start has no time.
    pub(super) fn threads(&self) -> usize {
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = || self.threads_asked.unwrap_or_else(available);
        *self.threads.get_or_init(|| threads().clamp(1, MAX_THREADS))
    }

    /// Notes that the kernel knows a node.
    pub(super) fn is_known(&self, nodeid: u64) {
        if self.is_starting() {
            self.known.add(nodeid);
        }
    }

    /// The device is there and mounted.
    pub(super) fn connected(&self, connection: Connection) -> &Connection {
        self.kernel.get_or_init(|| connection)
    }
}

/// Who works where while a container starts.
///
/// On two processors, three want to work: the process that starts the container, the thread that answers it, and the one that
/// decodes ahead. The first two take turns, so they can share a processor. Left alone, the scheduler puts one of them behind the
/// decoding now and then, and lets it wait there for two milliseconds, a third of the whole start, although the other processor is idle.
#[derive(Clone)]
struct Sharing {
    /// The thread that answers.
    server: Pid,
    /// The processors that it may use.
    all: CpuSet,
    /// The one of the process that starts the container.
    starter: CpuSet,
    /// The others.
    others: CpuSet,
    /// Whether it is over.
    is_over: Arc<Mutex<bool>>,
}

impl Sharing {
    /// Between the calling thread, which will answer, and a starter on `processor`. None where there is nothing to share.
    fn of(processor: usize) -> Option<Self> {
        let all = sched_getaffinity(None).ok()?;
        if processor >= CpuSet::MAX_CPU || !all.is_set(processor) || all.count() < 2 {
            return None;
        }
        let mut starter = CpuSet::new();
        starter.set(processor);
        let mut others = all;
        others.unset(processor);
        Some(Self {
            server: gettid(),
            all,
            starter,
            others,
            is_over: Arc::default(),
        })
    }

    /// Moves the calling thread, which answers, to the starter's processor, until what [`Self::keep_out`] returns is dropped.
    fn move_in(&self) {
        // The decoding may have been done in no time.
        let is_over = self.is_over();
        if !*is_over {
            let _ = sched_setaffinity(None, &self.starter);
        }
    }

    fn is_over(&self) -> MutexGuard<'_, bool> {
        self.is_over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the calling thread, which decodes, from the starter's processor, until what is returned is dropped.
    fn keep_out(self) -> Apart {
        let _ = sched_setaffinity(None, &self.others);
        Apart(self)
    }
}

/// Ends the sharing when it is dropped.
struct Apart(Sharing);

impl Drop for Apart {
    fn drop(&mut self) {
        *self.0.is_over() = true;
        let _ = sched_setaffinity(Some(self.0.server), &self.0.all);
        let _ = sched_setaffinity(None, &self.0.all);
    }
}
