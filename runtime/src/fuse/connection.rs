//! The file descriptor of `/dev/fuse`: one read is one request, one write is one answer or notification.

use std::io::IoSlice;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::protocol::{InHeader, MIN_READ_BUFFER, OutHeader};

/// A mounted `/dev/fuse`, used by all threads.
#[derive(Debug)]
pub(super) struct Connection {
    device: OwnedFd,
}

/// Where a request is read into; aligned as the structs in it would like it.
#[repr(align(8))]
pub(super) struct RequestBuffer([u8; MIN_READ_BUFFER]);

impl RequestBuffer {
    pub(super) const fn new() -> Self {
        Self([0; MIN_READ_BUFFER])
    }
}

/// A request of the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) header: InHeader,
    /// What follows the header.
    pub(super) body: &'a [u8],
}

impl Request<'_> {
    /// The struct that the body begins with. EPROTO where the body is shorter, which no kernel sends.
    pub(super) fn parse<T: FromBytes + KnownLayout + Immutable>(&self) -> Result<T, Errno> {
        T::read_from_prefix(self.body).map_or(Err(Errno::PROTO), |(value, _)| Ok(value))
    }

    /// The name that follows `skip` bytes of the body, up to its terminating zero.
    pub(super) fn name(&self, skip: usize) -> Result<&[u8], Errno> {
        let text = self.body.get(skip..).ok_or(Errno::PROTO)?;
        text.split(|byte| *byte == 0).next().ok_or(Errno::PROTO)
    }
}

impl Connection {
    pub(super) const fn new(device: OwnedFd) -> Self {
        Self { device }
    }

    /// Waits for the next request. None once the file system is unmounted.
    pub(super) fn receive<'a>(
        &self,
        buffer: &'a mut RequestBuffer,
    ) -> Result<Option<Request<'a>>, Errno> {
        let length = loop {
            match rustix::io::read(&self.device, &mut buffer.0[..]) {
                // A device that was taken away.
                Ok(0) => return Ok(None),
                Ok(length) => break length,
                // A signal; or the process that asked was killed before its request was read.
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
                Err(Errno::NODEV) => return Ok(None),
                Err(error) => return Err(error),
            }
        };
        let received = &buffer.0[..length];
        match InHeader::read_from_prefix(received) {
            Ok((header, body)) => Ok(Some(Request { header, body })),
            Err(_) => Err(Errno::PROTO),
        }
    }

    /// Answers with an error.
    pub(super) fn refuse(&self, request: &InHeader, error: Errno) -> Result<(), Errno> {
        let header = OutHeader {
            error: -error.raw_os_error(),
            ..answer_header(request, 0)?
        };
        self.send(&[IoSlice::new(header.as_bytes())])
    }

    /// Answers with one struct.
    pub(super) fn answer<T: IntoBytes + Immutable>(
        &self,
        request: &InHeader,
        value: &T,
    ) -> Result<(), Errno> {
        self.answer_bytes(request, value.as_bytes())
    }

    /// Answers with bytes.
    pub(super) fn answer_bytes(&self, request: &InHeader, bytes: &[u8]) -> Result<(), Errno> {
        let header = answer_header(request, bytes.len())?;
        self.send(&[IoSlice::new(header.as_bytes()), IoSlice::new(bytes)])
    }

    /// Sends a message whose pieces, the header first, go from where they are to where the kernel wants them.
    pub(super) fn send(&self, parts: &[IoSlice<'_>]) -> Result<(), Errno> {
        loop {
            match rustix::io::writev(&self.device, parts) {
                Err(Errno::INTR) => {}
                result => return result.map(drop),
            }
        }
    }
}

/// The header of an answer of `length` bytes.
pub(super) fn answer_header(request: &InHeader, length: usize) -> Result<OutHeader, Errno> {
    Ok(OutHeader {
        len: u32::try_from(size_of::<OutHeader>() + length).map_err(|_| Errno::TOOBIG)?,
        error: 0,
        unique: request.unique,
    })
}
