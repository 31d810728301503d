//! Serves a squashfs image to the kernel: a FUSE server of our own over `/dev/fuse`.

mod ahead;
mod connection;
mod content;
mod handshake;
mod listing;
mod nodes;
mod protocol;
mod server;

use std::os::fd::OwnedFd;

use cista_images::squashfs::reader::Reader;
use rustix::io::Errno;

/// How an image is served.
#[derive(Clone, Debug)]
pub struct Options {
    /// Owner of every file, as a number of the user namespace that the file system is mounted in.
    pub uid: u32,
    /// Group of every file, as a number of the user namespace that the file system is mounted in.
    pub gid: u32,
    /// Bytes of memory for decoded blocks.
    pub cache_bytes: usize,
    /// Threads that may answer requests, and as many that may decode blocks ahead.
    pub threads: usize,
}

/// Why a server ended before its file system was unmounted.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The device does not give requests.
    #[error("cannot read requests from /dev/fuse")]
    Receive(#[source] Errno),
    /// The device does not take answers.
    #[error("cannot write answers to /dev/fuse")]
    Answer(#[source] Errno),
    /// The kernel does not begin as a kernel should.
    #[error("the kernel's first request on /dev/fuse is {0} instead of INIT")]
    NoInit(u32),
    /// The kernel is too old.
    #[error("the kernel speaks FUSE {major}.{minor}, but at least 7.31 (Linux 5.4) is needed")]
    Version {
        /// Version before the dot.
        major: u32,
        /// Version after the dot.
        minor: u32,
    },
}

/// Serves `reader` on `device` until the file system is unmounted.
///
/// `device` is `/dev/fuse`, opened in the user namespace of the mount and already mounted: read-only (else the kernel asks for
/// the attributes again after every read), with `default_permissions`, without `max_read`.
pub fn serve(device: OwnedFd, reader: Reader, options: &Options) -> Result<(), ServeError> {
    let connection = connection::Connection::new(device);
    if !handshake::shake(&connection)? {
        return Ok(());
    }
    let reader = reader.with_cache(options.cache_bytes);
    server::Server::new(connection, reader, options).run()
}
