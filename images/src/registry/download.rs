//! The connections that fetch blobs, several at once, each a part of one.
//!
//! As soon as the first layer is opened, all layers that the store lacks are queued. A few threads, one a connection, work on the queue: each
//! takes the first part that nobody has taken, of the blob that comes first. First come the blobs that a reader has opened, then the
//! others, both from the top, in the order in which the merge reads them: so the layer that is being merged has right of way. Nothing that
//! goes to the store ever waits for a reader, so readers cannot block each other. Where there is no store, only opened layers are fetched,
//! within a window before their readers; there is a thread for each of them at least, so that one whose reader is slow takes nothing from
//! the one being merged.
//!
//! A blob for the store is fetched by one of all processes that want it; while another does, the threads fetch other blobs, so that many
//! processes that import an image together share its blobs among them.
//!
//! When a connection is cut or falls silent, its part is asked for again from the byte where it stopped. Failures are forgiven whenever
//! bytes have come since the last one, over whichever connection.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::RegistryError;
use super::blob::Blob;
use super::client::Client;
use super::follow::{CachedBlob, Follower};
use super::http::READ_SIZE;
use super::incoming::{Claim, Incoming};
use crate::digest::Digest;
use crate::progress::{Event, Progress};
use crate::source::{ResolvedImage, SourceError, Task};
use crate::store::Store;

/// How long the end of a source waits for its threads, which were interrupted. They hold nothing that outlives the process.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a thread without work looks whether a part has become slow.
const LOOK_AROUND: Duration = Duration::from_secs(1);

/// Progress that makes earlier failures forgiven, in bytes.
const FORGIVING: u64 = 64 << 10;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Queue {
    /// What is to be fetched, in the order of its right.
    waiting: Vec<Arc<Incoming>>,
    /// What goes to the store, for whoever opens it.
    known: HashMap<Digest, Arc<Incoming>>,
    /// Blobs that were looked for in the store.
    checked: HashSet<Digest>,
    /// Threads that are alive.
    workers: usize,
    stopped: bool,
}

impl Queue {
    fn sort(&mut self) {
        self.waiting.retain(|incoming| !incoming.is_over());
        self.waiting
            .sort_by_key(|incoming| (!incoming.is_wanted(), std::cmp::Reverse(incoming.layer)));
    }

    fn add(&mut self, blob: Blob, layer: usize, store: Option<&Arc<Store>>) -> Arc<Incoming> {
        let incoming = Arc::new(Incoming::new(blob, layer, store.cloned()));
        self.waiting.push(Arc::clone(&incoming));
        if store.is_some() {
            self.known.insert(blob.digest, Arc::clone(&incoming));
        }
        incoming
    }

    /// How many threads there is work for.
    fn wanted_workers(&self, connections: usize) -> usize {
        let width = self.waiting.iter().fold(0_usize, |sum, incoming| {
            sum.saturating_add(incoming.width())
        });
        let in_memory = self
            .waiting
            .iter()
            .filter(|incoming| incoming.is_in_memory());
        connections.min(width).max(in_memory.count())
    }
}

/// What a thread does next.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// It claims the blob in the store.
    Enter,
    /// It fetches a part.
    Fetch(Claim),
}

/// What the threads and the readers share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    queue: Mutex<Queue>,
    /// There may be a part to fetch, or none ever again.
    changed: Condvar,
    worker_ended: Condvar,
    /// All bytes that have come.
    arrived: AtomicU64,
    /// What a connection brings in a second; 0 when it is not known.
    rate: AtomicU64,
    /// A blob of a store was damaged.
    has_damage: AtomicBool,
}

impl Shared {
    /// A blob of a store was damaged.
    pub(super) fn note_damage(&self) {
        self.has_damage.store(true, Ordering::Relaxed);
    }

    /// Lets the threads look for work.
    pub(super) fn wake(&self) {
        // A thread that has looked and not yet begun to wait holds the lock.
        drop(lock(&self.queue));
        self.changed.notify_all();
    }

    /// Reports what has come, whoever asked for it: the receiver of progress lives no longer than a reader.
    pub(super) fn report(&self, progress: &dyn Progress) {
        for incoming in lock(&self.queue).known.values() {
            incoming.report(progress);
        }
    }

    /// Works until everything is here.
    fn work(&self, client: &Client, connections: usize) {
        let mut buffer = vec![0; READ_SIZE];
        while let Some((incoming, work)) = self.next(connections) {
            // A reader must not wait forever for a thread that panicked.
            let guard = FinishOnPanic(&incoming);
            let outcome = match work {
                Work::Enter => incoming.enter(),
                Work::Fetch(claim) => self.fetch(client, &incoming, claim, &mut buffer),
            };
            std::mem::forget(guard);
            match (outcome, work) {
                (Ok(()), Work::Fetch(claim)) => {
                    if let Some(rate) = incoming.release(claim) {
                        self.rate.store(rate, Ordering::Relaxed);
                    }
                }
                (Ok(()), Work::Enter) => {}
                (Err(error), _) => incoming.finish(Err(error)),
            }
            self.wake();
        }
    }

    /// What to do next; None when nothing will ever be left to do.
    fn next(&self, connections: usize) -> Option<(Arc<Incoming>, Work)> {
        let mut queue = lock(&self.queue);
        loop {
            queue.waiting.retain(|incoming| !incoming.is_over());
            if queue.stopped || queue.waiting.is_empty() {
                // Under the same lock, so that who queues more sees that it must start a thread.
                queue.workers -= 1;
                self.worker_ended.notify_all();
                return None;
            }
            let rate = self.rate.load(Ordering::Relaxed);
            let claims = |incoming: &Arc<Incoming>| {
                if incoming.begin_entering() {
                    return Some(Work::Enter);
                }
                incoming.claim(connections, rate).map(Work::Fetch)
            };
            let found = queue
                .waiting
                .iter()
                .find_map(|incoming| Some((Arc::clone(incoming), claims(incoming)?)))
                .or_else(|| {
                    let slow = |incoming: &Arc<Incoming>| {
                        let claim = incoming.take_over(rate)?;
                        Some((Arc::clone(incoming), Work::Fetch(claim)))
                    };
                    queue.waiting.iter().find_map(slow)
                });
            if found.is_some() {
                return found;
            }
            let entries = queue
                .waiting
                .iter()
                .filter_map(|incoming| incoming.entry_time());
            let patience = entries.min().map_or(LOOK_AROUND, |time| {
                LOOK_AROUND.min(time.saturating_duration_since(Instant::now()))
            });
            let (guard, _) = self
                .changed
                .wait_timeout(queue, patience)
                .unwrap_or_else(PoisonError::into_inner);
            queue = guard;
        }
    }

    /// Fetches a part to its end, over as many connections as it takes.
    fn fetch(
        &self,
        client: &Client,
        incoming: &Incoming,
        claim: Claim,
        buffer: &mut [u8],
    ) -> Result<(), SourceError> {
        let blob = incoming.blob;
        if blob.size == 0 {
            return incoming.complete_empty();
        }
        let (mut position, mut end) = (claim.from, claim.end);
        let mut backoff = client.backoff();
        let mut arrived_before = self.arrived.load(Ordering::Relaxed);
        let mut arriving = None;
        while position < end {
            let error = match &mut arriving {
                None => match blob.request(client, position, end) {
                    Ok(answer) => {
                        end = incoming.answered(claim, answer.whole);
                        arriving = Some(answer);
                        // Others may know now whether they can help.
                        self.wake();
                        continue;
                    }
                    Err(SourceError::Registry(error)) => error,
                    Err(error) => return Err(error),
                },
                Some(answer) => match answer.read(buffer) {
                    Ok(read) => {
                        let left = end - position;
                        let next = position + left.min(read as u64);
                        if next == blob.size {
                            blob.check_end(answer, read as u64 > left)?;
                        }
                        // Lossless: it is not more than was read.
                        let bytes = &buffer[..(next - position) as usize];
                        end = incoming.arrive(claim, position, bytes)?;
                        self.arrived
                            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        position = next;
                        continue;
                    }
                    Err(error) => error,
                },
            };
            arriving = None;
            let arrived = self.arrived.load(Ordering::Relaxed);
            if arrived >= arrived_before.saturating_add(FORGIVING) {
                backoff.reset();
            }
            arrived_before = arrived;
            client.pause_after(error, &mut backoff)?;
        }
        if let Some(answer) = arriving {
            answer.finish();
        }
        Ok(())
    }
}

struct FinishOnPanic<'a>(&'a Incoming);

impl Drop for FinishOnPanic<'_> {
    fn drop(&mut self) {
        self.0.finish(Err(RegistryError::Stopped.into()));
    }
}

/// The downloads of one source.
#[derive(Debug)]
pub(super) struct Downloads {
    client: Arc<Client>,
    connections: usize,
    shared: Arc<Shared>,
}

impl Downloads {
    pub(super) fn new(client: Arc<Client>, connections: usize) -> Self {
        Self {
            client,
            connections: connections.max(1),
            shared: Arc::default(),
        }
    }

    /// Opens a layer: as it lies in the store, or as it arrives.
    pub(super) fn open<'a>(
        &'a self,
        image: &ResolvedImage,
        layer: usize,
        store: Option<&Arc<Store>>,
        task: Task<'a>,
    ) -> Result<Box<dyn Read + Send + 'a>, SourceError> {
        let blob = blob_of(image, layer)?;
        let mut queue = lock(&self.shared.queue);
        let incoming = match store {
            None => queue.add(blob, layer, None),
            Some(store) => {
                for other in (0..image.layers.len()).rev() {
                    let blob = blob_of(image, other)?;
                    if queue.checked.insert(blob.digest) && open_stored(store, blob)?.is_none() {
                        queue.add(blob, other, Some(store));
                    }
                }
                match queue.known.get(&blob.digest) {
                    Some(incoming) => Arc::clone(incoming),
                    None => match open_stored(store, blob)? {
                        Some(file) => {
                            drop(queue);
                            self.start_workers()?;
                            task.progress.event(Event::LayerCached {
                                layer,
                                digest: blob.digest,
                                size: blob.size,
                            });
                            return Ok(Box::new(CachedBlob::new(&self.shared, store, file, blob)));
                        }
                        // Removed since it was looked for.
                        None => queue.add(blob, layer, Some(store)),
                    },
                }
            }
        };
        incoming.want();
        queue.sort();
        drop(queue);
        self.start_workers()?;
        self.shared.wake();
        Ok(Box::new(Follower::new(&self.shared, incoming, task)))
    }

    /// Sees that enough threads work on the queue.
    fn start_workers(&self) -> Result<(), SourceError> {
        loop {
            let mut queue = lock(&self.shared.queue);
            if queue.workers >= queue.wanted_workers(self.connections) {
                return Ok(());
            }
            queue.workers += 1;
            drop(queue);
            let (shared, client) = (Arc::clone(&self.shared), Arc::clone(&self.client));
            let connections = self.connections;
            let spawned = thread::Builder::new()
                .name("download".to_owned())
                .spawn(move || shared.work(&client, connections));
            if let Err(source) = spawned {
                let mut queue = lock(&self.shared.queue);
                queue.workers -= 1;
                // Fewer threads than wished for do the work too.
                if queue.workers > 0 {
                    return Ok(());
                }
                return Err(RegistryError::Thread { source }.into());
            }
        }
    }

    /// Forgets blobs that could not be had, so that they are asked for again when they are opened. Whether a blob of a store was damaged since this was
    /// asked last: it will not be taken from there again.
    pub(super) fn forget_failures(&self) -> bool {
        let mut queue = lock(&self.shared.queue);
        queue.known.retain(|_, incoming| !incoming.is_over());
        queue.waiting.retain(|incoming| !incoming.is_over());
        drop(queue);
        self.shared.has_damage.swap(false, Ordering::Relaxed)
    }

    /// Forgets what waits, and gives the threads, which the client has interrupted, a moment to clean up.
    pub(super) fn finish(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut queue = lock(&self.shared.queue);
        queue.stopped = true;
        for incoming in queue.waiting.drain(..) {
            incoming.finish(Err(RegistryError::Stopped.into()));
        }
        self.shared.changed.notify_all();
        while queue.workers > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let (guard, _) = self
                .shared
                .worker_ended
                .wait_timeout(queue, left)
                .unwrap_or_else(PoisonError::into_inner);
            queue = guard;
        }
    }
}

fn blob_of(image: &ResolvedImage, layer: usize) -> Result<Blob, SourceError> {
    let blob = image.layer(layer)?;
    let (digest, size) = blob
        .digest
        .zip(blob.size)
        .ok_or(SourceError::NoSuchLayer { layer })?;
    Ok(Blob { digest, size })
}

/// A blob of the right size in the store; one of another size is damaged, and will be replaced by whoever claims it.
fn open_stored(store: &Store, blob: Blob) -> Result<Option<File>, SourceError> {
    let Some(file) = store.blob(&blob.digest)? else {
        return Ok(None);
    };
    let is_whole = file
        .metadata()
        .is_ok_and(|metadata| metadata.len() == blob.size);
    Ok(is_whole.then_some(file))
}
