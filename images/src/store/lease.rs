//! One writer at a time, without locks of the file system.
//!
//! flock(2) and fcntl(2) locks are refused on some mounts (Lustre without `flock`, NFS without a lock daemon) and work for one node alone on
//! others (Lustre with `localflock`). So the writer of something is elected with a file, the lease, beside what it will write:
//!
//! - **Election.** The lease is written under a name of its own and linked (link(2)) to the name that everybody wants: the link succeeds for one
//!   alone, and whoever reads that name finds the whole content. On NFS a link whose answer was lost reports a failure though it was made,
//!   so the number of links is what counts (open(2), `O_EXCL`). Where there are no hard links, `O_EXCL` alone decides.
//! - **Heartbeat.** While it works, the holder rewrites the lease every few seconds, with how far it is. It reads it first: a holder that finds the
//!   lease to be another's has been taken for dead (stopped, cut off from the file system) and gives up.
//! - **Takeover.** A lease is dead when its process is (same machine, same PID namespace: at once), or else when its heartbeat has stopped for
//!   [`Terms::timeout`]: by the clock of the file system, read from a file made for this, or by our own clock while we watched. No clocks
//!   of two machines are compared.
//! - **Breaking.** Two that find the same lease dead must not both act: the second would remove the lease of whoever came after the first. So a
//!   dead lease is removed only by the holder of its guard, a lease named after the very lease that is to be removed, who looks again
//!   before it acts. Guards are held for a few system calls; one whose holder died is broken the same way.
//!
//! If all this fails (a holder is taken for dead, and works on), two processes do the same work, and nothing worse: what they make appears at
//! once and whole, is verified, and is the same.

use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::heartbeat::Heartbeat;
use crate::digest::Digest;
use crate::output::temporary;
use crate::owner::{Life, Owner};

/// Size of a lease in bytes: the same for each, so that one is rewritten by one write.
const SIZE: usize = 512;
/// Leases, guards of leases, guards of guards: more deaths in a row within microseconds are left to the next try.
const MAX_DEPTH: u32 = 3;
/// How often an election is tried before somebody else must be at it.
const MAX_TRIES: u32 = 8;
/// Pauses between two looks at a lease: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(300);
/// Progress that is worth a heartbeat of its own, in bytes.
const NOTEWORTHY: u64 = 8 << 20;
/// Least time between two heartbeats because of progress.
const BUSY_INTERVAL: Duration = Duration::from_millis(200);

/// When a holder counts as dead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// How long a heartbeat may stay away.
    pub(super) timeout: Duration,
}

impl Terms {
    /// Time between two heartbeats.
    pub(super) fn interval(self) -> Duration {
        (self.timeout / 4).min(Duration::from_secs(2))
    }
}

/// The content of a lease: JSON, filled up with blanks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaseRecord {
    owner: Owner,
    /// Tells the leases of one process apart.
    serial: u64,
    /// How much is done, and of how much; bytes, 0 of 0 where it is not known.
    pub(super) done: u64,
    total: u64,
}

impl LeaseRecord {
    fn new(owner: &Owner, total: u64) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        Self {
            owner: owner.clone(),
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            done: 0,
            total,
        }
    }

    /// Whether it is the same lease, however far its holder is.
    fn is_same(&self, other: &Self) -> bool {
        self.owner == other.owner && self.serial == other.serial
    }

    fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut text = serde_json::to_vec(self)?;
        text.resize(text.len().max(SIZE - 1), b' ');
        text.push(b'\n');
        Ok(text)
    }
}

/// A lease as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// None while it is being written where there are no hard links, or when it is damaged.
    pub(super) record: Option<LeaseRecord>,
    inode: u64,
    /// Time of the last heartbeat by the file system's clock, in nanoseconds.
    modified: i128,
}

impl Seen {
    fn is_same(&self, other: &Self) -> bool {
        match (&self.record, &other.record) {
            (Some(one), Some(other)) => one.is_same(other),
            (None, None) => self.inode == other.inode,
            _ => false,
        }
    }

    /// What its guard is named after.
    fn identity(&self) -> String {
        let text = match &self.record {
            Some(record) => format!("{:?} {}", record.owner, record.serial),
            None => format!("{}", self.inode),
        };
        Digest::of(text.as_bytes()).hex()[..16].to_owned()
    }
}

/// Who holds a lease that we want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process and machine; None where it does not say.
    process: Option<(i32, String)>,
    is_here: bool,
    /// Bytes that are done, of `total`.
    pub done: u64,
    /// 0 where it is not known.
    pub total: u64,
}

impl Holder {
    pub(super) fn of(seen: &Seen, here: &Owner) -> Self {
        let record = seen.record.as_ref();
        Self {
            process: record.map(|record| (record.owner.pid, record.owner.host.clone())),
            is_here: record.is_some_and(|record| record.owner.is_visible_to(here)),
            done: record.map_or(0, |record| record.done),
            total: record.map_or(0, |record| record.total),
        }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.process {
            None => write!(f, "another process")?,
            Some((pid, _)) if self.is_here => write!(f, "process {pid}")?,
            Some((pid, host)) => write!(f, "process {pid} on {host}")?,
        }
        match self.done.saturating_mul(100).checked_div(self.total) {
            Some(percent) if self.done > 0 => write!(f, ", {} % done", percent.min(100)),
            _ => Ok(()),
        }
    }
}

/// What a waiter remembers of a lease from one look to the next.
#[derive(Debug)]
pub struct Watch {
    /// What it was like, since when.
    seen: Option<(Seen, Instant)>,
    /// The file system's clock was asked about it.
    asked: bool,
    pause: Duration,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            seen: None,
            asked: false,
            pause: FIRST_PAUSE,
        }
    }
}

impl Watch {
    /// How long to wait before the next look: longer each time, and never quite as long as others do.
    pub fn pause(&mut self) -> Duration {
        let whole = self.pause;
        self.pause = (whole * 3 / 2).min(LONGEST_PAUSE);
        let bits = RandomState::new().hash_one(Instant::now()) & 0xff;
        whole.mul_f64(0.75 + 0.5 * bits as f64 / 255.0)
    }

    /// Whether somebody's lease was seen.
    pub(super) fn has_waited(&self) -> bool {
        self.seen.is_some()
    }

    /// Whether the lease at `path` is dead.
    fn is_dead(&mut self, path: &Path, seen: &Seen, here: &Owner, terms: Terms) -> bool {
        if self.seen.as_ref().is_none_or(|(before, _)| before != seen) {
            self.seen = Some((seen.clone(), Instant::now()));
            self.asked = false;
        }
        let life = seen.record.as_ref().map(|record| record.owner.life(here));
        if life == Some(Life::Dead) {
            return true;
        }
        let quiet = self
            .seen
            .as_ref()
            .is_some_and(|(_, since)| since.elapsed() > terms.timeout);
        if quiet || self.asked || life == Some(Life::Alive) {
            return quiet;
        }
        self.asked = true;
        is_silent(path, seen, terms)
    }
}

/// Whether a lease is dead by what one look tells.
pub(super) fn is_dead(path: &Path, seen: &Seen, terms: Terms) -> bool {
    let life = seen
        .record
        .as_ref()
        .map(|record| record.owner.life(&Owner::current()));
    life == Some(Life::Dead) || is_silent(path, seen, terms)
}

/// Whether the heartbeat of a lease has stopped by the clock of its file system.
fn is_silent(path: &Path, seen: &Seen, terms: Terms) -> bool {
    let Ok(now) = file_system_time(path) else {
        return false;
    };
    now.saturating_sub(seen.modified)
        > i128::try_from(terms.timeout.as_nanos()).unwrap_or(i128::MAX)
}

/// The time of the file system that holds `path`, in nanoseconds: that of a file which is written now.
fn file_system_time(path: &Path) -> io::Result<i128> {
    let probe = Temporary::write(path, b"now")?;
    let metadata = std::fs::metadata(&probe.path)?;
    Ok(modified(&metadata))
}

fn modified(metadata: &std::fs::Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
}

/// A small file beside a lease that goes with this value.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// Writes a file named after `beside`.
    fn write(beside: &Path, content: &[u8]) -> io::Result<Self> {
        let name = beside.file_name().unwrap_or_default();
        let path = beside.with_file_name(temporary::name(name));
        let this = Self { path };
        // Closing it is what makes it visible to other clients of NFS, with its size and time.
        let file = create_new(&this.path)?;
        file.write_all_at(content, 0)?;
        Ok(this)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn create_new(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::from_raw_mode(0o666);
    Ok(File::from(rustix::fs::open(path, flags, mode)?))
}

/// Opens a lease; None when there is none.
fn open(path: &Path, access: OFlags) -> io::Result<Option<File>> {
    let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    for _ in 0..3 {
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => return Ok(Some(File::from(file))),
            Err(Errno::NOENT) => return Ok(None),
            // Removed on another machine while the name was still known here.
            Err(Errno::STALE) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(None)
}

/// Looks at a lease; None when there is none.
pub(super) fn look(path: &Path) -> io::Result<Option<Seen>> {
    let Some(file) = open(path, OFlags::RDONLY)? else {
        return Ok(None);
    };
    match examine(&file) {
        Ok(seen) => Ok(Some(seen)),
        Err(error) if error.raw_os_error() == Some(Errno::STALE.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

fn examine(file: &File) -> io::Result<Seen> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = Vec::with_capacity(SIZE);
    file.take(4 * SIZE as u64).read_to_end(&mut text)?;
    Ok(Seen {
        record: serde_json::from_slice(&text).ok(),
        inode: metadata.ino(),
        modified: modified(&metadata),
    })
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Tries to put a lease at `path`, where none was; false when another was faster.
fn elect(path: &Path, record: &LeaseRecord) -> io::Result<bool> {
    let content = record.to_bytes()?;
    let candidate = Temporary::write(path, &content)?;
    let linked = rustix::fs::linkat(CWD, &candidate.path, CWD, path, AtFlags::empty());
    match linked {
        Ok(()) => Ok(true),
        // The answer may have been lost where the link was not.
        Err(_) if std::fs::metadata(&candidate.path)?.nlink() == 2 => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => {
            match create_new(path) {
                Ok(file) => file.write_all_at(&content, 0).map(|()| true),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                // Given back by another in the moment of our attempt, as some FUSE file systems tell it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(error) => Err(error),
            }
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Removes a dead lease, once and by one process alone; `on_death` is called before, by that process. Does nothing when somebody else is at it.
pub(super) fn break_dead(
    path: &Path,
    dead: &Seen,
    terms: Terms,
    on_death: &dyn Fn(&Seen) -> io::Result<()>,
) -> io::Result<()> {
    break_at_depth(path, dead, terms, on_death, 0)
}

fn break_at_depth(
    path: &Path,
    dead: &Seen,
    terms: Terms,
    on_death: &dyn Fn(&Seen) -> io::Result<()>,
    depth: u32,
) -> io::Result<()> {
    let here = Owner::current();
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // A guard of a guard is named after its own subject alone: names must not grow.
    if depth > 0
        && let Some(stem) = path.file_stem()
    {
        name = stem.to_owned();
    }
    name.push(format!(".{}", dead.identity()));
    let guard = path.with_file_name(name);
    if !elect(&guard, &LeaseRecord::new(&here, 0))? {
        if depth < MAX_DEPTH
            && let Some(other) = look(&guard)?
            && is_dead(&guard, &other, terms)
        {
            return break_at_depth(&guard, &other, terms, &|_| Ok(()), depth + 1);
        }
        return Ok(());
    }
    let removed = match look(path) {
        Ok(Some(now)) if now.is_same(dead) => on_death(&now).and_then(|()| remove(path)),
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    removed.and(remove(&guard))
}

/// What came of wanting a lease.
#[derive(Debug)]
pub(super) enum Attempt {
    /// It is ours.
    Held(Lease),
    /// It is another's.
    Busy(Holder),
}

/// Tries to get the lease at `path`, to do work of `total` bytes. `on_death` is called with a dead lease before it is removed.
pub(super) fn attempt(
    path: &Path,
    total: u64,
    terms: Terms,
    watch: &mut Watch,
    heartbeat: &Arc<Heartbeat>,
    on_death: &dyn Fn(&Seen) -> io::Result<()>,
) -> io::Result<Attempt> {
    let here = Owner::current();
    let mut holder = Holder {
        process: None,
        is_here: false,
        done: 0,
        total: 0,
    };
    for _ in 0..MAX_TRIES {
        match look(path)? {
            Some(seen) => {
                holder = Holder::of(&seen, &here);
                if !watch.is_dead(path, &seen, &here, terms) {
                    break;
                }
                break_dead(path, &seen, terms, on_death)?;
            }
            None => {
                let record = LeaseRecord::new(&here, total);
                if elect(path, &record)? {
                    let held = Arc::new(Held::new(path, record, terms));
                    heartbeat.add(&held);
                    return Ok(Attempt::Held(Lease {
                        held,
                        heartbeat: Arc::clone(heartbeat),
                    }));
                }
            }
        }
    }
    Ok(Attempt::Busy(holder))
}

/// A lease that is ours, until it is dropped or taken over.
#[derive(Debug)]
pub(super) struct Lease {
    held: Arc<Held>,
    heartbeat: Arc<Heartbeat>,
}

impl Lease {
    /// Notes how much is done, in bytes; false when the lease is no longer ours.
    pub(super) fn advance(&self, done: u64) -> bool {
        self.held.done.store(done, Ordering::Relaxed);
        let written = self.held.written.load(Ordering::Relaxed);
        let is_noteworthy = done.saturating_sub(written) >= NOTEWORTHY;
        self.held.is_ours(is_noteworthy)
    }

    /// Changes how much there is to do, in bytes.
    pub(super) fn set_total(&self, total: u64) {
        self.held.total.store(total, Ordering::Relaxed);
    }

    /// Looks whether the lease is still ours.
    pub(super) fn confirm(&self) -> bool {
        self.held.beat();
        !self.held.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.heartbeat.remove(&self.held);
        self.held.release();
    }
}

/// A lease as the heartbeat sees it.
#[derive(Debug)]
pub(super) struct Held {
    path: PathBuf,
    record: LeaseRecord,
    terms: Terms,
    done: AtomicU64,
    total: AtomicU64,
    /// What was last written of `done`.
    written: AtomicU64,
    lost: AtomicBool,
    /// When the lease was last known to be ours; None once it was given back.
    confirmed: Mutex<Option<Instant>>,
}

impl Held {
    fn new(path: &Path, record: LeaseRecord, terms: Terms) -> Self {
        Self {
            path: path.to_owned(),
            terms,
            done: AtomicU64::new(0),
            total: AtomicU64::new(record.total),
            written: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            confirmed: Mutex::new(Some(Instant::now())),
            record,
        }
    }

    pub(super) fn interval(&self) -> Duration {
        self.terms.interval()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.confirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was ours a moment ago; looks when that is not known, since this process may have been stopped for a while, and when there
    /// is something to tell.
    fn is_ours(&self, is_noteworthy: bool) -> bool {
        let age = self.lock().map(|at| at.elapsed());
        let most = if is_noteworthy {
            BUSY_INTERVAL
        } else {
            self.terms.timeout / 2
        };
        if age.is_none_or(|age| age >= most) {
            self.beat();
        }
        !self.lost.load(Ordering::Relaxed)
    }

    /// Shows that we live, unless the lease is no longer ours.
    pub(super) fn beat(&self) {
        let mut confirmed = self.lock();
        if confirmed.is_none() || self.lost.load(Ordering::Relaxed) {
            return;
        }
        let Ok(found) = open(&self.path, OFlags::RDWR) else {
            // The file system does not answer as it should, which says nothing of the lease.
            return;
        };
        let Some(file) = found.filter(|file| self.is_in(file)) else {
            self.lost.store(true, Ordering::Relaxed);
            return;
        };
        let done = self.done.load(Ordering::Relaxed);
        let record = LeaseRecord {
            done,
            total: self.total.load(Ordering::Relaxed),
            ..self.record.clone()
        };
        let written = record
            .to_bytes()
            .and_then(|content| file.write_all_at(&content, 0));
        if written.is_ok() {
            self.written.store(done, Ordering::Relaxed);
            *confirmed = Some(Instant::now());
        }
    }

    fn is_in(&self, file: &File) -> bool {
        let found = examine(file).ok().and_then(|seen| seen.record);
        found.is_some_and(|found| found.is_same(&self.record))
    }

    /// Gives the lease back.
    fn release(&self) {
        let mut confirmed = self.lock();
        if confirmed.take().is_none() {
            return;
        }
        if let Ok(Some(file)) = open(&self.path, OFlags::RDONLY)
            && self.is_in(&file)
        {
            // What cannot be removed is found dead by others, in time.
            let _ = remove(&self.path);
        }
    }
}

#[cfg(test)]
mod tests;
