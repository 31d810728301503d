//! From requests to answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, Scope};

use cista_images::squashfs::reader::{Extent, ReadError};
use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use super::ahead::Job;
use super::connection::{Connection, Request, RequestBuffer, answer_header};
use super::image::{Image, STACK};
use super::protocol::{GetxattrIn, ReadIn, opcode};
use super::{Options, ServeError, content, listing, nodes};

/// Blocks to decode ahead, behind a READ that follows `streak` others without a gap.
///
/// Where nothing is known, two: in mapped libraries the next block is wanted in two of three cases. A file that is read from one
/// end to the other deserves more.
fn ahead_count(streak: u32) -> u64 {
    u64::from(streak.saturating_mul(2).clamp(2, 8))
}

/// A mounted image.
pub(super) struct Server<'a> {
    image: &'a Image,
    connection: &'a Connection,
    unmounted: fn(),
    /// Threads that answer requests.
    serving: AtomicUsize,
    /// Of them, those that wait for one.
    waiting: AtomicUsize,
}

/// What a handler has to say, unless it has sent its answer itself.
enum Answer {
    Bytes(Vec<u8>),
    Sent,
    None,
}

/// Why a request fails.
#[derive(Debug)]
enum Refusal {
    Errno(Errno),
    /// The image cannot be read.
    Read,
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Self {
        Self::Errno(error)
    }
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::WrongType("directory") => Self::Errno(Errno::NOTDIR),
            ReadError::WrongType(_) => Self::Errno(Errno::INVAL),
            _ => Self::Read,
        }
    }
}

impl From<Refusal> for Errno {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Errno(error) => error,
            Refusal::Read => Self::IO,
        }
    }
}

impl<'a> Server<'a> {
    pub(super) fn new(connection: &'a Connection, image: &'a Image, options: &Options) -> Self {
        Self {
            image,
            connection,
            unmounted: options.unmounted,
            serving: AtomicUsize::new(1),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Serves until the file system is unmounted.
    pub(super) fn run(&self) -> Result<(), ServeError> {
        std::thread::scope(|scope| {
            let result = self.serve(scope);
            self.image.ahead.close();
            result
        })
    }

    /// What every serving thread does.
    fn serve<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> Result<(), ServeError> {
        let mut buffer = RequestBuffer::new();
        loop {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let received = self.connection.receive(&mut buffer);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            let Some(request) = received.map_err(ServeError::Receive)? else {
                (self.unmounted)();
                return Ok(());
            };
            let result = match self.handle(&request, scope) {
                Ok(Answer::Bytes(bytes)) => self.connection.answer_bytes(&request.header, &bytes),
                Ok(Answer::Sent | Answer::None) => Ok(()),
                Err(refusal) => self.connection.refuse(&request.header, refusal.into()),
            };
            match result {
                // The process that asked was killed; or the file system is gone, which the next read says.
                Ok(()) | Err(Errno::NOENT | Errno::NODEV) => {}
                Err(error) => return Err(ServeError::Answer(error)),
            }
        }
    }

    fn handle<'scope>(
        &'scope self,
        request: &Request<'_>,
        scope: &'scope Scope<'scope, '_>,
    ) -> Result<Answer, Refusal> {
        let header = &request.header;
        let send = |result: Result<(), Errno>| result.map(|()| Answer::Sent).map_err(Refusal::from);
        match header.opcode {
            opcode::LOOKUP => {
                let name = request.name(0)?;
                let directory = self.image.inode(header.nodeid)?;
                let entry = match self.image.reader.lookup(&directory, name)? {
                    Some(target) => self
                        .image
                        .nodes
                        .entry_out(&self.image.reader.inode(target.inode)?),
                    None => nodes::no_entry(),
                };
                let answered = self.connection.answer(header, &entry);
                self.image.is_known(entry.nodeid);
                send(answered)
            }
            opcode::GETATTR => {
                let attributes = self.image.nodes.attr_out(&self.image.inode(header.nodeid)?);
                send(self.connection.answer(header, &attributes))
            }
            opcode::READLINK => {
                let target = self
                    .image
                    .reader
                    .readlink(&self.image.inode(header.nodeid)?)?;
                Ok(Answer::Bytes(target))
            }
            opcode::READ => self.read(request, scope),
            opcode::READDIR | opcode::READDIRPLUS => {
                let asked: ReadIn = request.parse()?;
                let entries = listing::list(
                    &self.image.reader,
                    &self.image.nodes,
                    &self.image.inode(header.nodeid)?,
                    asked.offset,
                    asked.size as usize,
                    header.opcode == opcode::READDIRPLUS,
                )?;
                Ok(Answer::Bytes(entries))
            }
            opcode::STATFS => send(
                self.connection
                    .answer(header, &nodes::statfs(&self.image.reader)),
            ),
            // After one ENOSYS the kernel never asks again.
            opcode::GETXATTR | opcode::LISTXATTR if self.image.reader.has_xattrs() => {
                self.xattr(request)
            }
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT => Ok(Answer::None),
            opcode::DESTROY => Ok(Answer::Bytes(Vec::new())),
            // For OPEN, OPENDIR, FLUSH, ACCESS and others that means: not needed. What would change something never comes
            // here, since the file system is mounted read-only.
            _ => Err(Errno::NOSYS.into()),
        }
    }

    fn xattr(&self, request: &Request<'_>) -> Result<Answer, Refusal> {
        let asked: GetxattrIn = request.parse()?;
        let inode = self.image.inode(request.header.nodeid)?;
        let listing = request.header.opcode == opcode::LISTXATTR;
        let value = if !inode.has_xattrs() {
            if !listing {
                return Err(Errno::NODATA.into());
            }
            Vec::new()
        } else {
            let xattrs = self.image.reader.xattrs(&inode)?;
            if listing {
                let names = xattrs
                    .keys()
                    .flat_map(|name| name.iter().copied().chain([0]));
                names.collect()
            } else {
                let name = request.name(size_of::<GetxattrIn>())?;
                xattrs.get(name).ok_or(Errno::NODATA)?.to_vec()
            }
        };
        if asked.size == 0 {
            let size = u32::try_from(value.len()).map_err(|_| Errno::RANGE)?;
            return Ok(Answer::Bytes(
                GetxattrIn { size, padding: 0 }.as_bytes().to_vec(),
            ));
        }
        if value.len() > asked.size as usize {
            return Err(Errno::RANGE.into());
        }
        Ok(Answer::Bytes(value))
    }

    fn read<'scope>(
        &'scope self,
        request: &Request<'_>,
        scope: &'scope Scope<'scope, '_>,
    ) -> Result<Answer, Refusal> {
        let asked: ReadIn = request.parse()?;
        let nodeid = request.header.nodeid;
        let file = self
            .image
            .files
            .open(nodeid, &self.image.reader, || self.image.inode(nodeid))?;
        let map = &file.map;
        let end = asked
            .offset
            .saturating_add(u64::from(asked.size))
            .min(map.size());
        let range = asked.offset.min(end)..end;
        let extents = content::extents(&self.image.reader, map, &range)?;
        self.image.ahead.used();
        let mut missing = extents
            .iter()
            .filter(|(_, extent)| {
                content::block(extent).is_some_and(|block| !self.image.reader.is_cached(&block))
            })
            .map(|(number, _)| *number);
        let missed = missing.next().is_some();
        let streak = file.streak(&range);
        let missed = missed && !self.image.is_starting();
        if missed {
            // This takes a while: others should be able to ask meanwhile.
            self.recruit(scope);
        }
        if missed || (streak > 0 && !self.image.is_starting()) {
            // What this READ needs comes first; then what the next ones will probably need.
            let behind = extents.last().map_or(0, |(number, _)| number + 1);
            let further = file.wanted(&self.image.reader, behind, ahead_count(streak));
            let job = |number| Job {
                file: Arc::clone(&file),
                number,
            };
            self.help(scope, missing.chain(further).map(job));
        }
        let pieces = extents
            .iter()
            .map(|(number, extent)| {
                content::piece(
                    &self.image.reader,
                    extent,
                    content::part(map, *number, extent, &range),
                )
            })
            .collect::<Result<Vec<_>, _>>()?;
        let header = answer_header(&request.header, (range.end - range.start) as usize)?;
        self.connection
            .send(&content::slices(header.as_bytes(), &pieces))?;
        drop(pieces);
        for (number, extent) in &extents {
            let part = content::part(map, *number, extent, &range);
            if file.hand_out(*number, part.len(), extent.length())
                && let Extent::Block(block) = extent
            {
                self.image.reader.forget_cached(block);
            }
        }
        Ok(Answer::Sent)
    }

    /// Makes sure that some thread waits for requests while this one is busy.
    fn recruit<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            return;
        }
        let room = |serving| (serving < self.image.threads()).then_some(serving + 1);
        if self
            .serving
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, room)
            .is_ok()
        {
            let started = Builder::new()
                .stack_size(STACK)
                .spawn_scoped(scope, move || self.serve(scope));
            if started.is_err() {
                self.serving.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Gives jobs to the helpers.
    fn help<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        jobs: impl IntoIterator<Item = Job>,
    ) {
        if self.image.ahead.add(jobs, self.image.threads()) {
            let started = Builder::new()
                .stack_size(STACK)
                .spawn_scoped(scope, move || self.image.ahead.help(&self.image.reader));
            if started.is_err() {
                self.image.ahead.not_started();
            }
        }
    }
}
