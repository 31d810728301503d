//! A blob on its way: which parts of it are fetched by whom, and what is here already.
//!
//! Parts arrive in any order. They are written to where they belong in the blob's file in the store, or, where there is no store, wait in
//! memory, in a window before the byte that the reader wants next. Whoever brings the bytes that everything waited for hashes them and what
//! has come behind them, so that the digest is that of the whole blob in its order, without a thread of its own. Readers get what is
//! hashed, and see the end only when the digest was right.
//!
//! The parts grow with the rate at which connections bring them, so that a request is a small part of the time that its answer takes, and
//! shrink towards the end of the blob, so that all connections end at about the same time. When nothing is left to begin, a
//! connection that has nothing to do takes over the end of a part that is slow.
//!
//! Before a blob for the store is fetched, it is claimed there: another process may be fetching it, and is waited for while other blobs are
//! fetched; what that process brings, or left when it died, is hashed like what comes from the registry.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::RegistryError;
use super::blob::Blob;
use super::http::READ_SIZE;
use crate::digest::Hasher;
use crate::progress::{Event, Progress};
use crate::source::SourceError;
use crate::store::{self, Holder, PendingBlob, Store, StoreError, Watch};

/// Bytes of the first part of a blob, before anything is known; smaller blobs are fetched by one request.
const FIRST_PART: u64 = 4 << 20;

/// Bytes of the smallest part for which a request is made.
const SMALLEST_PART: u64 = 1 << 20;

/// Bytes of the largest part.
const LARGEST_PART: u64 = 32 << 20;

/// How long a part should take at the rate of the parts before it, in parts of a second: 1/2 s.
const PARTS_PER_SECOND: u64 = 2;

/// Bytes that wait in memory for a reader, for each blob without a store.
const WINDOW: u64 = 16 << 20;

/// Bytes that a connection at least keeps of its part when another takes over the end of it: they may be on their way.
const KEPT: u64 = 128 << 10;

/// How long the rest of a part must be expected to take before another connection takes over the end of it.
const SLOW: Duration = Duration::from_secs(2);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A blob on its way.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) blob: Blob,
    pub(super) layer: usize,
    /// None: it is read from memory.
    store: Option<Arc<Store>>,
    state: Mutex<State>,
    changed: Condvar,
    /// A reader has asked for it.
    wanted: AtomicBool,
    /// Bytes that arrived and were not reported yet.
    unreported: AtomicU64,
    /// The blob is complete, which was not reported yet.
    complete: AtomicBool,
}

/// Whether the blob may be fetched.
#[derive(Debug, Clone, Copy)]
enum Entry {
    /// It has to be claimed in the store, not before this time.
    Outside(Instant),
    /// A thread claims it.
    Entering,
    /// It is ours.
    Inside,
}

#[derive(Debug)]
struct State {
    entry: Entry,
    /// What is known of the process that has the blob's lease.
    watch: Watch,
    /// Who is waited for, which was not reported yet.
    holder: Option<Holder>,
    /// Whether the server sends parts; None until it has answered.
    ranges: Option<bool>,
    /// The first part was begun.
    begun: bool,
    /// The first byte that no connection has been asked for.
    next: u64,
    /// What connections are fetching.
    parts: Vec<Part>,
    last_part: u64,
    /// What came before its turn, by its first byte.
    pieces: BTreeMap<u64, Piece>,
    /// Bytes from the first on that are here and hashed.
    hashed: u64,
    /// None while somebody hashes, and at the end.
    hasher: Option<Hasher>,
    pending: Option<PendingBlob>,
    file: Option<Arc<File>>,
    /// Hashed and in memory.
    ready: VecDeque<Vec<u8>>,
    /// Bytes that the reader of `ready` has taken.
    consumed: u64,
    outcome: Option<Result<(), Arc<SourceError>>>,
}

#[derive(Debug)]
enum Piece {
    /// So many bytes in the file.
    Stored(u64),
    InMemory(Vec<u8>),
}

/// What a connection fetches.
#[derive(Debug)]
struct Part {
    number: u64,
    first: u64,
    /// The next byte to come.
    position: u64,
    end: u64,
    since: Instant,
}

impl Part {
    /// How long the rest will take at its rate so far; None when it is too early to tell.
    fn rest(&self) -> Option<Duration> {
        let elapsed = self.since.elapsed();
        if elapsed < SLOW / 2 {
            return None;
        }
        let done = (self.position - self.first).max(1) as f64;
        let left = (self.end - self.position) as f64;
        Some(Duration::from_secs_f64(
            (elapsed.as_secs_f64() * left / done).min(1e6),
        ))
    }
}

/// A part that a connection should fetch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) number: u64,
    pub(super) from: u64,
    pub(super) end: u64,
}

/// What a reader of a file gets.
#[derive(Debug)]
pub(super) enum Available {
    /// Bytes of the file up to this one.
    UpTo(u64, Arc<File>),
    Bytes(Vec<u8>),
    /// The verified end.
    End,
}

impl Incoming {
    /// A blob that will be put into a store, or kept in memory for its reader.
    pub(super) fn new(blob: Blob, layer: usize, store: Option<Arc<Store>>) -> Self {
        let entry = match &store {
            Some(_) => Entry::Outside(Instant::now()),
            None => Entry::Inside,
        };
        Self {
            blob,
            layer,
            store,
            state: Mutex::new(State::new(entry)),
            changed: Condvar::new(),
            wanted: AtomicBool::new(false),
            unreported: AtomicU64::new(0),
            complete: AtomicBool::new(false),
        }
    }

    /// Notes that a reader waits for it.
    pub(super) fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    pub(super) fn is_in_memory(&self) -> bool {
        self.store.is_none()
    }

    pub(super) fn is_over(&self) -> bool {
        lock(&self.state).outcome.is_some()
    }

    /// About how many connections can work on it.
    pub(super) fn width(&self) -> usize {
        let parts = self.blob.size.div_ceil(FIRST_PART).max(1);
        usize::try_from(parts).unwrap_or(usize::MAX)
    }

    /// When it has to be claimed in the store, at the earliest; None when it is, or is being claimed.
    pub(super) fn entry_time(&self) -> Option<Instant> {
        let state = lock(&self.state);
        match state.entry {
            Entry::Outside(time) if state.outcome.is_none() => Some(time),
            _ => None,
        }
    }

    /// Lets the caller claim the blob in the store with [`Self::enter`], if it is time; false otherwise.
    pub(super) fn begin_entering(&self) -> bool {
        let mut state = lock(&self.state);
        match state.entry {
            Entry::Outside(time) if state.outcome.is_none() && time <= Instant::now() => {
                state.entry = Entry::Entering;
                true
            }
            _ => false,
        }
    }

    /// Claims the blob in the store: becomes the one of all processes that fetches it, takes what another has fetched meanwhile, or learns
    /// who is fetching it, to come back later.
    pub(super) fn enter(&self) -> Result<(), SourceError> {
        let Some(store) = &self.store else {
            return Ok(());
        };
        let (digest, size) = (self.blob.digest, self.blob.size);
        let mut watch = std::mem::take(&mut lock(&self.state).watch);
        let claimed = store.claim_blob(&digest, size, &mut watch)?;
        let mut state = lock(&self.state);
        if state.outcome.is_some() {
            return Ok(());
        }
        let (pending, file, present) = match claimed {
            store::Claim::Busy(holder) => {
                state.entry = Entry::Outside(Instant::now() + watch.pause());
                state.watch = watch;
                state.holder = Some(holder);
                return Ok(());
            }
            store::Claim::Ready(file) => (None, file, size),
            store::Claim::Mine(pending) => {
                let (file, resumed) = (pending.handle()?, pending.resumed());
                (Some(pending), file, resumed)
            }
        };
        let is_ready = pending.is_none();
        state.entry = Entry::Inside;
        state.file = Some(Arc::new(file));
        state.pending = pending;
        state.next = present;
        state.add_stored(0, present);
        if is_ready || present == size && size > 0 {
            // Nothing is left to fetch.
            state.begun = true;
            state.ranges = Some(true);
        } else if present == 0 {
            return Ok(());
        }
        self.unreported.fetch_add(present, Ordering::Relaxed);
        // Nothing of it is at hand, so all of it is read back.
        self.hash(state, u64::MAX, &[]).inspect_err(|_| {
            if is_ready {
                // The damage is what is reported; whether it could be removed is the lesser matter.
                let _ = store.discard_blob(&digest);
            }
        })
    }

    /// The next part to fetch, if there is one now. `rate` is what a connection brings in a second, 0 when it is not known.
    pub(super) fn claim(&self, connections: usize, rate: u64) -> Option<Claim> {
        let size = self.blob.size;
        let mut state = lock(&self.state);
        if state.outcome.is_some() || !matches!(state.entry, Entry::Inside) {
            return None;
        }
        let end = if !state.begun {
            state.begun = true;
            size.min(state.next + FIRST_PART)
        } else if state.ranges == Some(true) {
            let left = size - state.next;
            let room = match self.store {
                Some(_) => left,
                None => (state.consumed + WINDOW).saturating_sub(state.next),
            };
            let share = left.min(match self.store {
                Some(_) => left,
                None => WINDOW,
            }) / connections.max(1) as u64;
            let by_rate = match rate {
                0 => FIRST_PART,
                rate => rate / PARTS_PER_SECOND,
            };
            let length = by_rate.min(share).clamp(SMALLEST_PART, LARGEST_PART);
            // No tiny part at the end.
            let length = if left < length + SMALLEST_PART / 2 {
                left
            } else {
                length
            };
            if left == 0 || room < length.min(SMALLEST_PART) {
                return None;
            }
            state.next + length.min(room)
        } else {
            return None;
        };
        let from = state.next;
        state.next = end;
        Some(state.begin(from, end))
    }

    /// The end of a part that is slow, if there is one: as much as lets both be done at the same time, where the taker brings `rate` bytes
    /// in a second.
    pub(super) fn take_over(&self, rate: u64) -> Option<Claim> {
        let mut state = lock(&self.state);
        if state.outcome.is_some() || state.ranges != Some(true) {
            return None;
        }
        let slow = |part: &&mut Part| {
            part.end - part.position >= 4 * KEPT && part.rest().is_some_and(|rest| rest > SLOW)
        };
        let part = state
            .parts
            .iter_mut()
            .filter(slow)
            .max_by_key(|part| part.rest())?;
        let (left, end) = (part.end - part.position, part.end);
        let own_rate = left / part.rest()?.as_secs().max(1);
        let kept = u128::from(left) * u128::from(own_rate) / u128::from((own_rate + rate).max(1));
        let kept = u64::try_from(kept).map_or(left / 2, |kept| kept.clamp(KEPT, left / 2));
        let middle = part.position + kept;
        part.end = middle;
        Some(state.begin(middle, end))
    }

    /// Notes what the server has answered to the first request; returns where the part ends now.
    pub(super) fn answered(&self, claim: Claim, whole: bool) -> u64 {
        let size = self.blob.size;
        let mut state = lock(&self.state);
        if state.ranges.is_none() {
            state.ranges = Some(!whole);
            if whole {
                // There is nothing for others to do.
                state.next = size;
                if let Some(part) = state.part(claim.number) {
                    part.end = size;
                }
            }
        }
        state.part(claim.number).map_or(claim.end, |part| part.end)
    }

    /// Takes bytes of a part, which begin at `position`; returns where the part ends now, which may be before the bytes do.
    pub(super) fn arrive(
        &self,
        claim: Claim,
        position: u64,
        bytes: &[u8],
    ) -> Result<u64, SourceError> {
        if let Some(store) = &self.store {
            let file = self.file()?;
            file.write_all_at(bytes, position)
                .map_err(|source| StoreError::Write {
                    path: store.blob_path(&self.blob.digest),
                    source,
                })?;
        }
        let mut state = lock(&self.state);
        if self.store.is_none() {
            // Only a server that sends all at once gets so far ahead of the reader.
            state = self
                .changed
                .wait_while(state, |state| {
                    position >= state.consumed + WINDOW && state.outcome.is_none()
                })
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.outcome.is_some() {
            return Err(RegistryError::Stopped.into());
        }
        let Some(part) = state.part(claim.number) else {
            return Err(RegistryError::Stopped.into());
        };
        let end = part.end;
        let length = (bytes.len() as u64).min(end.saturating_sub(position));
        part.position = position + length;
        // Lossless: it is not longer than the slice.
        let bytes = &bytes[..length as usize];
        match self.store {
            Some(_) => state.add_stored(position, length),
            None => {
                state
                    .pieces
                    .insert(position, Piece::InMemory(bytes.to_vec()));
            }
        }
        self.unreported.fetch_add(length, Ordering::Relaxed);
        self.hash(state, position, bytes)?;
        Ok(end)
    }

    /// Forgets a part that was fetched to its end. Returns what its connection brought in a second.
    pub(super) fn release(&self, claim: Claim) -> Option<u64> {
        let mut state = lock(&self.state);
        let place = state
            .parts
            .iter()
            .position(|part| part.number == claim.number)?;
        let part = state.parts.swap_remove(place);
        let micros = part.since.elapsed().as_micros().max(1);
        let rate = u128::from(part.position - part.first) * 1_000_000 / micros;
        u64::try_from(rate).ok().filter(|rate| *rate > 0)
    }

    /// Hashes what is next, if it is here and nobody else does. `bytes`, which begin at `position`, are in the file too.
    fn hash<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        position: u64,
        bytes: &[u8],
    ) -> Result<(), SourceError> {
        let Some(mut hasher) = state.hasher.take() else {
            // Who hashes looks again before they stop.
            return Ok(());
        };
        let mut buffer = Vec::new();
        while let Some(piece) = {
            let next = state.hashed;
            state.pieces.remove(&next)
        } {
            let file = state.file.clone();
            let from = state.hashed;
            drop(state);
            let (end, ready) = match piece {
                Piece::InMemory(bytes) => {
                    hasher.update(&bytes);
                    (from + bytes.len() as u64, Some(bytes))
                }
                Piece::Stored(length) => {
                    let end = from + length;
                    let mut at = from;
                    while at < end {
                        if at == position {
                            hasher.update(bytes);
                            at += bytes.len() as u64;
                            continue;
                        }
                        let until = if at < position {
                            end.min(position)
                        } else {
                            end
                        };
                        let count = (until - at).min(READ_SIZE as u64) as usize;
                        buffer.resize(READ_SIZE, 0);
                        self.read_back(file.as_deref(), at, &mut buffer[..count])?;
                        hasher.update(&buffer[..count]);
                        at += count as u64;
                    }
                    (end, None)
                }
            };
            state = lock(&self.state);
            state.hashed = end;
            if let Some(pending) = &state.pending {
                pending.advance(end)?;
            }
            state.ready.extend(ready);
            self.changed.notify_all();
        }
        if state.hashed < self.blob.size {
            state.hasher = Some(hasher);
            return Ok(());
        }
        self.verify(state, hasher)
    }

    fn read_back(
        &self,
        file: Option<&File>,
        position: u64,
        buffer: &mut [u8],
    ) -> Result<(), SourceError> {
        let read = match file {
            Some(file) => file.read_exact_at(buffer, position),
            None => Err(std::io::ErrorKind::NotFound.into()),
        };
        read.map_err(|source| {
            let path = self
                .store
                .as_ref()
                .map(|store| store.blob_path(&self.blob.digest))
                .unwrap_or_default();
            StoreError::Read { path, source }.into()
        })
    }

    /// Compares the digest of the whole blob, and puts the blob into the store.
    fn verify(&self, mut state: MutexGuard<'_, State>, hasher: Hasher) -> Result<(), SourceError> {
        let pending = state.pending.take();
        drop(state);
        let actual = hasher.finish();
        if actual != self.blob.digest {
            // First the reason, then the end of the file: who reads it at this moment should be told the reason.
            self.finish(Err(SourceError::WrongDigest {
                what: self.blob.name(),
                expected: self.blob.digest,
                actual,
            }));
            if let Some(mut pending) = pending {
                // Nobody should go on with it.
                pending.restart()?;
            }
            return Err(RegistryError::Stopped.into());
        }
        if let Some(pending) = pending {
            pending.commit()?;
        }
        self.complete.store(true, Ordering::Relaxed);
        self.finish(Ok(()));
        Ok(())
    }

    /// An empty blob has nothing to fetch, but may have the wrong digest all the same.
    pub(super) fn complete_empty(&self) -> Result<(), SourceError> {
        self.hash(lock(&self.state), 0, &[])
    }

    /// The file to write to.
    fn file(&self) -> Result<Arc<File>, SourceError> {
        let file = lock(&self.state).file.clone();
        file.ok_or_else(|| RegistryError::Stopped.into())
    }

    /// Ends it, for all who fetch and read; the first outcome stays.
    pub(super) fn finish(&self, outcome: Result<(), SourceError>) {
        let mut state = lock(&self.state);
        if state.outcome.is_none() {
            state.outcome = Some(outcome.map_err(Arc::new));
        }
        if state.outcome.as_ref().is_some_and(Result::is_err) {
            state.pending = None;
            state.pieces.clear();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until there is something behind `position`, for at most `patience`; None when there is not.
    ///
    /// # Errors
    ///
    /// Why the blob cannot be had.
    pub(super) fn wait(
        &self,
        position: u64,
        patience: Duration,
    ) -> Result<Option<Available>, Arc<SourceError>> {
        let state = lock(&self.state);
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, patience, |state| {
                state.hashed <= position && state.outcome.is_none()
            })
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = &state.outcome {
            return Err(Arc::clone(error));
        }
        if let Some(bytes) = state.ready.pop_front() {
            state.consumed += bytes.len() as u64;
            drop(state);
            self.changed.notify_all();
            return Ok(Some(Available::Bytes(bytes)));
        }
        if state.hashed > position
            && let Some(file) = &state.file
        {
            let file = Arc::clone(file);
            return Ok(Some(Available::UpTo(state.hashed, file)));
        }
        Ok(state.outcome.is_some().then_some(Available::End))
    }

    /// Tells what has happened since it was last told.
    pub(super) fn report(&self, progress: &dyn Progress) {
        let layer = self.layer;
        if let Some(holder) = lock(&self.state).holder.take() {
            let layer = Some(layer);
            progress.event(Event::Waiting { layer, holder });
        }
        match self.unreported.swap(0, Ordering::Relaxed) {
            0 => {}
            bytes => progress.event(Event::LayerFetched { layer, bytes }),
        }
        if self.complete.swap(false, Ordering::Relaxed) {
            progress.event(Event::LayerComplete { layer });
        }
    }
}

impl State {
    fn new(entry: Entry) -> Self {
        Self {
            entry,
            watch: Watch::default(),
            holder: None,
            ranges: None,
            begun: false,
            next: 0,
            parts: Vec::new(),
            last_part: 0,
            pieces: BTreeMap::new(),
            hashed: 0,
            hasher: Some(Hasher::new()),
            pending: None,
            file: None,
            ready: VecDeque::new(),
            consumed: 0,
            outcome: None,
        }
    }

    fn begin(&mut self, from: u64, end: u64) -> Claim {
        self.last_part += 1;
        let number = self.last_part;
        self.parts.push(Part {
            number,
            first: from,
            position: from,
            end,
            since: Instant::now(),
        });
        Claim { number, from, end }
    }

    fn part(&mut self, number: u64) -> Option<&mut Part> {
        self.parts.iter_mut().find(|part| part.number == number)
    }

    fn add_stored(&mut self, position: u64, length: u64) {
        if length == 0 {
            return;
        }
        if let Some((first, Piece::Stored(known))) = self.pieces.range_mut(..position).next_back()
            && *first + *known == position
        {
            *known += length;
            return;
        }
        self.pieces.insert(position, Piece::Stored(length));
    }
}

#[cfg(test)]
mod tests;
