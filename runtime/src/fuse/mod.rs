//! Serves a squashfs image to the kernel: a FUSE server of our own over `/dev/fuse`.
//!
//! The protocol is the kernel's `include/uapi/linux/fuse.h`. We speak it ourselves rather than through the crate `fuser` (0.18), which
//! takes one slice as the answer to a READ, so that an answer from two blocks must be copied together first; starts a fixed
//! number of threads, each with a request buffer of 16 MiB; and makes the node id the inode number that users see. The part
//! of the protocol that a read-only file system needs is small.
//!
//! What makes it quick:
//!
//! - An image never changes, so every answer is valid for ever, names that do not exist included, and OPEN, OPENDIR and FLUSH are
//!   answered once with ENOSYS: the kernel then opens and closes files by itself and keeps what it has read. What
//!   is left are a LOOKUP and one or a few READs for each file, once a mount.
//! - Node ids are the image's own inode references (`nodes`): nothing is remembered, nothing is looked up.
//! - Blocks are decoded once however many requests want them, and answers are written from where they were decoded.
//! - Decoding uses all cores: while one thread decodes, another waits for requests, and helpers decode what will probably be
//!   asked for next (`ahead`). The first request needs no second thread: one alone serves until decoding is called for.
//! - A data block is dropped as soon as all of it was handed out, since the kernel has it now; its memory serves the next one.
//!   What stays are fragment blocks, up to a limit, and they are given back when nobody reads any more.
//!
//! What was considered and left out:
//!
//! - Pushing the rest of every decoded block into the page cache (`FUSE_NOTIFY_STORE`): of the READs of a Python program that imports its
//!   large libraries, one in eight would be spared, each at the price of copying what nobody asked for. What a start reads is
//!   another matter: almost all of it is known and wanted (`early`).
//! - Tying a thread that answers to the processor of its caller: a round trip takes 3 instead of 9 microseconds when both share one,
//!   but ten times longer when the guess is wrong and the processor busy. The scheduler guesses well, with one exception that
//!   `image` sees to.
//! - A device for each thread (`FUSE_DEV_IOC_CLONE`): the queue of requests is shared all the same.
//! - `splice`: pages that the kernel may keep must be fresh for each block, which costs as much as the copy that is saved.
//!
//! - `protocol`, `connection`, `handshake`: messages, the device, INIT
//! - `image`: what is served, and who works where while a container starts
//! - `early`: what is decoded before the first request, and given to the kernel unasked
//! - `server`: from requests to answers, and the threads
//! - `nodes`, `listing`, `content`, `ahead`: attributes, READDIR, READ, decoding ahead

mod ahead;
mod connection;
mod content;
mod early;
mod handshake;
mod image;
mod listing;
mod nodes;
mod protocol;
mod server;

use std::os::fd::OwnedFd;
use std::time::Duration;

use cista_images::squashfs::reader::{Inode, Reader};
use rustix::io::Errno;

/// Tells which files will be read first, in the order of their reading.
pub type Files = Box<dyn FnOnce(&Reader) -> Vec<Inode> + Send>;

/// What is known of the reads to come.
pub struct Foresight {
    /// Asked once, on a thread of its own.
    pub files: Files,
    /// The processor of the process that will read: decoding ahead leaves it alone, where there is another.
    pub reader_processor: usize,
    /// How long to wait, after everything is decoded, for the kernel to know the files, which then get their content unasked.
    pub patience: Duration,
}

/// How an image is served.
#[derive(Clone, Debug)]
pub struct Options {
    /// Owner of every file, as a number of the user namespace that the file system is mounted in.
    pub uid: u32,
    /// Group of every file, as a number of the user namespace that the file system is mounted in.
    pub gid: u32,
    /// Bytes of memory for decoded blocks.
    pub cache_bytes: usize,
    /// Threads that may answer requests, and as many that may decode blocks ahead; None for as many as there are processors.
    pub threads: Option<usize>,
    /// Called by the first thread that notices that the file system is gone, before anything is given back. It may end the process.
    pub unmounted: fn(),
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

/// Serves `reader` until the file system is unmounted. Blocks of the files that `foresight` tells are decoded before anybody asks, from now on:
/// `wait_for_device` may take its time. Without a device, nothing is served.
///
/// The device is `/dev/fuse`, opened in the user namespace of the mount and already mounted: read-only (else the kernel asks for
/// the attributes again after every read), with `default_permissions`, without `max_read`.
pub fn serve(
    wait_for_device: impl FnOnce() -> Option<OwnedFd>,
    reader: Reader,
    options: &Options,
    foresight: Option<Foresight>,
) -> Result<(), ServeError> {
    let image = image::Image::new(reader.with_cache(options.cache_bytes), options);
    std::thread::scope(|scope| {
        if let Some(foresight) = foresight {
            image.foresee(foresight, scope);
        }
        let served = serve_image(wait_for_device, &image, options);
        image.ahead.close();
        served
    })
}

fn serve_image(
    wait_for_device: impl FnOnce() -> Option<OwnedFd>,
    image: &image::Image,
    options: &Options,
) -> Result<(), ServeError> {
    let Some(device) = wait_for_device() else {
        return Ok(());
    };
    let connection = connection::Connection::new(device);
    if !handshake::shake(&connection)? {
        return Ok(());
    }
    server::Server::new(image.connected(connection), image, options).run()
}
