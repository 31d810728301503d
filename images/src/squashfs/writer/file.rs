//! The content of one file on its way into blocks.

use std::fs::File;
use std::io::Read;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use super::pipeline::{Pipeline, Slot, Work};
use super::{Content, Tail, WriteError, Writer};
use crate::tree::ContentId;

/// Takes the content of one file, begun by [`Writer::begin_file`]. One that is dropped unfinished makes the image unfinishable.
pub struct FileWriter<'a> {
    writer: &'a mut Writer,
    /// Announced size in bytes.
    size: u64,
    /// Bytes still to come that belong in blocks.
    in_blocks: u64,
    /// Bytes still to come that belong in a fragment, behind the others.
    in_tail: u64,
    /// The block being filled; or the tail, when the current fragment has no room for it.
    buffer: Option<Slot>,
    /// Size of the tail in bytes.
    tail: usize,
    /// Whether [`Writer::fragment`] is where the tail is collected, at its end.
    tail_in_fragment: bool,
    /// What becomes of blocks.
    work: Work,
}

impl<'a> FileWriter<'a> {
    /// A file of `size` bytes, of which the last `tail` belong in a fragment; `tail` is smaller than a block.
    pub(super) fn new(writer: &'a mut Writer, size: u64, tail: u64) -> Self {
        let block_size = writer.options.block_size as usize;
        let tail_size = tail as usize;
        let tail_in_fragment = (writer.fragment.as_ref())
            .is_some_and(|fragment| fragment.input.len() + tail_size <= block_size);
        Self {
            writer,
            size,
            in_blocks: size - tail,
            in_tail: tail,
            buffer: None,
            tail: tail_size,
            tail_in_fragment,
            work: Work::Block,
        }
    }

    /// Stores all further blocks of the file uncompressed: larger, but read without delay.
    pub fn store_plain(&mut self) {
        self.work = Work::Plain;
    }

    /// Takes the next piece of content.
    pub fn write(&mut self, mut piece: &[u8]) -> Result<(), WriteError> {
        self.check_room(piece.len() as u64)?;
        while !piece.is_empty() {
            let (buffer, room) = self.buffer()?;
            let (now, later) = piece.split_at(room.min(piece.len()));
            buffer.extend_from_slice(now);
            piece = later;
            self.advance(now.len())?;
        }
        Ok(())
    }

    /// Takes the next `length` bytes of content from a reader, straight into the blocks.
    pub fn read_from(&mut self, reader: &mut dyn Read, length: u64) -> Result<(), WriteError> {
        self.check_room(length)?;
        let mut left = length;
        while left > 0 {
            let (buffer, room) = self.buffer()?;
            let want = left.min(room as u64);
            let got = reader
                .take(want)
                .read_to_end(buffer)
                .map_err(WriteError::Read)?;
            left -= got as u64;
            self.advance(got)?;
            if (got as u64) < want {
                return Err(WriteError::ContentShort {
                    announced: self.size,
                    missing: self.left(),
                });
            }
        }
        Ok(())
    }

    /// Takes the `length` bytes at `offset` in a file, straight into the blocks.
    pub fn read_from_file(
        &mut self,
        file: &File,
        mut offset: u64,
        length: u64,
    ) -> Result<(), WriteError> {
        self.check_room(length)?;
        let mut left = length;
        while left > 0 {
            let (buffer, room) = self.buffer()?;
            let start = buffer.len();
            // There may be space for more than belongs here: what is read into it is dropped.
            let got = match rustix::io::pread(file, spare_capacity(buffer), offset) {
                Ok(got) => got
                    .min(room)
                    .min(usize::try_from(left).unwrap_or(usize::MAX)),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(WriteError::Read(error.into())),
            };
            buffer.truncate(start + got);
            if got == 0 {
                return Err(WriteError::ContentShort {
                    announced: self.size,
                    missing: self.left(),
                });
            }
            left -= got as u64;
            offset += got as u64;
            self.advance(got)?;
        }
        Ok(())
    }

    /// Whether the next `length` bytes are exactly the next block, so that [`Self::copy_block`] may bring them.
    #[must_use]
    pub fn takes_block(&self, length: u32) -> bool {
        let next = self.in_blocks.min(self.writer.options.block_size.into());
        self.buffer.is_none() && length > 0 && u64::from(length) == next
    }

    /// Takes the next `length` bytes as another image stores them, where [`Self::takes_block`] and [`Writer::stores_like`] say
    /// that this is possible. `fill` puts the stored bytes into an empty buffer: fewer than `length` if they are
    /// compressed, else exactly as many. They are not looked at.
    pub fn copy_block<E: From<WriteError>>(
        &mut self,
        length: u32,
        compressed: bool,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.takes_block(length) {
            return Err(WriteError::CopiedBlock.into());
        }
        self.writer.cancel.check().map_err(WriteError::from)?;
        let mut slot = self.writer.slot()?;
        fill(&mut slot.input)?;
        let size = slot.input.len() as u64;
        let possible = match compressed {
            true => size > 0 && size < u64::from(length),
            false => size == u64::from(length),
        };
        if !possible {
            return Err(WriteError::CopiedBlock.into());
        }
        let work = match compressed {
            true => Work::Compressed,
            false => Work::Uncompressed,
        };
        self.writer.submit(|pipeline| pipeline.block(slot, work))?;
        self.in_blocks -= u64::from(length);
        Ok(())
    }

    /// Takes `length` bytes of zeros. Whole blocks of them cost nothing.
    pub fn write_hole(&mut self, length: u64) -> Result<(), WriteError> {
        self.check_room(length)?;
        let block_size = u64::from(self.writer.options.block_size);
        let mut left = length;
        while left > 0 {
            let whole = left.min(self.in_blocks) / block_size;
            if self.buffer.is_none() && whole > 0 {
                self.writer.cancel.check()?;
                self.writer.submit(|pipeline| pipeline.holes(whole))?;
                self.in_blocks -= whole * block_size;
                left -= whole * block_size;
                continue;
            }
            let (buffer, room) = self.buffer()?;
            // At most a block.
            let now = left.min(room as u64) as usize;
            buffer.resize(buffer.len() + now, 0);
            left -= now as u64;
            self.advance(now)?;
        }
        Ok(())
    }

    /// Ends the file.
    pub fn finish(mut self) -> Result<ContentId, WriteError> {
        if self.left() > 0 {
            return Err(WriteError::ContentShort {
                announced: self.size,
                missing: self.left(),
            });
        }
        let run = if self.size > self.tail as u64 {
            self.writer.submit(Pipeline::end_run)?;
            let run = self.writer.runs;
            // No more runs than contents, which are counted.
            self.writer.runs += 1;
            Some(run)
        } else {
            None
        };
        let tail = if self.tail > 0 {
            Some(self.finish_tail()?)
        } else {
            None
        };
        let writer = self.writer;
        // Counted by `begin_file`.
        let id = ContentId(writer.contents.len() as u32);
        writer.contents.push(Content {
            size: self.size,
            run,
            tail,
        });
        writer.content_bytes = writer.content_bytes.saturating_add(self.size);
        writer.open = false;
        Ok(id)
    }

    /// Finds the tail in an earlier fragment, or makes it part of the current one.
    fn finish_tail(&mut self) -> Result<Tail, WriteError> {
        let writer = &mut *self.writer;
        let (hash, offset) = match (&self.buffer, &mut writer.fragment) {
            (Some(buffer), _) => (blake3::hash(&buffer.input), 0),
            (None, Some(fragment)) => {
                let offset = fragment.input.len() - self.tail;
                (blake3::hash(&fragment.input[offset..]), offset)
            }
            (None, None) => return Err(WriteError::Stopped),
        };
        if let Some(earlier) = writer.tails.get(&hash).copied() {
            writer.duplicate_tails += 1;
            match (self.buffer.take(), &mut writer.fragment) {
                (Some(buffer), _) => writer.spare = Some(buffer),
                (None, Some(fragment)) => fragment.input.truncate(offset),
                (None, None) => {}
            }
            return Ok(earlier);
        }
        if let Some(buffer) = self.buffer.take()
            && let Some(full) = writer.fragment.replace(buffer)
        {
            writer.submit(|pipeline| pipeline.block(full, Work::Fragment))?;
            writer.fragments += 1;
        }
        let tail = Tail {
            fragment: writer.fragments,
            // Smaller than a block.
            offset: offset as u32,
        };
        writer.tails.insert(hash, tail);
        Ok(tail)
    }

    /// Where the next bytes go, and how many may go there at once.
    fn buffer(&mut self) -> Result<(&mut Vec<u8>, usize), WriteError> {
        let block_size = self.writer.options.block_size as usize;
        if self.in_blocks == 0 && self.tail_in_fragment {
            let fragment = self.writer.fragment.as_mut().ok_or(WriteError::Stopped)?;
            return Ok((&mut fragment.input, self.in_tail as usize));
        }
        let slot = match &mut self.buffer {
            Some(slot) => slot,
            empty => empty.insert(self.writer.slot()?),
        };
        let left = if self.in_blocks > 0 {
            self.in_blocks
        } else {
            self.in_tail
        };
        let room = left.min((block_size - slot.input.len()) as u64) as usize;
        slot.input.reserve_exact(block_size - slot.input.len());
        Ok((&mut slot.input, room))
    }

    /// Takes note of `count` bytes put into [`Self::buffer`].
    fn advance(&mut self, count: usize) -> Result<(), WriteError> {
        if self.in_blocks == 0 {
            self.in_tail -= count as u64;
            return Ok(());
        }
        self.in_blocks -= count as u64;
        let block_size = self.writer.options.block_size as usize;
        let complete = |slot: &mut Slot| slot.input.len() == block_size || self.in_blocks == 0;
        if let Some(slot) = self.buffer.take_if(complete) {
            self.writer.cancel.check()?;
            self.writer
                .submit(|pipeline| pipeline.block(slot, self.work))?;
        }
        Ok(())
    }

    /// Bytes still to come.
    fn left(&self) -> u64 {
        self.in_blocks + self.in_tail
    }

    fn check_room(&self, length: u64) -> Result<(), WriteError> {
        if length > self.left() {
            return Err(WriteError::ContentLong {
                announced: self.size,
            });
        }
        Ok(())
    }
}
