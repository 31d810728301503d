//! From blocks in submission order to bytes in the file, in the same order, with the compression in between spread over threads.
//!
//! ```text
//!   caller's thread --jobs--> compressor threads --a channel for each slot--.
//!        |  '--------------------order of the image--------------------> appender thread --> file
//!        '<----------------------------free slots------------------------------'
//! ```
//!
//! A [`Slot`] is the input and output buffer of one block. There is a fixed number of them, taken before a place in the order is, so
//! memory is bounded and the block that the appender waits for always has what it needs: no deadlock. The appender takes
//! the orders one by one and waits for the slot that each one names; what the image looks like therefore depends on the
//! caller's orders alone, never on which thread was quicker.
//!
//! A run is the stored blocks of one file, contiguous in the image. Its blocks are compressed, hashed and appended before
//! the appender knows whether the same run exists already; if so it steps back to where the run began, and the next one
//! overwrites it. Equal runs are found by BLAKE3 over the sizes and hashes of the blocks as stored, which costs less than hashing the
//! content, and on the compressors' threads.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::encoder::{self, Encoder};
use super::syncer::Syncer;
use super::{Options, WriteError};
use crate::squashfs::format::DATA_UNCOMPRESSED;

/// Bytes that the buffers of all slots together may have, unless the threads need more to run at all.
const SLOT_BUDGET: usize = 128 << 20;
/// Slots beyond two for each compressor: the caller holds up to three, the appender one.
const SPARE_SLOTS: usize = 8;
/// Orders for which no slot is needed, that may wait for the appender.
const SPARE_ORDERS: usize = 256;

/// The buffers of one block on its way.
pub(super) struct Slot {
    /// Content; the caller appends at most the block size.
    pub(super) input: Vec<u8>,
    /// Room for what a compressor makes of it.
    output: Vec<u8>,
    /// How the block is stored.
    outcome: Outcome,
    /// BLAKE3 of the stored bytes; only for blocks of runs.
    hash: [u8; blake3::OUT_LEN],
    /// The channel that the appender listens at for this slot, and its other end.
    done: Sender<Slot>,
    ready: Receiver<Slot>,
}

/// How a block is stored.
enum Outcome {
    /// So many bytes of the output buffer.
    Compressed(usize),
    /// The input buffer.
    Raw,
    /// The input buffer, which came compressed.
    Copied,
    /// Not at all, being zero.
    Hole,
    /// It could not be compressed.
    Failed(io::Error),
}

/// What a compressor is to do with a slot.
struct Job {
    slot: Slot,
    work: Work,
}

/// What a slot holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// A block of a run.
    Block,
    /// A block of a run that is not to be compressed.
    Plain,
    /// A block of a run as another image has it, compressed.
    Compressed,
    /// A block of a run as another image has it, not compressed.
    Uncompressed,
    /// A fragment block, which is neither a hole nor looked for.
    Fragment,
    /// A fragment block that is not to be compressed.
    PlainFragment,
}

/// The next thing in the image.
enum Order {
    /// A block of the current run comes out of this channel.
    Block(Receiver<Slot>),
    /// So many blocks of zeros in the current run.
    Holes(u64),
    /// The current run ends.
    EndRun,
    /// A fragment block comes out of this channel.
    Fragment(Receiver<Slot>),
}

/// The stored blocks of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Offset of the first block in the image, in bytes.
    pub(super) start: u64,
    /// Position of its first block in [`Appended::words`].
    first: usize,
    /// Number of blocks.
    count: usize,
    /// How many of them are holes.
    pub(super) holes: u64,
}

/// What was appended.
#[derive(Debug)]
pub(super) struct Appended {
    /// The file.
    pub(super) file: File,
    /// Where the next byte belongs, in bytes.
    pub(super) position: u64,
    /// Every run in order of submission.
    pub(super) runs: Vec<Run>,
    /// Start and size on disk of every fragment block.
    pub(super) fragments: Vec<(u64, u32)>,
    /// Runs that were equal to an earlier one.
    pub(super) duplicate_runs: u64,
    /// Sizes on disk of the blocks of all runs.
    words: Vec<u32>,
    /// Sends to the disk what was appended; to be ended last.
    pub(super) syncer: Syncer,
}

impl Appended {
    /// Sizes on disk of the blocks of a run, zero for holes.
    pub(super) fn words(&self, run: &Run) -> &[u32] {
        &self.words[run.first..run.first + run.count]
    }
}

/// The threads and the channels to them.
pub(super) struct Pipeline {
    jobs: Sender<Job>,
    orders: Sender<Order>,
    free: Receiver<Slot>,
    abort: Arc<AtomicBool>,
    compressors: Vec<JoinHandle<()>>,
    appender: JoinHandle<Result<Appended, WriteError>>,
}

/// The pipeline's threads are gone; [`Pipeline::finish`] says why.
pub(super) struct Gone;

impl Pipeline {
    /// Starts the threads; the first block goes to `position`.
    pub(super) fn start(file: File, options: &Options, position: u64) -> Result<Self, WriteError> {
        let block_size = options.block_size as usize;
        let output_size = encoder::output_size(options.compression, block_size);
        let threads = options.threads.max(1);
        let affordable = SLOT_BUDGET / (block_size + output_size);
        let slots = (2 * threads + SPARE_SLOTS).min(affordable.max(threads + SPARE_SLOTS));

        let (jobs, jobs_in) = bounded::<Job>(slots);
        let (orders, orders_in) = bounded(slots + SPARE_ORDERS);
        let (freed, free) = bounded(slots);
        for _ in 0..slots {
            let (done, ready) = bounded(1);
            // The channel has room for every slot.
            let _ = freed.send(Slot {
                input: Vec::new(),
                output: Vec::new(),
                outcome: Outcome::Raw,
                hash: [0; blake3::OUT_LEN],
                done,
                ready,
            });
        }
        let abort = Arc::new(AtomicBool::new(false));

        let mut compressors = Vec::with_capacity(threads);
        for number in 0..threads {
            let jobs = jobs_in.clone();
            let abort = Arc::clone(&abort);
            let mut encoder = Encoder::new(options.compression, options.block_size)
                .map_err(WriteError::Compress)?;
            compressors.push(spawn(&format!("compress-{number}"), move || {
                for mut job in jobs {
                    if abort.load(Ordering::Relaxed) {
                        break;
                    }
                    job.slot.process(&mut encoder, output_size, job.work);
                    let done = job.slot.done.clone();
                    // Fails only when the appender has ended with an error.
                    let _ = done.send(job.slot);
                }
            })?);
        }
        let appender = {
            let abort = Arc::clone(&abort);
            let appender = Appender::new(file, position);
            spawn("append", move || appender.run(&orders_in, &freed, &abort))?
        };
        Ok(Self {
            jobs,
            orders,
            free,
            abort,
            compressors,
            appender,
        })
    }

    /// An empty slot, as soon as there is one.
    pub(super) fn slot(&self) -> Result<Slot, Gone> {
        let mut slot = self.free.recv().map_err(|_| Gone)?;
        slot.input.clear();
        Ok(slot)
    }

    /// Appends a block to the current run; or a fragment block, while there is none.
    pub(super) fn block(&self, slot: Slot, work: Work) -> Result<(), Gone> {
        let ready = slot.ready.clone();
        self.order(match work {
            Work::Fragment | Work::PlainFragment => Order::Fragment(ready),
            Work::Block | Work::Plain | Work::Compressed | Work::Uncompressed => {
                Order::Block(ready)
            }
        })?;
        self.jobs.send(Job { slot, work }).map_err(|_| Gone)
    }

    /// Appends blocks of zeros to the current run.
    pub(super) fn holes(&self, count: u64) -> Result<(), Gone> {
        self.order(Order::Holes(count))
    }

    /// Ends the current run.
    pub(super) fn end_run(&self) -> Result<(), Gone> {
        self.order(Order::EndRun)
    }

    /// Waits for everything to be appended.
    pub(super) fn finish(self) -> Result<Appended, WriteError> {
        let Self {
            jobs,
            orders,
            free,
            compressors,
            appender,
            abort,
        } = self;
        drop((jobs, orders));
        let appended = join(appender);
        if appended.is_err() {
            // Nobody waits for what is still to be compressed.
            abort.store(true, Ordering::Relaxed);
        }
        drop(free);
        for compressor in compressors {
            join(compressor);
        }
        appended
    }

    /// Stops without finishing, and waits for the threads, so that nothing touches the file any more.
    pub(super) fn abort(self) {
        self.abort.store(true, Ordering::Relaxed);
        // Whatever stopped it, nobody wants to know any more.
        let _ = self.finish();
    }

    fn order(&self, order: Order) -> Result<(), Gone> {
        self.orders.send(order).map_err(|_| Gone)
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, WriteError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(WriteError::Spawn)
}

/// A panic of a thread is a bug, and goes on here.
fn join<T>(thread: JoinHandle<T>) -> T {
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

impl Slot {
    fn process(&mut self, encoder: &mut Encoder, output_size: usize, work: Work) {
        self.outcome = match work {
            Work::Compressed => Outcome::Copied,
            Work::Uncompressed | Work::PlainFragment => Outcome::Raw,
            Work::Block | Work::Plain if is_zero(&self.input) => Outcome::Hole,
            Work::Plain => Outcome::Raw,
            Work::Block | Work::Fragment => {
                self.output.resize(output_size, 0);
                match encoder.compress(&self.input, &mut self.output) {
                    Ok(Some(size)) => Outcome::Compressed(size),
                    Ok(None) => Outcome::Raw,
                    Err(error) => Outcome::Failed(error),
                }
            }
        };
        if !matches!(work, Work::Fragment | Work::PlainFragment) {
            self.hash = *blake3::hash(self.stored()).as_bytes();
        }
    }

    fn stored(&self) -> &[u8] {
        match self.outcome {
            Outcome::Compressed(size) => &self.output[..size],
            Outcome::Raw | Outcome::Copied => &self.input,
            Outcome::Hole | Outcome::Failed(_) => &[],
        }
    }

    /// The size on disk as a block list or the fragment table has it.
    fn word(&self) -> u32 {
        // Blocks have at most 2^20 bytes.
        let size = self.stored().len() as u32;
        match self.outcome {
            Outcome::Raw => size | DATA_UNCOMPRESSED,
            _ => size,
        }
    }
}

/// Whether every byte is zero. Most content shows in its first bytes that it is not.
fn is_zero(content: &[u8]) -> bool {
    content
        .chunks(1024)
        .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// The thread that owns the file.
struct Appender {
    appended: Appended,
    /// Runs by the hash over their blocks' sizes and hashes: position in `appended.runs`.
    seen: HashMap<[u8; blake3::OUT_LEN], usize>,
    /// The current run.
    run: Run,
    run_hash: blake3::Hasher,
}

impl Appender {
    fn new(file: File, position: u64) -> Self {
        Self {
            appended: Appended {
                syncer: Syncer::new(),
                file,
                position,
                runs: Vec::new(),
                fragments: Vec::new(),
                duplicate_runs: 0,
                words: Vec::new(),
            },
            seen: HashMap::new(),
            run: Run {
                start: position,
                first: 0,
                count: 0,
                holes: 0,
            },
            run_hash: blake3::Hasher::new(),
        }
    }

    fn run(
        mut self,
        orders: &Receiver<Order>,
        freed: &Sender<Slot>,
        abort: &AtomicBool,
    ) -> Result<Appended, WriteError> {
        for order in orders {
            if abort.load(Ordering::Relaxed) {
                return Err(WriteError::Stopped);
            }
            match order {
                Order::Block(ready) => {
                    let slot = self.append(&ready)?;
                    self.push(slot.word(), &slot.hash);
                    // Fails only when the caller has gone, who will then close the orders too.
                    let _ = freed.send(slot);
                }
                Order::Holes(count) => {
                    for _ in 0..count {
                        self.push(0, &[0; blake3::OUT_LEN]);
                    }
                }
                Order::EndRun => self.end_run(),
                Order::Fragment(ready) => {
                    let start = self.appended.position;
                    let slot = self.append(&ready)?;
                    self.appended.fragments.push((start, slot.word()));
                    self.start_run();
                    let _ = freed.send(slot);
                }
            }
        }
        Ok(self.appended)
    }

    /// Waits for a block and writes what of it is stored.
    fn append(&mut self, ready: &Receiver<Slot>) -> Result<Slot, WriteError> {
        // The other end goes away only with a compressor that was told to stop.
        let mut slot = ready.recv().map_err(|_| WriteError::Stopped)?;
        if let Outcome::Failed(error) = &mut slot.outcome {
            let error = std::mem::replace(error, io::ErrorKind::Other.into());
            return Err(WriteError::Compress(error));
        }
        let appended = &mut self.appended;
        let stored = slot.stored();
        appended
            .file
            .write_all_at(stored, appended.position)
            .map_err(WriteError::Write)?;
        appended.position += stored.len() as u64;
        appended.syncer.wrote(stored.len(), &appended.file)?;
        Ok(slot)
    }

    fn push(&mut self, word: u32, hash: &[u8; blake3::OUT_LEN]) {
        self.appended.words.push(word);
        self.run.count += 1;
        self.run_hash.update(&word.to_le_bytes());
        if word == 0 {
            self.run.holes += 1;
        } else {
            self.run_hash.update(hash);
        }
    }

    fn end_run(&mut self) {
        let hash = *self.run_hash.finalize().as_bytes();
        let number = self.appended.runs.len();
        let first_seen = *self.seen.entry(hash).or_insert(number);
        if first_seen == number {
            self.appended.runs.push(self.run);
        } else {
            self.appended.position = self.run.start;
            self.appended.words.truncate(self.run.first);
            self.appended.runs.push(self.appended.runs[first_seen]);
            self.appended.duplicate_runs += 1;
        }
        self.start_run();
    }

    fn start_run(&mut self) {
        self.run = Run {
            start: self.appended.position,
            first: self.appended.words.len(),
            count: 0,
            holes: 0,
        };
        self.run_hash.reset();
    }
}
