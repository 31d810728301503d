//! What a program's start reads, decoded before anybody asks for it, and given to the kernel unasked.
//!
//! The way to `main` leads through a few files of which almost every page is wanted: the program, its dynamic linker, its libraries. Asked for one READ
//! at a time, they cost a round trip for each page fault, some thirty in a start of a few milliseconds. Here they are decoded while the
//! starter makes its namespaces, and what is decoded goes into the page cache as soon as the kernel knows the file
//! (`FUSE_NOTIFY_STORE` in the kernel's `include/uapi/linux/fuse.h`), on this thread, while the starter's goes on.
//!
//! A page that is being read just then is locked by its READ, and storing it waits for the answer: so this may never be done by a
//! thread that answers.

use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cista_images::squashfs::reader::{Extent, Inode};
use rustix::io::Errno;
use rustix::thread::sched_yield;
use zerocopy::IntoBytes as _;

use super::ahead::{self, Job};
use super::connection::Connection;
use super::content::{self, OpenFile};
use super::image::Image;
use super::protocol::{NotifyStore, OutHeader, notification};

/// Most blocks that are decoded before the first READ: 8 MiB of the usual ones.
const MAX_FORESEEN: u64 = 64;
/// Most nodes that are noted as known.
const MAX_KNOWN: usize = 256;
/// After a LOOKUP is answered, it takes the kernel a moment to make its inode.
const MOMENT: Duration = Duration::from_micros(20);

/// Nodes that the kernel has looked up.
#[derive(Default)]
pub(super) struct Known {
    nodes: Mutex<Vec<u64>>,
    more: Condvar,
}

impl Known {
    pub(super) fn add(&self, nodeid: u64) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.len() < MAX_KNOWN {
            nodes.push(nodeid);
            drop(nodes);
            self.more.notify_one();
        }
    }

    fn contains(&self, nodeid: u64) -> bool {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.contains(&nodeid)
    }

    /// Waits until there are more than `count` or the time is over; how many there are.
    fn wait(&self, count: usize, time: Duration) -> usize {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        self.more
            .wait_timeout_while(nodes, time, |nodes| nodes.len() <= count)
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .len()
    }
}

/// A file that will be read soon.
struct Foreseen {
    nodeid: u64,
    file: Arc<OpenFile>,
    /// Its extents that are to be decoded, from the first on.
    count: u64,
    /// Of them, those that are decoded.
    decoded: u64,
    /// Of them, those that the kernel has, or will not take.
    stored: u64,
}

/// The files that will be read soon, in the order of their reading.
pub(super) struct Early<'a> {
    image: &'a Image,
    files: Vec<Foreseen>,
}

impl<'a> Early<'a> {
    pub(super) fn new(image: &'a Image, files: Vec<Inode>) -> Self {
        let mut left = MAX_FORESEEN;
        let files = files.into_iter().filter_map(|inode| {
            let nodeid = image.nodes.id(inode.reference);
            let file = image.files.open(nodeid, &image.reader, || Ok(inode)).ok()?;
            let count = file.map.extent_count().min(left);
            left -= count;
            Some(Foreseen {
                nodeid,
                file,
                count,
                decoded: 0,
                stored: 0,
            })
        });
        Self {
            files: files.collect(),
            image,
        }
    }

    /// Decodes the files and gives them to the kernel as it comes to know them; `patience` is for those that it does not know when all is
    /// decoded.
    pub(super) fn provide(
        mut self,
        kernel: &OnceLock<Connection>,
        known: &Known,
        patience: Duration,
    ) {
        for index in 0..self.files.len() {
            while self.files[index].decoded < self.files[index].count {
                if self.image.ahead.is_closed() {
                    return;
                }
                let foreseen = &mut self.files[index];
                let job = Job {
                    file: Arc::clone(&foreseen.file),
                    number: foreseen.decoded,
                };
                ahead::decode(&self.image.reader, &job);
                foreseen.decoded += 1;
                self.store(kernel, known);
                // Whoever was put behind us on this processor has more urgent things to do.
                sched_yield();
            }
        }
        let end = Instant::now() + patience;
        let mut seen = 0;
        while self.store(kernel, known) && !self.image.ahead.is_closed() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let is_late = self.pending().any(|file| known.contains(file.nodeid));
            seen = known.wait(seen, if is_late { left.min(MOMENT) } else { left });
        }
    }

    fn pending(&self) -> impl Iterator<Item = &Foreseen> {
        self.files.iter().filter(|file| file.stored < file.decoded)
    }

    /// Stores what is decoded of the files that the kernel knows. Whether something is left.
    fn store(&mut self, kernel: &OnceLock<Connection>, known: &Known) -> bool {
        let mut is_left = false;
        for foreseen in &mut self.files {
            while foreseen.stored < foreseen.decoded {
                let connection = kernel.get().filter(|_| known.contains(foreseen.nodeid));
                let stored = match connection {
                    Some(connection) => store(self.image, connection, foreseen),
                    None => Err(Errno::NOENT),
                };
                match stored {
                    Ok(()) => foreseen.stored += 1,
                    // There is no inode yet.
                    Err(Errno::NOENT) => {
                        is_left = true;
                        break;
                    }
                    // It will ask.
                    Err(_) => foreseen.stored = foreseen.count,
                }
            }
        }
        is_left
    }
}

/// Gives the kernel the next extent of a file.
fn store(image: &Image, connection: &Connection, foreseen: &Foreseen) -> Result<(), Errno> {
    let (file, number) = (&foreseen.file, foreseen.stored);
    if file.is_handed_out(number) {
        return Ok(());
    }
    let extent = image
        .reader
        .extent(&file.map, number)
        .map_err(|_| Errno::IO)?;
    let length = extent.length();
    let whole = 0..length as usize;
    let piece = content::piece(&image.reader, &extent, whole).map_err(|_| Errno::IO)?;
    let store = NotifyStore {
        nodeid: foreseen.nodeid,
        offset: number * u64::from(file.map.block_size()),
        size: length,
        padding: 0,
    };
    let header = OutHeader {
        len: u32::try_from(size_of::<OutHeader>() + size_of::<NotifyStore>())
            .map_err(|_| Errno::TOOBIG)?
            .saturating_add(length),
        error: notification::STORE,
        unique: 0,
    };
    let start = [header.as_bytes(), store.as_bytes()].concat();
    connection.send(&content::slices(&start, std::slice::from_ref(&piece)))?;
    drop(piece);
    if file.hand_out(number, length as usize, length)
        && let Extent::Block(block) = &extent
    {
        image.reader.forget_cached(block);
    }
    Ok(())
}
