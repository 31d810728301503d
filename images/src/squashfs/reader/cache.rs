//! Decoded data blocks, bounded in bytes, each decoded once however many threads ask for it.
//!
//! Fragment blocks are what this is for: dozens of small files share one, and decoding it for each of them is what makes
//! simple squashfs readers slow. Who comes while a block is being decoded waits for it. Eviction is second chance (CLOCK):
//! a block that was asked for again since it was last considered stays. Buffers of evicted blocks are used again, since fresh
//! memory costs page faults about as long as a fifth of the decoding.

use std::collections::{HashMap, VecDeque};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::file::StoredBlock;
use super::{ReadError, Reader};

/// Buffers kept for the next block.
const SPARE_BUFFERS: usize = 8;

pub(super) struct BlockCache {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    slots: HashMap<StoredBlock, Arc<Slot>>,
    /// Every block that counts in `bytes`, the one to consider next at the front.
    clock: VecDeque<StoredBlock>,
    bytes: usize,
    spare: Vec<Vec<u8>>,
}

struct Slot {
    /// None: the block could not be decoded.
    content: OnceLock<Option<Vec<u8>>>,
    used: AtomicBool,
}

/// The plain content of a block; shares the memory of the cache.
#[derive(Clone)]
pub struct CachedBlock(Arc<Slot>);

impl Deref for CachedBlock {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self.0.content.get() {
            Some(Some(content)) => content,
            _ => &[],
        }
    }
}

impl BlockCache {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Forgets blocks until at most `limit` bytes are held.
    fn shrink(&mut self, limit: usize) {
        while self.bytes > limit {
            let Some(block) = self.clock.pop_front() else {
                return;
            };
            let Some(slot) = self.slots.get(&block) else {
                continue;
            };
            if slot.used.swap(false, Ordering::Relaxed) {
                self.clock.push_back(block);
                continue;
            }
            self.forget(&block);
        }
    }

    fn forget(&mut self, block: &StoredBlock) {
        let Some(slot) = self.slots.remove(block) else {
            return;
        };
        if let Some(Some(content)) = slot.content.get() {
            self.bytes -= content.capacity();
        }
        // Whoever still reads the block keeps its memory; else it serves the next one.
        let content = Arc::into_inner(slot).and_then(|slot| slot.content.into_inner().flatten());
        if let Some(content) = content
            && self.spare.len() < SPARE_BUFFERS
        {
            self.spare.push(content);
        }
    }
}

impl Reader {
    /// The plain content of a block, from the cache or decoded into it.
    pub fn cached(&self, block: &StoredBlock) -> Result<CachedBlock, ReadError> {
        let (slot, spare) = {
            let mut inner = self.cache.lock();
            match inner.slots.get(block) {
                Some(slot) => {
                    slot.used.store(true, Ordering::Relaxed);
                    (Arc::clone(slot), None)
                }
                None => {
                    let slot = Arc::new(Slot {
                        content: OnceLock::new(),
                        used: AtomicBool::new(false),
                    });
                    inner.slots.insert(*block, Arc::clone(&slot));
                    (slot, Some(inner.spare.pop().unwrap_or_default()))
                }
            }
        };
        let mut failure = None;
        let content = slot.content.get_or_init(|| {
            // Whoever inserted the slot need not be the first to get here.
            let mut content = spare.unwrap_or_default();
            match self.decode(block, &mut content) {
                Ok(()) => {
                    let mut inner = self.cache.lock();
                    inner.bytes += content.capacity();
                    inner.clock.push_back(*block);
                    Some(content)
                }
                Err(error) => {
                    failure = Some(error);
                    None
                }
            }
        });
        if content.is_some() {
            let mut inner = self.cache.lock();
            if inner.bytes > self.cache.limit {
                inner.shrink(self.cache.limit);
            }
            drop(inner);
            return Ok(CachedBlock(slot));
        }
        self.cache.lock().forget(block);
        match failure {
            Some(error) => Err(error),
            // Another thread has the error; get our own, or the block if the trouble was passing.
            None => {
                let mut content = Vec::new();
                self.decode(block, &mut content)?;
                Ok(CachedBlock(Arc::new(Slot {
                    content: OnceLock::from(Some(content)),
                    used: AtomicBool::new(false),
                })))
            }
        }
    }

    /// Whether a block is in the cache, or about to be.
    #[must_use]
    pub fn is_cached(&self, block: &StoredBlock) -> bool {
        self.cache.lock().slots.contains_key(block)
    }

    /// Drops a block from the cache: the caller knows that it will not be asked for soon.
    pub fn forget_cached(&self, block: &StoredBlock) {
        let mut inner = self.cache.lock();
        // A block that is being decoded is not yet counted, so it has to stay until it is.
        let decoded = inner
            .slots
            .get(block)
            .is_some_and(|slot| slot.content.get().is_some());
        if decoded {
            inner.forget(block);
        }
    }

    /// Bytes of memory that decoded blocks take now.
    #[must_use]
    pub fn cached_bytes(&self) -> usize {
        self.cache.lock().bytes
    }
}
