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
    entries: HashMap<StoredBlock, Entry>,
    /// The blocks that count in `bytes`, each once, the one to consider next at the front.
    clock: VecDeque<StoredBlock>,
    bytes: usize,
    spare: Vec<Vec<u8>>,
}

struct Entry {
    slot: Arc<Slot>,
    /// Bytes that count for this block; 0 while it is being decoded.
    counted: usize,
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
            let used = self
                .entries
                .get(&block)
                .is_some_and(|entry| entry.slot.used.swap(false, Ordering::Relaxed));
            if used {
                self.clock.push_back(block);
            } else {
                self.forget(&block);
            }
        }
    }

    fn forget(&mut self, block: &StoredBlock) {
        let Some(entry) = self.entries.remove(block) else {
            return;
        };
        self.bytes -= entry.counted;
        // Whoever still reads the block keeps its memory; else it serves the next one.
        let slot = Arc::into_inner(entry.slot);
        if let Some(content) = slot.and_then(|slot| slot.content.into_inner().flatten())
            && self.spare.len() < SPARE_BUFFERS
        {
            self.spare.push(content);
        }
    }

    /// The entry of a block, if it is still the one with this slot.
    fn same(&mut self, block: &StoredBlock, slot: &Arc<Slot>) -> Option<&mut Entry> {
        self.entries
            .get_mut(block)
            .filter(|entry| Arc::ptr_eq(&entry.slot, slot))
    }
}

impl Reader {
    /// The plain content of a block, from the cache or decoded into it.
    pub fn cached(&self, block: &StoredBlock) -> Result<CachedBlock, ReadError> {
        let (slot, mut spare) = {
            let mut inner = self.cache.lock();
            match inner.entries.get(block) {
                Some(Entry { slot, .. }) => {
                    slot.used.store(true, Ordering::Relaxed);
                    (Arc::clone(slot), None)
                }
                None => {
                    let slot = Arc::new(Slot {
                        content: OnceLock::new(),
                        used: AtomicBool::new(false),
                    });
                    let entry = Entry {
                        slot: Arc::clone(&slot),
                        counted: 0,
                    };
                    inner.entries.insert(*block, entry);
                    (slot, inner.spare.pop())
                }
            }
        };
        // Who inserted the slot need not be the first to get here; who is not first waits for who is.
        let mut outcome = None;
        let content = slot.content.get_or_init(|| {
            let mut content = spare.take().unwrap_or_default();
            let result = self.decode(block, &mut content);
            let content = result.is_ok().then_some(content);
            outcome = Some(result);
            content
        });
        match (content, outcome) {
            (Some(content), outcome) => {
                if outcome.is_some() {
                    let counted = content.capacity();
                    let mut inner = self.cache.lock();
                    if let Some(entry) = inner.same(block, &slot) {
                        entry.counted = counted;
                        inner.bytes += counted;
                        inner.clock.push_back(*block);
                        inner.shrink(self.cache.limit);
                    }
                }
                Ok(CachedBlock(slot))
            }
            (None, Some(Err(error))) => {
                let mut inner = self.cache.lock();
                if inner.same(block, &slot).is_some() {
                    inner.forget(block);
                }
                Err(error)
            }
            // Another thread has the error; get our own, or the block if the trouble was passing.
            (None, _) => {
                let mut content = Vec::new();
                self.decode(block, &mut content)?;
                Ok(CachedBlock(Arc::new(Slot {
                    content: OnceLock::from(Some(content)),
                    used: AtomicBool::new(false),
                })))
            }
        }
    }

    /// Whether a block is in the cache, or being decoded into it.
    #[must_use]
    pub fn is_cached(&self, block: &StoredBlock) -> bool {
        self.cache.lock().entries.contains_key(block)
    }

    /// Drops a block from the cache: the caller knows that it will not be asked for soon. A block that is being decoded stays.
    pub fn forget_cached(&self, block: &StoredBlock) {
        let mut inner = self.cache.lock();
        if inner
            .entries
            .get(block)
            .is_some_and(|entry| entry.counted > 0)
        {
            inner.forget(block);
            // Blocks are usually dropped soon after they were decoded, so it is near the end.
            if let Some(at) = inner.clock.iter().rposition(|counted| counted == block) {
                inner.clock.remove(at);
            }
        }
    }

    /// Drops blocks from the cache until they take at most `bytes`, and the memory that was kept for the next ones.
    pub fn shrink_cache(&self, bytes: usize) {
        let mut inner = self.cache.lock();
        inner.shrink(bytes);
        inner.spare = Vec::new();
    }

    /// Bytes of memory that the cache's decoded blocks take now.
    #[must_use]
    pub fn cached_bytes(&self) -> usize {
        self.cache.lock().bytes
    }
}
