//! Layers are decoded by threads of their own, ahead of the merge.
//!
//! The merge takes layers one after the other, but inflating one is serial work, so while it merges one the next ones
//! are fetched, inflated and hashed already. Each layer has a queue of chunks of decoded bytes; all queues together
//! share one budget. When the budget is spent on layers that wait, the layer being merged still gets chunks of its own
//! (its right of way), so the merge always goes on, and every chunk that it gives back lets the others go on.
//!
//! No deadlock: decoders take layers in the order in which the merge does, so the layer being merged always has
//! a decoder; that decoder waits for nothing but its blob and, at most, for the merge to give back one of the
//! [`RESERVE`] chunks, all of which are in the queue that the merge empties.
//!
//! The sha256 of the decoded stream (the config's `diff_id`) is computed next to the decoder: on the same thread, where
//! the bytes are still in the cache, or on a thread of its own where processors are plenty and the serial work of one
//! big layer is what everyone waits for.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::decompress::{DecodeError, Decoder};
use super::{LayerName, Limits};
use crate::cancel::{Cancel, Cancelled};
use crate::digest::{Digest, Hasher};
use crate::progress::{Event, Progress};
use crate::source::{SourceError, Task};

/// Bytes of a chunk.
const CHUNK: usize = 256 << 10;
/// Chunks that the layer being merged may have whatever the others hold.
const RESERVE: usize = 8;

/// How layers are decoded ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Layers that are decoded at the same time; at least 1.
    pub decoders: usize,
    /// Decoded bytes that may wait for the merge, over all layers. The layer being merged may have 2 MiB more.
    pub budget: usize,
    /// Whether each decoder has a second thread for its sha256.
    pub hash_apart: bool,
    /// When a layer counts as an attack.
    pub limits: Limits,
}

impl Settings {
    /// Settings for a machine of which `threads` processors may be used.
    #[must_use]
    pub fn for_threads(threads: usize) -> Self {
        Self {
            decoders: threads.clamp(1, 8),
            budget: 128 << 20,
            hash_apart: threads >= 4,
            limits: Limits::default(),
        }
    }
}

/// A layer that will be merged.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Which one it is.
    pub name: LayerName,
    /// Digest of the decoded stream, where the config announces it.
    pub diff_id: Option<Digest>,
}

/// Why a layer's stream fails.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The source cannot open the blob.
    #[error("{0}")]
    Open(#[from] SourceError),
    /// The blob cannot be read or decoded.
    #[error("{0}")]
    Decode(#[from] DecodeError),
    /// The decoded stream is not the one that the config announces.
    #[error(
        "the uncompressed layer has the digest `{actual}`, the image config announces `{expected}`"
    )]
    DiffId {
        /// What the config announces.
        expected: Digest,
        /// What the stream has.
        actual: Digest,
    },
    /// The caller has given up.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// A decoder ended without a word; its thread has panicked.
    #[error("the decoder has failed")]
    Lost,
}

/// Opens the blob of a layer by its position in the manifest.
pub type Open<'a> = dyn Fn(usize) -> Result<Box<dyn Read + Send + 'a>, SourceError> + Sync + 'a;

struct Chunk {
    buffer: Box<[u8]>,
    length: usize,
    /// Bytes of the blob that were read for it.
    compressed: u64,
}

enum Message {
    Chunk(Chunk),
    End(Result<(), StreamError>),
}

/// Chunks that are out, and who may have more.
struct Budget {
    state: Mutex<State>,
    /// Signalled when a chunk came back, the merge went on to the next layer, or all is over.
    changed: Condvar,
    chunks: usize,
}

struct State {
    /// Chunks that are out, over all layers.
    out: usize,
    /// Chunks that are out, for each layer in the order of the plan.
    of_layer: Vec<usize>,
    /// The layer being merged, in the order of the plan.
    current: usize,
    /// The next layer that a decoder should take.
    next: usize,
    /// Queues of the layers that no decoder has taken.
    queues: VecDeque<Sender<Message>>,
    /// Buffers to use again.
    free: Vec<Box<[u8]>>,
    stopped: bool,
}

impl Budget {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A decoder that panicked did so outside of the lock: no code under it can.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer for a layer, once there is room; None when all is over.
    fn acquire(&self, layer: usize) -> Option<Box<[u8]>> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            let right_of_way = layer == state.current && state.of_layer[layer] < RESERVE;
            if state.out < self.chunks || right_of_way {
                state.out += 1;
                state.of_layer[layer] += 1;
                let buffer = state.free.pop();
                drop(state);
                return Some(buffer.unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice()));
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn release(&self, layer: usize, buffer: Box<[u8]>) {
        let mut state = self.lock();
        state.out -= 1;
        state.of_layer[layer] -= 1;
        state.free.push(buffer);
        drop(state);
        self.changed.notify_all();
    }

    /// The next layer for a decoder, and its queue.
    fn take_layer(&self) -> Option<(usize, Sender<Message>)> {
        let mut state = self.lock();
        if state.stopped {
            return None;
        }
        let queue = state.queues.pop_front()?;
        let layer = state.next;
        state.next += 1;
        Some((layer, queue))
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }
}

/// Stops the decoders when the merge ends, however it does.
struct Stop<'a>(&'a Budget, &'a Cancel);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.1.cancel();
        self.0.stop();
    }
}

/// The layers of a plan, in its order.
pub struct Ahead<'a> {
    budget: &'a Budget,
    plan: &'a [Plan],
    progress: &'a dyn Progress,
    queues: std::vec::IntoIter<Receiver<Message>>,
    position: usize,
}

impl<'a> Ahead<'a> {
    /// Decodes the layers of `plan` while `body` takes them with [`Self::next_layer`].
    ///
    /// The flag of `task` must be the one that `open` gives to the source. It is set when `body` returns, so that decoders
    /// of layers that it did not take stop; hence a [`Cancel::child`] is wanted.
    pub fn run<T>(
        plan: &[Plan],
        settings: Settings,
        open: &Open<'_>,
        task: Task<'_>,
        body: impl FnOnce(&mut Ahead<'_>) -> T,
    ) -> T {
        let (senders, receivers): (VecDeque<_>, Vec<_>) = plan.iter().map(|_| unbounded()).unzip();
        let budget = Budget {
            state: Mutex::new(State {
                out: 0,
                of_layer: vec![0; plan.len()],
                current: 0,
                next: 0,
                queues: senders,
                free: Vec::new(),
                stopped: false,
            }),
            changed: Condvar::new(),
            chunks: (settings.budget / CHUNK).max(1),
        };
        let budget = &budget;
        let Task { progress, cancel } = task;
        std::thread::scope(|scope| {
            let stop = Stop(budget, cancel);
            for _ in 0..settings.decoders.clamp(1, plan.len().max(1)) {
                scope.spawn(move || {
                    while let Some((layer, queue)) = budget.take_layer() {
                        let worker = Worker {
                            budget,
                            layer,
                            plan: plan[layer],
                            settings,
                            cancel,
                        };
                        worker.run(scope, open, queue);
                    }
                });
            }
            let mut ahead = Ahead {
                budget,
                plan,
                progress,
                queues: receivers.into_iter(),
                position: 0,
            };
            let result = body(&mut ahead);
            drop(stop);
            result
        })
    }

    /// The next layer of the plan; None after the last.
    pub fn next_layer(&mut self) -> Option<LayerStream<'_>> {
        let queue = self.queues.next()?;
        let position = self.position;
        self.position += 1;
        self.budget.lock().current = position;
        self.budget.changed.notify_all();
        Some(LayerStream {
            budget: self.budget,
            layer: position,
            name: self.plan[position].name,
            progress: self.progress,
            queue,
            chunk: None,
            consumed: 0,
            ended: false,
            failed: false,
        })
    }
}

/// What a decoder knows of its layer.
#[derive(Clone, Copy)]
struct Worker<'a> {
    budget: &'a Budget,
    layer: usize,
    plan: Plan,
    settings: Settings,
    cancel: &'a Cancel,
}

impl<'a> Worker<'a> {
    fn run<'scope>(self, scope: &'scope Scope<'scope, '_>, open: &Open<'_>, queue: Sender<Message>)
    where
        'a: 'scope,
    {
        let mut verified = Verified {
            queue,
            expected: self.plan.diff_id,
            hasher: self.plan.diff_id.map(|_| Hasher::new()),
        };
        if self.settings.hash_apart && self.plan.diff_id.is_some() {
            let (sender, receiver) = unbounded();
            scope.spawn(move || {
                // Ends with the decoder, when all that it sent is hashed.
                for message in receiver {
                    if !verified.forward(message) {
                        break;
                    }
                }
            });
            self.decode(open, |message| sender.send(message).is_ok());
        } else {
            self.decode(open, |message| verified.forward(message));
        }
    }

    /// Decodes the layer chunk by chunk; `send` returns whether anyone still listens.
    fn decode(self, open: &Open<'_>, mut send: impl FnMut(Message) -> bool) {
        match self.decode_chunks(open, &mut send) {
            Ok(None) => {}
            Ok(Some(())) => {
                send(Message::End(Ok(())));
            }
            Err(error) => {
                send(Message::End(Err(error)));
            }
        }
    }

    /// None when nobody listens any more.
    fn decode_chunks(
        self,
        open: &Open<'_>,
        send: &mut impl FnMut(Message) -> bool,
    ) -> Result<Option<()>, StreamError> {
        self.cancel.check()?;
        let blob = open(self.plan.name.index)?;
        let mut decoder = Decoder::new(blob, self.settings.limits)?;
        let mut compressed = 0;
        loop {
            self.cancel.check()?;
            let Some(mut buffer) = self.budget.acquire(self.layer) else {
                return Ok(None);
            };
            let length = match decoder.fill(&mut buffer) {
                Ok(length) => length,
                Err(error) => {
                    self.budget.release(self.layer, buffer);
                    return Err(error.into());
                }
            };
            let total = decoder.compressed();
            let ended = length < buffer.len();
            if !send(Message::Chunk(Chunk {
                buffer,
                length,
                compressed: total - compressed,
            })) {
                return Ok(None);
            }
            compressed = total;
            if ended {
                return Ok(Some(()));
            }
        }
    }
}

/// Hands messages to the merge, and verifies the whole stream before it says that it has ended.
struct Verified {
    queue: Sender<Message>,
    expected: Option<Digest>,
    hasher: Option<Hasher>,
}

impl Verified {
    fn forward(&mut self, message: Message) -> bool {
        let message = match message {
            Message::Chunk(chunk) => {
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&chunk.buffer[..chunk.length]);
                }
                Message::Chunk(chunk)
            }
            Message::End(Ok(())) => Message::End(self.verify()),
            failed @ Message::End(Err(_)) => failed,
        };
        self.queue.send(message).is_ok()
    }

    fn verify(&mut self) -> Result<(), StreamError> {
        let (Some(expected), Some(hasher)) = (self.expected, self.hasher.take()) else {
            return Ok(());
        };
        let actual = hasher.finish();
        if actual == expected {
            Ok(())
        } else {
            Err(StreamError::DiffId { expected, actual })
        }
    }
}

/// The decoded stream of one layer. Tells of progress as it is read. Errors are [`StreamError`]s within an [`io::Error`].
pub struct LayerStream<'a> {
    budget: &'a Budget,
    layer: usize,
    name: LayerName,
    progress: &'a dyn Progress,
    queue: Receiver<Message>,
    chunk: Option<Chunk>,
    /// Bytes of the chunk that were consumed.
    consumed: usize,
    ended: bool,
    failed: bool,
}

impl LayerStream<'_> {
    /// Which layer it is.
    #[must_use]
    pub fn name(&self) -> LayerName {
        self.name
    }

    /// Reads to the end of the stream, so that all of it is verified. A failure that was met before is not told again.
    pub fn drain(&mut self) -> io::Result<()> {
        if self.failed {
            return Ok(());
        }
        loop {
            let length = self.fill_buf()?.len();
            if length == 0 {
                return Ok(());
            }
            self.consume(length);
        }
    }

    fn give_back(&mut self) {
        if let Some(chunk) = self.chunk.take() {
            self.budget.release(self.layer, chunk.buffer);
        }
        self.consumed = 0;
    }
}

impl BufRead for LayerStream<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while !self.ended
            && self
                .chunk
                .as_ref()
                .is_none_or(|chunk| self.consumed == chunk.length)
        {
            self.give_back();
            match self.queue.recv() {
                Ok(Message::Chunk(chunk)) => {
                    self.progress.event(Event::LayerMerged {
                        layer: self.name.index,
                        bytes: chunk.compressed,
                    });
                    self.chunk = Some(chunk);
                }
                Ok(Message::End(Ok(()))) => self.ended = true,
                Ok(Message::End(Err(error))) => {
                    self.failed = true;
                    return Err(io::Error::other(error));
                }
                Err(_) => return Err(io::Error::other(StreamError::Lost)),
            }
        }
        Ok(self
            .chunk
            .as_ref()
            .map_or(&[], |chunk| &chunk.buffer[self.consumed..chunk.length]))
    }

    fn consume(&mut self, length: usize) {
        let available = self.chunk.as_ref().map_or(0, |chunk| chunk.length) - self.consumed;
        self.consumed += length.min(available);
    }
}

impl Read for LayerStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let data = self.fill_buf()?;
        let length = data.len().min(buffer.len());
        buffer[..length].copy_from_slice(&data[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl Drop for LayerStream<'_> {
    fn drop(&mut self) {
        self.give_back();
        // What the merge did not want of a layer must not count against the next ones.
        for message in self.queue.try_iter() {
            if let Message::Chunk(chunk) = message {
                self.budget.release(self.layer, chunk.buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::progress::Silent;

    const SIZE: usize = 3 << 20;

    /// Counts the bytes that progress tells of.
    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Progress for Counted {
        fn event(&self, event: Event) {
            let Event::LayerMerged { bytes, .. } = event else {
                panic!("{event:?}");
            };
            self.0
                .fetch_add(usize::try_from(bytes).unwrap(), Ordering::Relaxed);
        }
    }

    /// A plain stream that begins like a tar stream and is different for every layer.
    fn stream(layer: usize) -> Vec<u8> {
        let mut stream = vec![0; super::super::BLOCK];
        stream.extend((0..SIZE).map(|at| (at / 7 + layer) as u8));
        stream
    }

    fn plan(count: usize) -> Vec<Plan> {
        (0..count)
            .rev()
            .map(|index| Plan {
                name: LayerName {
                    index,
                    digest: None,
                },
                diff_id: Some(Digest::of(&stream(index))),
            })
            .collect()
    }

    fn settings(decoders: usize, budget: usize, hash_apart: bool) -> Settings {
        Settings {
            decoders,
            budget,
            hash_apart,
            limits: Limits::default(),
        }
    }

    fn open<'a>(layer: usize) -> Result<Box<dyn Read + Send + 'a>, SourceError> {
        Ok(Box::new(Cursor::new(stream(layer))))
    }

    #[test]
    fn layers_come_in_order_whatever_the_budget() {
        for hash_apart in [false, true] {
            for (decoders, budget) in [(1, 0), (1, 1 << 30), (4, 0), (4, 1 << 20), (9, 1 << 30)] {
                let plan = plan(6);
                let read = Counted::default();
                Ahead::run(
                    &plan,
                    settings(decoders, budget, hash_apart),
                    &open,
                    Task {
                        progress: &read,
                        cancel: &Cancel::new(),
                    },
                    |ahead| {
                        for layer in (0..6).rev() {
                            let mut next = ahead.next_layer().unwrap();
                            assert_eq!(next.name().index, layer);
                            let mut content = Vec::new();
                            next.read_to_end(&mut content).unwrap();
                            assert!(content == stream(layer));
                            assert_eq!(read.0.swap(0, Ordering::Relaxed), content.len());
                        }
                        assert!(ahead.next_layer().is_none());
                    },
                );
            }
        }
    }

    #[test]
    fn the_budget_bounds_what_waits() {
        let open_layers = AtomicUsize::new(0);
        let read = AtomicUsize::new(0);
        struct Counting<'a>(Cursor<Vec<u8>>, &'a AtomicUsize);
        impl Read for Counting<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let length = self.0.read(buffer)?;
                self.1.fetch_add(length, Ordering::Relaxed);
                Ok(length)
            }
        }
        let counting = |layer| -> Result<Box<dyn Read + Send + '_>, SourceError> {
            open_layers.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(Counting(Cursor::new(stream(layer)), &read)))
        };
        let plan = plan(8);
        let budget = 1 << 20;
        Ahead::run(
            &plan,
            settings(4, budget, false),
            &counting,
            Task {
                progress: &Silent,
                cancel: &Cancel::new(),
            },
            |ahead| {
                let mut first = ahead.next_layer().unwrap();
                first.fill_buf().unwrap();
                std::thread::sleep(Duration::from_millis(200));
                assert!(open_layers.load(Ordering::Relaxed) <= 4);
                // Beyond the budget: the reserve, and what stands in the buffers between blobs and decoders.
                let most = budget + (RESERVE + 2 * 4) * CHUNK;
                assert!(read.load(Ordering::Relaxed) <= most);
            },
        );
    }

    #[test]
    fn a_wrong_diff_id_is_found_at_the_end() {
        for hash_apart in [false, true] {
            let mut plan = plan(2);
            plan[0].diff_id = Some(Digest::of(b"something else"));
            let error = Ahead::run(
                &plan,
                settings(2, 1 << 20, hash_apart),
                &open,
                Task {
                    progress: &Silent,
                    cancel: &Cancel::new(),
                },
                |ahead| ahead.next_layer().unwrap().drain(),
            );
            let error = error.unwrap_err().into_inner().unwrap();
            assert!(matches!(
                error.downcast_ref::<StreamError>(),
                Some(StreamError::DiffId { .. })
            ));
        }
    }

    #[test]
    fn an_early_end_stops_the_decoders() {
        struct Endless;
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                buffer.fill(0);
                Ok(buffer.len())
            }
        }
        let endless = |_| -> Result<Box<dyn Read + Send>, SourceError> { Ok(Box::new(Endless)) };
        let start = Instant::now();
        for hash_apart in [false, true] {
            Ahead::run(
                &plan(5),
                settings(3, 4 << 20, hash_apart),
                &endless,
                Task {
                    progress: &Silent,
                    cancel: &Cancel::new().child(),
                },
                |ahead| {
                    ahead.next_layer().unwrap().fill_buf().unwrap();
                },
            );
        }
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_cancelled_import_ends_with_an_error() {
        let cancel = Cancel::new();
        let child = cancel.child();
        cancel.cancel();
        let task = Task {
            progress: &Silent,
            cancel: &child,
        };
        let error = Ahead::run(&plan(1), settings(1, 0, false), &open, task, |ahead| {
            ahead.next_layer().unwrap().drain()
        });
        let error = error.unwrap_err().into_inner().unwrap();
        assert!(matches!(
            error.downcast_ref::<StreamError>(),
            Some(StreamError::Cancelled(_))
        ));
    }
}
