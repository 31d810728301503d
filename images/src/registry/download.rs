//! Blobs into the store, several at once, readable while they grow.
//!
//! As soon as the first layer is opened, all layers that the store lacks are queued: first the one that was opened, then the others from the
//! top, in the order in which the merge reads them. A few threads work on the queue, each writing one blob's bytes to its file in the store
//! while it hashes them. A reader follows the file: it waits on a condition variable until more bytes are there, and sees the end only after
//! the digest was verified. Nothing ever waits for a reader, so readers cannot block each other.
//!
//! Progress is counted by the threads and reported by whichever reader is active, since the receiver of progress lives no longer than that.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::blob::BlobStream;
use super::client::Client;
use super::http::READ_SIZE;
use super::{CANCEL_INTERVAL, RegistryError};
use crate::cancel::Cancelled;
use crate::digest::Digest;
use crate::progress::{Event, Progress};
use crate::source::archive::FileRange;
use crate::source::verified::{Verified, stream_error};
use crate::source::{ResolvedImage, SourceError, Task};
use crate::store::{Store, StoreError};

/// How long the end of a source waits for its threads, which were interrupted. They hold nothing that outlives the process.
const PATIENCE: Duration = Duration::from_secs(2);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A blob on its way into the store.
#[derive(Debug)]
struct Download {
    digest: Digest,
    size: u64,
    layer: usize,
    store: Arc<Store>,
    state: Mutex<State>,
    arrived: Condvar,
    /// Bytes that arrived and were not reported yet.
    unreported: AtomicU64,
    /// The blob is complete, which was not reported yet.
    complete: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes from the first on that may be read.
    available: u64,
    file: Option<Arc<File>>,
    outcome: Option<Result<(), Arc<SourceError>>>,
}

impl Download {
    /// Receives the blob to its end.
    fn run(&self, client: &Arc<Client>) -> Result<(), SourceError> {
        let mut stream = BlobStream::verified(client, self.digest, self.size);
        let mut buffer = vec![0; READ_SIZE];
        // The file is made when the first bytes are there: a blob that cannot be had needs none.
        let mut read = self.read(&mut stream, &mut buffer)?;
        let pending = self.store.begin_blob(&self.digest, self.size)?;
        lock(&self.state).file = Some(Arc::new(pending.handle()?));
        while read > 0 {
            pending
                .file()
                .write_all(&buffer[..read])
                .map_err(|source| StoreError::Write {
                    path: pending.path().to_owned(),
                    source,
                })?;
            lock(&self.state).available += read as u64;
            self.arrived.notify_all();
            self.unreported.fetch_add(read as u64, Ordering::Relaxed);
            read = self.read(&mut stream, &mut buffer)?;
        }
        pending.commit()?;
        self.complete.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn read(
        &self,
        stream: &mut Verified<BlobStream>,
        buffer: &mut [u8],
    ) -> Result<usize, SourceError> {
        stream.read(buffer).map_err(SourceError::from_stream)
    }

    fn finish(&self, outcome: Result<(), SourceError>) {
        let mut state = lock(&self.state);
        if state.outcome.is_none() {
            state.outcome = Some(outcome.map_err(Arc::new));
        }
        self.arrived.notify_all();
    }

    fn report(&self, progress: &dyn Progress) {
        let layer = self.layer;
        match self.unreported.swap(0, Ordering::Relaxed) {
            0 => {}
            bytes => progress.event(Event::LayerFetched { layer, bytes }),
        }
        if self.complete.swap(false, Ordering::Relaxed) {
            progress.event(Event::LayerComplete { layer });
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Arc<Download>>,
    known: HashMap<Digest, Arc<Download>>,
    /// Blobs that were looked for in the store.
    checked: HashSet<Digest>,
    /// Threads that are alive.
    workers: usize,
    /// Downloads that a thread works on.
    busy: usize,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    worker_ended: Condvar,
}

impl Shared {
    /// Works until the queue is empty.
    fn work(&self, client: &Arc<Client>) {
        let mut was_busy = false;
        loop {
            let mut queue = lock(&self.queue);
            queue.busy -= usize::from(was_busy);
            let Some(download) = queue.waiting.pop_front() else {
                // Under the same lock, so that who queues more sees that it must start a worker.
                queue.workers -= 1;
                self.worker_ended.notify_all();
                return;
            };
            queue.busy += 1;
            was_busy = true;
            drop(queue);
            // A reader must not wait forever for a thread that panicked.
            let guard = FinishOnDrop(&download);
            let outcome = download.run(client);
            guard.0.finish(outcome);
        }
    }

    fn report(&self, progress: &dyn Progress) {
        for download in lock(&self.queue).known.values() {
            download.report(progress);
        }
    }
}

struct FinishOnDrop<'a>(&'a Download);

impl Drop for FinishOnDrop<'_> {
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
        store: &Arc<Store>,
        task: Task<'a>,
    ) -> Result<Box<dyn Read + Send + 'a>, SourceError> {
        let (digest, size) = blob_of(image, layer)?;
        let mut queue = lock(&self.shared.queue);
        for other in (0..image.layers.len()).rev() {
            let (digest, size) = blob_of(image, other)?;
            if queue.checked.insert(digest) && open_stored(store, digest, size)?.is_none() {
                enqueue(&mut queue, digest, size, other, store);
            }
        }
        if !queue.known.contains_key(&digest) {
            if let Some(file) = open_stored(store, digest, size)? {
                drop(queue);
                self.start_workers()?;
                task.progress.event(Event::LayerCached {
                    layer,
                    digest,
                    size,
                });
                return Ok(Box::new(CachedBlob::new(store, file, digest, size)));
            }
            // Removed since it was looked for.
            enqueue(&mut queue, digest, size, layer, store);
        }
        let download = queue.known.get(&digest).map(Arc::clone);
        let download = download.ok_or(SourceError::NoSuchLayer { layer })?;
        // Right of way.
        if let Some(place) = queue
            .waiting
            .iter()
            .position(|waiting| waiting.digest == digest)
            && let Some(waiting) = queue.waiting.remove(place)
        {
            queue.waiting.push_front(waiting);
        }
        drop(queue);
        self.start_workers()?;
        Ok(Box::new(Follower {
            shared: &self.shared,
            download,
            file: None,
            position: 0,
            available: 0,
            task,
        }))
    }

    /// Sees that enough threads work on the queue.
    fn start_workers(&self) -> Result<(), SourceError> {
        loop {
            let mut queue = lock(&self.shared.queue);
            if queue.workers >= self.connections.min(queue.waiting.len() + queue.busy) {
                return Ok(());
            }
            queue.workers += 1;
            drop(queue);
            let (shared, client) = (Arc::clone(&self.shared), Arc::clone(&self.client));
            let spawned = thread::Builder::new()
                .name("download".to_owned())
                .spawn(move || shared.work(&client));
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

    /// Forgets what waits, and gives the threads, which the client has interrupted, a moment to clean up.
    pub(super) fn finish(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut queue = lock(&self.shared.queue);
        for download in queue.waiting.drain(..) {
            download.finish(Err(RegistryError::Stopped.into()));
        }
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

fn blob_of(image: &ResolvedImage, layer: usize) -> Result<(Digest, u64), SourceError> {
    let blob = image.layer(layer)?;
    blob.digest
        .zip(blob.size)
        .ok_or(SourceError::NoSuchLayer { layer })
}

fn enqueue(queue: &mut Queue, digest: Digest, size: u64, layer: usize, store: &Arc<Store>) {
    let download = Arc::new(Download {
        digest,
        size,
        layer,
        store: Arc::clone(store),
        state: Mutex::default(),
        arrived: Condvar::new(),
        unreported: AtomicU64::new(0),
        complete: AtomicBool::new(false),
    });
    queue.known.insert(digest, Arc::clone(&download));
    queue.waiting.push_back(download);
}

/// A blob of the right size in the store; one of another size is damaged and removed.
fn open_stored(store: &Store, digest: Digest, size: u64) -> Result<Option<File>, SourceError> {
    let Some(file) = store.blob(&digest)? else {
        return Ok(None);
    };
    if file.metadata().is_ok_and(|metadata| metadata.len() == size) {
        return Ok(Some(file));
    }
    store.discard_blob(&digest)?;
    Ok(None)
}

/// Reads a blob while it arrives.
struct Follower<'a> {
    shared: &'a Shared,
    download: Arc<Download>,
    file: Option<Arc<File>>,
    position: u64,
    /// What was available when it was last looked.
    available: u64,
    task: Task<'a>,
}

impl Follower<'_> {
    /// Waits until more bytes are there; false at the verified end.
    fn wait(&mut self) -> io::Result<bool> {
        loop {
            self.shared.report(self.task.progress);
            let state = lock(&self.download.state);
            let (state, _) = self
                .download
                .arrived
                .wait_timeout_while(state, CANCEL_INTERVAL, |state| {
                    state.available <= self.position && state.outcome.is_none()
                })
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(Err(error)) = &state.outcome {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    Arc::clone(error),
                ));
            }
            if state.available > self.position {
                self.available = state.available;
                self.file.clone_from(&state.file);
                return Ok(true);
            }
            if state.outcome.is_some() {
                drop(state);
                self.shared.report(self.task.progress);
                return Ok(false);
            }
            drop(state);
            if self.task.cancel.is_cancelled() {
                return Err(stream_error(Cancelled.into()));
            }
        }
    }
}

impl Read for Follower<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.position == self.available && !self.wait()? {
            return Ok(0);
        }
        let Some(file) = &self.file else {
            return Ok(0);
        };
        let left = self.available - self.position;
        let count = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = file.read_at(&mut buffer[..count], self.position)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += read as u64;
        Ok(read)
    }
}

/// Reads a blob that the store has, and removes it from there when it turns out to be damaged.
struct CachedBlob {
    stream: Verified<FileRange>,
    store: Arc<Store>,
    digest: Digest,
}

impl CachedBlob {
    fn new(store: &Arc<Store>, file: File, digest: Digest, size: u64) -> Self {
        let what = format!("blob {digest} in the store (now removed from it)");
        Self {
            stream: Verified::new(FileRange::whole(file, size), what, Some(digest), Some(size)),
            store: Arc::clone(store),
            digest,
        }
    }
}

impl Read for CachedBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer).inspect_err(|error| {
            if error.kind() == io::ErrorKind::InvalidData {
                // The damage is what is reported; whether it could be removed is the lesser matter.
                let _ = self.store.discard_blob(&self.digest);
            }
        })
    }
}
