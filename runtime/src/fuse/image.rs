//! What is served, and the first blocks of it, which are decoded before anybody asks for them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope};

use cista_images::squashfs::reader::{Inode, ReadError, Reader};
use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity, sched_yield};

use super::ahead::{self, Ahead, Job};
use super::content::OpenFiles;
use super::nodes::Nodes;
use super::{Foresight, Options};

/// Stack of a thread; nothing here recurses or keeps much on it.
pub(super) const STACK: usize = 256 << 10;
/// Most threads that answer, and most that decode ahead: what a kernel can copy in parallel is used up long before.
const MAX_THREADS: usize = 16;
/// Most blocks that are decoded before the first READ: 8 MiB of the usual ones.
const MAX_FORESEEN: u64 = 64;

/// An image and what was read of it.
pub(super) struct Image {
    pub(super) reader: Reader,
    pub(super) nodes: Nodes,
    pub(super) files: OpenFiles,
    pub(super) ahead: Ahead,
    /// Whether the foreseen blocks are still being decoded.
    starting: AtomicBool,
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
            ahead: Ahead::new(threads(options)),
            starting: AtomicBool::new(false),
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
                self.decode((foresight.files)(&self.reader));
                drop(keep_out);
                self.starting.store(false, Ordering::Relaxed);
                if self.ahead.enlist() {
                    self.ahead.help(&self.reader);
                }
            });
        match (started, sharing) {
            (Ok(_), Some(sharing)) => sharing.move_in(),
            (Ok(_), None) => {}
            (Err(_), _) => self.starting.store(false, Ordering::Relaxed),
        }
    }

    fn decode(&self, files: Vec<Inode>) {
        let mut left = MAX_FORESEEN;
        for inode in files {
            let nodeid = self.nodes.id(inode.reference);
            let Ok(file) = self.files.open(nodeid, &self.reader, || Ok(inode)) else {
                continue;
            };
            let count = file.map.extent_count().min(left);
            left -= count;
            for number in 0..count {
                if self.ahead.is_closed() {
                    return;
                }
                ahead::decode(
                    &self.reader,
                    &Job {
                        file: Arc::clone(&file),
                        number,
                    },
                );
                // Whoever was put behind us on this processor has more urgent things to do.
                sched_yield();
            }
        }
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

/// Threads that may answer requests, and as many that may decode ahead.
pub(super) fn threads(options: &Options) -> usize {
    options.threads.clamp(1, MAX_THREADS)
}
